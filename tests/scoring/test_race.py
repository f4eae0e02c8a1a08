"""A race around the evaluator: equal scores for survivors, nothing lost to those stopped, the same after a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import automc
from automc.errors import TaskError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.registry import SEARCHERS
from automc.scoring import race as race_module
from automc.scoring.evaluator import Evaluator
from automc.scoring.forward import Forward
from automc.scoring.heat import estimated
from automc.scoring.race import Race
from automc.study import Study
from tests.scoring import tiny

STAGES = (100, 400)
SCORES = ("metric", "kl", "mse")


def run(race: Race, policies: list[Policy]) -> list[Evaluation]:
    """As the loop does, without a study."""
    found = []
    for number, policy in enumerate(policies):
        evaluation = replace(race.evaluate(policy), number=number)
        race.learn(evaluation)
        found.append(evaluation)
    return found


@pytest.fixture(autouse=True)
def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEARCHERS.table, "blind", "tests.scoring.tiny:Blind")


def search(path: Path, task: automc.Task | None = None, **options: Any) -> Study:
    given: dict[str, Any] = {
        "budget": "macs<=60%",
        "space": "channels",
        "searcher": "blind",
        "trials": 24,
        "study": "r",
    }
    return automc.search(task or tiny.task(), storage=path, **given | options)


def same(evaluations: tuple[Evaluation, ...]) -> list[tuple[Any, ...]]:
    return [(e.policy, e.state, e.score, e.metric, e.share, e.stages, e.reason, e.number) for e in evaluations]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("activation", [nn.ReLU, tiny.Swish], ids=["compiled", "torch"])
def test_survivors_have_the_evaluators_score_to_the_last_bit(score: str, activation: type[nn.Module]) -> None:
    setting = tiny.setting(tiny.task(activation=activation), STAGES, score)
    found = run(Race(setting.evaluator, ("macs",)), tiny.policies(setting, 20))
    plain = [setting.evaluator.evaluate(e.policy) for e in found]
    survivors = [(e, p) for e, p in zip(found, plain, strict=True) if e.ok]
    assert 2 <= len(survivors) < 20
    assert any(e.stages for e, _ in survivors)
    assert all((e.score, e.metric, e.costs, e.share) == (p.score, p.metric, p.costs, 1.0) for e, p in survivors)


@pytest.mark.parametrize("score", SCORES)
def test_stages_change_no_score_of_a_compiled_model_and_only_the_rounding_of_others(score: str) -> None:
    for activation, error in ((nn.ReLU, 0.0), (tiny.Swish, 1e-6)):
        task = tiny.task(activation=activation)
        staged, plain = (tiny.setting(task, ends, score).evaluator for ends in (STAGES, ()))
        for policy in tiny.policies(tiny.setting(task), 4):
            first, second = staged.evaluate(policy), plain.evaluate(policy)
            assert first.score is not None and second.score is not None
            assert abs(first.score - second.score) <= error
        assert staged.dense_score == pytest.approx(plain.dense_score, abs=error)


@pytest.mark.parametrize("score", SCORES)
def test_stopped_candidates_truly_lose_and_their_estimates_are_what_was_seen(score: str) -> None:
    setting = tiny.setting(tiny.task(), STAGES, score)
    race = Race(setting.evaluator, ("macs",))
    stopped = 0
    for number, policy in enumerate(tiny.policies(setting, 40)):
        costs = dict(setting.evaluator.costs(policy))
        rival = race.incumbents.rival(costs)
        found = replace(race.evaluate(policy), number=number)
        race.learn(found)
        if found.state != "pruned":
            continue
        stopped += 1
        assert rival is not None and rival.ok and rival.cost("macs") <= costs["macs"]
        assert found.score is not None and rival.score is not None and found.score < rival.score
        assert not found.ok and 0 < found.share < 1 and found.metric is not None
        seen, estimate = found.stages[-1]
        assert estimate == found.score and found.share == seen / tiny.SAMPLES and seen in STAGES
        assert f"after {seen} of {tiny.SAMPLES}" in found.reason and f"trial {rival.number}" in found.reason
        ours, theirs = (setting.evaluator.searched_scores(p).numpy() for p in (policy, rival.policy))
        assert ours.mean() < theirs.mean()
        rows = torch.cat([s.rows for s in setting.evaluator.stages[: STAGES.index(seen) + 1]]).numpy()
        together = np.cov(ours[rows], theirs[rows])
        slope = float(np.clip(together[0, 1] / max(together[1, 1], 1e-300), 0, 1))
        expected = ours[rows].mean() + slope * (theirs.mean() - theirs[rows].mean())
        assert found.score == pytest.approx(min(expected, theirs.mean()), rel=1e-9)
    assert stopped >= 3


@pytest.mark.parametrize("score", SCORES)
def test_estimates_are_nearer_to_the_truth_than_the_means_seen(score: str) -> None:
    setting = tiny.setting(tiny.task(), STAGES, score)
    rows = setting.evaluator.stages[0].rows.numpy()
    errors = []
    for raced in (e for e in run(Race(setting.evaluator, ("macs",)), tiny.policies(setting, 40)) if e.stages):
        scores = setting.evaluator.searched_scores(raced.policy).numpy()
        errors.append((raced.stages[0][1] - scores.mean(), scores[rows].mean() - scores.mean()))
    found, plain = np.sqrt(np.square(errors).mean(axis=0))
    # Random networks are right and wrong on samples of their own: accuracy has next to nothing in common there.
    assert len(errors) > 20 and found < (1.05 if score == "metric" else 0.95) * plain


def test_each_sample_runs_once_and_none_after_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tiny.setting(tiny.task(), STAGES)
    policies = tiny.policies(setting, 20)
    ran: list[int] = []
    plain = Evaluator.stage_scores

    def counted(self: Evaluator, forward: Forward, stage: Any) -> Any:
        ran.extend(stage.rows.tolist())
        return plain(self, forward, stage)

    monkeypatch.setattr(Evaluator, "stage_scores", counted)
    race = Race(setting.evaluator, ("macs",))
    states = set()
    for number, policy in enumerate(policies):
        ran.clear()
        found = replace(race.evaluate(policy), number=number)
        race.learn(found)
        states.add(found.state)
        assert len(ran) == len(set(ran)) == round(tiny.SAMPLES * found.share)
    assert states == {"ok", "pruned"}


@pytest.mark.parametrize("score", SCORES)
def test_racing_loses_neither_the_best_nor_the_front(score: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"score": score, "budget": "macs<=60%,params<=70%", "trials": 40}
    whole = search(tmp_path / "whole.journal", **options)
    raced = search(tmp_path / "raced.journal", stages=STAGES, **options)
    assert [e.policy for e in whole.evaluations] == [e.policy for e in raced.evaluations]  # blind to scores
    assert sum(e.state == "pruned" for e in raced.evaluations) > 2
    assert raced.best.policy == whole.best.policy and raced.best.score == whole.best.score
    assert [(e.number, e.score) for e in raced.pareto()] == [(e.number, e.score) for e in whole.pareto()]


def test_the_best_that_are_to_be_kept_are_scored_in_full(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole.journal", trials=40)
    ranked = sorted(whole.evaluations, key=lambda e: -(e.score or 0))
    pruned = []
    for keep in (1, 5):
        raced = search(tmp_path / f"{keep}.journal", trials=40, stages=STAGES, keep=keep)
        pruned.append(sum(e.state == "pruned" for e in raced.evaluations))
        full = {e.policy for e in raced.evaluations if e.ok}
        assert {e.policy for e in ranked[:keep]} <= full
    assert pruned[0] > pruned[1] > 0


@pytest.mark.parametrize("searcher", ["blind", "joint"])
@pytest.mark.parametrize("stop", [3, 11])
def test_a_race_stopped_and_resumed_equals_one_that_was_not(searcher: str, stop: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"searcher": searcher, "stages": STAGES, "score": "mse", "trials": 40}
    whole = search(tmp_path / "whole.journal", **options)
    search(tmp_path / "parts.journal", **options | {"trials": stop})
    parts = search(tmp_path / "parts.journal", **options)
    assert same(parts.evaluations) == same(whole.evaluations)
    assert {e.state for e in whole.evaluations} == {"ok", "pruned"}


def test_after_a_resume_an_incumbent_is_scored_again_once_and_only_when_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = tiny.setting(tiny.task(), STAGES)
    policies = tiny.policies(setting, 24)
    first = run(Race(setting.evaluator, ("macs",)), policies[:12])
    again: list[Policy] = []
    plain = Evaluator.searched_scores

    def counted(self: Evaluator, policy: Policy) -> Tensor:
        again.append(policy)
        return plain(self, policy)

    monkeypatch.setattr(Evaluator, "searched_scores", counted)
    race = Race(setting.evaluator, ("macs",))
    for evaluation in first:
        race.learn(evaluation)
    assert again == []
    run(race, policies[12:])
    assert 0 < len(again) == len(set(again))
    assert set(again) <= {e.policy for e in first if e.ok}


def test_an_incumbent_that_cannot_be_repeated_costs_its_race_not_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tiny.setting(tiny.task(), STAGES)
    policies = tiny.policies(setting, 6)
    first = run(Race(setting.evaluator, ("macs",)), policies[:5])

    def broken(*_: object) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(Evaluator, "searched_scores", broken)
    race = Race(setting.evaluator, ("macs",))
    for evaluation in first:
        race.learn(evaluation)
    assert all(e.ok and e.stages == () for e in run(race, policies[5:]))


def test_scores_in_memory_are_those_of_incumbents_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tiny.setting(tiny.task(), STAGES)
    race = Race(setting.evaluator, ("macs",))
    for found in run(race, tiny.policies(setting, 20)):
        assert found.number < 20
    assert set(race._scores) == {e.policy.digest for e in race.incumbents.held}
    assert race._new == {}
    monkeypatch.setattr(race_module, "MOST", 4)
    lonely = Race(setting.evaluator, ("macs",))
    for policy in tiny.policies(setting, 9):  # nobody records these
        lonely.evaluate(policy)
    assert len(lonely._new) == 4


def test_dearer_incumbents_stop_nobody() -> None:
    setting = tiny.setting(tiny.task(), STAGES)
    policies = tiny.policies(setting, 20)
    cheapest = sorted(policies, key=lambda p: -dict(setting.evaluator.costs(p))["macs"])
    macs = [dict(setting.evaluator.costs(p))["macs"] for p in cheapest]
    distinct = [p for p, before, now in zip(cheapest[1:], macs, macs[1:], strict=False) if now < before]
    found = run(Race(setting.evaluator, ("macs",)), distinct)  # each cheaper than all before
    assert len(found) >= 3 and all(e.ok and e.stages == () for e in found)


@pytest.mark.parametrize("stages", [(), (tiny.SAMPLES,), (2000, 5000)])
def test_without_a_stage_before_the_last_nothing_is_raced(stages: tuple[int, ...]) -> None:
    setting = tiny.setting(tiny.task(), stages)
    found = run(Race(setting.evaluator, ("macs",)), tiny.policies(setting, 12))
    assert all(e.ok and e.stages == () and e.share == 1.0 for e in found)


@pytest.mark.parametrize("score", ["metric", "mse"])
def test_a_task_with_its_own_evaluate_is_scored_in_full(score: str, tmp_path: Path) -> None:
    task = tiny.task(evaluate=lambda module: float(next(module.parameters()).detach().abs().sum()))
    without = automc.Task(task.model, task.calibration, [], evaluate=task.evaluate, name="own")
    for number, each in enumerate((task, without) if score == "metric" else (task,)):
        study = search(tmp_path / f"{number}.journal", each, stages=STAGES, score=score, trials=12)
        assert all(e.ok and e.share == 1.0 and e.stages == () for e in study.evaluations)


def test_stages_and_keep_may_change_when_a_search_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.journal"
    search(path, trials=4)
    search(path, trials=14, stages=(60,))
    study = search(path, trials=20, stages=(100, 300), keep=2)
    assert len(study.evaluations) == 20 and all(e.stages == () for e in study.evaluations[:4])
    assert {e.stages[0][0] for e in study.evaluations if e.stages} == {60, 100}
    assert study.best.ok and study.best.share == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": (256, 60)}, "rising numbers of samples"),
        ({"stages": (3,)}, "30 or more"),
        ({"stages": STAGES, "keep": 0}, "keeps the best 1 to 64"),
    ],
)
def test_a_race_that_cannot_be_run_is_refused_before_anything_is_done(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=said):
        search(tmp_path / "r.journal", **changes)
    assert not (tmp_path / "r.journal").exists()
    with pytest.raises(TaskError, match="A risk must lie"):
        Race(tiny.setting(tiny.task(), STAGES).evaluator, ("macs",), risk=0.7)


def test_an_estimate_follows_the_incumbent_as_far_as_both_go_together() -> None:
    rng = np.random.default_rng(0)
    beside = rng.normal(size=4000)
    for share in (0.0, 0.5, 1.0):
        seen = share * beside + (1.0 - share) * rng.normal(size=4000)
        moved = estimated(seen, beside, float(beside.mean()) + 0.3) - seen.mean()
        assert moved == pytest.approx(0.3 * share, abs=0.02)
    assert estimated(-beside, beside, 5.0) == pytest.approx(float(-beside.mean()))  # a chance, not a law
    assert estimated(seen, np.ones(4000), 7.0) == pytest.approx(float(seen.mean()))


@pytest.mark.parametrize("likeness", [0.0, 0.5, 0.95])
def test_estimates_have_no_more_error_than_plain_means_and_less_where_scores_are_alike(likeness: float) -> None:
    rng, errors = np.random.default_rng(1), []
    for _ in range(400):
        rival = (rng.random(2000) < 0.9).astype(float)
        own = np.where(rng.random(2000) < likeness, rival, rng.random(2000) < 0.8).astype(float)
        rows = rng.choice(2000, 150, replace=False)
        plain = own[rows].mean()
        errors.append((estimated(own[rows], rival[rows], rival.mean()) - own.mean(), plain - own.mean()))
    found, plain = np.sqrt(np.square(errors).mean(axis=0))
    assert found < 1.02 * plain and (likeness < 0.9 or found < 0.6 * plain)
