"""The bridge without a cluster: what Tune may say, and what then stands in the study."""

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray import cloudpickle
from ray.tune.search import ConcurrencyLimiter

from automc.begin import Begun
from automc.errors import ExecutorError, PolicyError, StudyError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.registry import SEARCHERS
from automc.searcher import Problem
from automc.setting import Setting
from automc.study import Study
from automc.testing.contracts import same_state
from automc.tuning.ledger import Ledger
from automc.tuning.recording import Recording
from automc.tuning.searcher import TuneSearcher
from tests.searchers.table import serves
from tests.spaces import models
from tests.test_contracts import problem_of

FACTS = models.wide()
SPACE, BUDGET = "channels-bits", "macs<=60%,size<=40%"


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of(FACTS, SPACE, BUDGET)


def study(path: Path, problem: Problem) -> Study:
    meta = {"fingerprint": FACTS.fingerprint, "budget": BUDGET, "limits": dict(problem.projector.limits), "recipe": {}}
    return Study.create(path, "tuned", meta | {"dense": {"score": 0.9}}, problem.space.axes)


def bridge(folder: Path, problem: Problem, name: str = "random", trials: int = 12) -> TuneSearcher:
    """As `tune_searcher` makes one, without a model."""
    costs = SimpleNamespace(costs=lambda policy: tuple(problem.projector.costing.of_policy(policy).items()))
    setting = cast(Setting, SimpleNamespace(problem=problem, evaluator=costs))
    searcher = SEARCHERS.load(name)(problem, 0)
    return TuneSearcher(Ledger(Begun(setting, study(folder / "tuned.journal", problem), searcher)), trials)


def report(text: str, state: str = "ok", **changes: Any) -> dict[str, Any]:
    """What `automc.trainable` reports, flat."""
    policy = Policy.from_json(text)
    score = int(policy.digest[:6], 16) / 2**24
    shares = {"ok": (100, 1.0), "pruned": (25, 0.25), "failed": (0, 0.0), "broken": (0, 0.0)}
    samples, share = shares[state]
    known = {"state": state, "score": score, "metric": score / 2, "samples": samples, "share": share, "seconds": 0.5}
    return known | {"reason": "", "config/policy": text, "done": True} | changes


def told(found: Evaluation) -> tuple[Any, ...]:
    return found.state, found.score, found.metric, found.share, found.stages, found.reason


class Same:
    """Always proposes one policy."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.policy = problem.space.decode(problem.projector.project(problem.space.largest))

    def ask(self) -> Policy:
        return self.policy

    def tell(self, evaluation: Evaluation) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("name", list(SEARCHERS))
def test_any_searcher_is_asked_within_the_budget_and_goes_on_from_the_study_alone(name, problem, tmp_path):
    """The pack of searchers, through the bridge."""
    if not serves(name, problem.space):
        pytest.skip("the space is not for it")
    first = bridge(tmp_path, problem, name)
    texts: dict[str, str] = {}
    for number in range(9):
        suggested = first.suggest(f"t{number}")
        if suggested == first.FINISHED:
            break
        text = texts[f"t{number}"] = suggested["policy"]
        assert problem.projector.feasible(problem.space.encode(Policy.from_json(text)))
        if number % 3 == 2:
            first.on_trial_complete(f"t{number}", error=True)
        else:
            first.on_trial_complete(f"t{number}", report(text, "pruned" if number % 3 else "ok"))
    again = bridge(tmp_path, problem, name)
    assert again.study.evaluations == first.study.evaluations and len(first.study.evaluations) >= len(texts)
    assert same_state(again.ledger._searcher.state_dict(), first.ledger._searcher.state_dict())
    ahead, behind = first.suggest("next"), again.suggest("other")
    assert ahead == behind


def test_each_state_is_recorded_with_its_constraints_as_optuna_has_them(problem, tmp_path):
    tuned = bridge(tmp_path, problem)
    asked = {name: tuned.suggest(name)["policy"] for name in ("ok", "pruned", "failed", "error", "stopped")}
    tuned.on_trial_result("ok", report(asked["ok"], "pruned", samples=50, share=0.5, score=0.125))
    tuned.on_trial_complete("ok", report(asked["ok"]))
    tuned.on_trial_complete("pruned", report(asked["pruned"], "pruned", score=0.25))
    tuned.on_trial_complete("failed", report(asked["failed"], "failed", reason="Why.", score=math.nan, metric=math.nan))
    tuned.on_trial_complete("error", error=True)
    tuned.on_trial_result("stopped", report(asked["stopped"], "pruned", score=0.75))
    tuned.on_trial_complete("stopped")  # as a scheduler ends a trial that is paused
    score = report(asked["ok"])["score"]
    reason = "Stopped by Ray Tune after 25 samples, 25% of all."
    ended = "Ray Tune ended the trial with an error; error.txt in the trial's folder says which."
    assert [told(e) for e in tuned.study.evaluations] == [
        ("ok", score, score / 2, 1.0, ((50, 0.125), (100, score)), ""),
        ("pruned", 0.25, report(asked["pruned"])["metric"], 0.25, ((25, 0.25),), reason),
        ("failed", None, None, 1.0, (), "Why."),
        ("failed", None, None, 1.0, (), ended),
        ("pruned", 0.75, report(asked["stopped"])["metric"], 0.25, ((25, 0.75),), reason),
    ]
    states = [t.state.name for t in tuned.study.optuna.get_trials()]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "PRUNED"]
    for trial, evaluation in zip(tuned.study.optuna.get_trials(), tuned.study.evaluations, strict=True):
        limits = problem.projector.limits
        over = {c: evaluation.cost(c) / b - 1 for c, b in limits.items()}
        assert {c: trial.constraints[c] for c in limits} == pytest.approx(over)
        assert all(amount <= 0 for amount in trial.constraints.values())
    assert [e.proposer for e in tuned.study.evaluations] == ["random"] * 5
    assert all(e.seconds == 0.5 for e in tuned.study.evaluations if e.reason != ended)


def test_a_trial_that_never_began_is_not_recorded(problem, tmp_path):
    tuned = bridge(tmp_path, problem)
    tuned.suggest("a")
    tuned.on_trial_complete("a")
    assert tuned.study.evaluations == () and tuned.suggest("b") != tuned.FINISHED


def test_no_more_is_suggested_than_there_are_trials_and_what_was_taken_back_is_made_up_for(problem, tmp_path):
    tuned = bridge(tmp_path, problem, trials=3)
    asked = [tuned.suggest(str(n)) for n in range(3)]
    assert tuned.suggest("3") == tuned.FINISHED
    tuned.on_trial_complete("1")
    asked[1] = tuned.suggest("4")
    for name, config in zip("042", (asked[0], asked[1], asked[2]), strict=True):
        tuned.on_trial_complete(name, report(config["policy"]))
    assert tuned.suggest("5") == tuned.FINISHED and len(tuned.study.evaluations) == 3
    assert bridge(tmp_path, problem, trials=3).suggest("6") == tuned.FINISHED


def test_a_policy_is_scored_once_and_waited_for_where_it_is_being_scored(problem, tmp_path, monkeypatch):
    monkeypatch.setitem(SEARCHERS.table, "same", "tests.tune.test_searcher:Same")
    tuned = bridge(tmp_path, problem, "same", trials=4)
    text = tuned.suggest("a")["policy"]
    assert tuned.suggest("b") is None and tuned.suggest("c") is None
    tuned.on_trial_complete("a", report(text))
    assert tuned.suggest("d") == tuned.FINISHED
    assert [(e.score, e.seconds) for e in tuned.study.evaluations] == [
        (report(text)["score"], seconds) for seconds in (0.5, 0.0, 0.0, 0.0)
    ]


def test_a_policy_that_a_scheduler_made_is_recorded_for_what_it_is_and_infeasible_beyond_the_budget(problem, tmp_path):
    tuned = bridge(tmp_path, problem)
    space = problem.space
    within, beyond = space.decode(problem.projector.project(space.largest)), space.decode(space.largest)
    for number, policy in enumerate((within, beyond)):
        name = str(number)
        mine = tuned.suggest(name)["policy"]
        tuned.on_trial_result(name, report(mine, "pruned"))
        tuned.on_trial_complete(name, report(json.dumps(policy.to_dict())))
    given_up, first, also_given_up, second = tuned.study.evaluations
    assert {(e.state, e.proposer, e.share) for e in (given_up, also_given_up)} == {("pruned", "random", 0.25)}
    assert (first.policy, first.state, first.proposer, first.stages) == (within, "ok", "ray tune", ())
    assert (second.policy, second.state, second.score) == (beyond, "infeasible", None)
    assert "the limit" in second.reason


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"state": "broken", "reason": "no module named x"}, ExecutorError, "one says no module named x"),
        ({"state": None}, StudyError, "take automc.trainable"),
        ({"config/policy": "{"}, PolicyError, "must be JSON"),
        ({"config/policy": json.dumps(Policy("0" * 64).to_dict())}, PolicyError, "made for"),
    ],
)
def test_what_no_candidate_can_be_blamed_for_ends_the_run_and_is_not_recorded(changes, kind, said, problem, tmp_path):
    tuned = bridge(tmp_path, problem)
    text = tuned.suggest("a")["policy"]
    with pytest.raises(kind, match=said):
        tuned.on_trial_complete("a", report(text) | changes)
    tuned.on_trial_complete("a", error=True)  # as Tune says after that
    with pytest.raises(kind, match=said):
        tuned.suggest("b")
    assert tuned.study.evaluations == ()


def test_a_study_that_cannot_be_written_to_loses_no_trial(problem, tmp_path, monkeypatch):
    tuned = bridge(tmp_path, problem)
    texts = [tuned.suggest(str(n))["policy"] for n in range(3)]
    append = Study.append

    def full(self, evaluation):
        raise StudyError("No space.")

    monkeypatch.setattr(Study, "append", full)
    for number in range(2):
        with pytest.raises(StudyError, match="No space"):
            tuned.on_trial_complete(str(number), report(texts[number]))
        tuned.on_trial_complete(str(number), error=True)  # as Tune says after that
        with pytest.raises(StudyError, match="No space"):
            tuned.suggest("x")
    monkeypatch.setattr(Study, "append", append)
    tuned.on_trial_complete("2", report(texts[2]))
    assert [e.policy.to_dict() for e in tuned.study.evaluations] == [json.loads(text) for text in texts]
    assert {e.state for e in tuned.study.evaluations} == {"ok"}


def test_trials_that_others_add_meanwhile_are_told_and_counted(problem, tmp_path):
    tuned, other = (bridge(tmp_path, problem, trials=3) for _ in range(2))
    text = other.suggest("a")["policy"]
    other.on_trial_complete("a", report(text))
    mine = tuned.suggest("b")["policy"]
    assert mine != text, "it is known by now"
    tuned.on_trial_complete("b", report(mine))
    assert [e.number for e in tuned.study.evaluations] == [0, 1]
    other.on_trial_complete("c", report(other.suggest("c")["policy"]))
    assert tuned.suggest("d") == tuned.FINISHED


def test_tunes_own_limit_of_trials_at_once_goes_around_it(problem, tmp_path):
    limited: Any = ConcurrencyLimiter(bridge(tmp_path, problem), max_concurrent=1)
    text = limited.suggest("a")["policy"]
    assert limited.suggest("b") is None
    limited.on_trial_complete("a", report(text))
    assert limited.suggest("c")["policy"] != text


def test_nothing_of_a_searcher_reaches_a_file_and_a_copy_says_what_to_do(problem, tmp_path):
    tuned = bridge(tmp_path, problem)
    before = sorted(tmp_path.iterdir())
    tuned.save(str(tmp_path / "saved"))
    tuned.save_to_dir(str(tmp_path), "session")
    assert sorted(tmp_path.iterdir()) == before
    for module in (pickle, cloudpickle):
        data = module.dumps(tuned)
        assert len(data) < 100
        copy = pickle.loads(data)  # noqa: S301
        copy.save_to_dir(str(tmp_path), "session")
        for call in (lambda c: c.suggest("a"), lambda c: c.restore("x"), lambda c: c.restore_from_dir("x")):
            with pytest.raises(StudyError, match="make a new Tuner"):
                call(copy)
    for call in (lambda c: c.restore("x"), lambda c: c.restore_from_dir("x")):
        with pytest.raises(StudyError, match="make a new Tuner"):
            call(tuned)


def test_tune_does_not_take_it_for_a_wrapper(problem, tmp_path):
    """Tune looks for the searcher in a searcher by that name, saves it and looks into it."""
    assert not hasattr(bridge(tmp_path, problem), "searcher")


def test_another_metric_or_direction_than_the_searched_one_is_refused(problem, tmp_path):
    tuned = bridge(tmp_path, problem)
    assert tuned.set_search_properties(None, None, {}) is tuned.set_search_properties("score", "max", {}) is False
    for metric, mode in (("score", "min"), ("loss", "min"), ("costs/macs", None)):
        with pytest.raises(StudyError, match="Tune must maximise score"):
            tuned.set_search_properties(metric, mode, {})


def test_random_reports_in_any_order_leave_each_trial_once(problem, tmp_path):
    """What Tune tells, shuffled: every finished trial stands in the study once, told once."""
    rng, tuned = np.random.default_rng(0), bridge(tmp_path, problem, trials=40)
    open_: dict[str, str] = {}
    finished, number = [], 0
    while True:
        if open_ and (len(open_) > 4 or rng.random() < 0.5):
            name = str(rng.choice(list(open_)))
            text = open_.pop(name)
            kind = int(rng.integers(5))
            if kind == 0:
                tuned.on_trial_result(name, report(text, "pruned"))
            if kind == 1:
                tuned.on_trial_complete(name)
            else:
                tuned.on_trial_complete(name, None if kind == 2 else report(text), error=kind == 2)
                finished.append(text)
            if rng.random() < 0.2:
                tuned.on_trial_complete(name, error=True)
            continue
        suggested = tuned.suggest(str(number))
        if suggested == tuned.FINISHED and not open_:
            break
        if suggested != tuned.FINISHED:
            open_[str(number)] = suggested["policy"]
            number += 1
            continue
        tuned.on_trial_complete(next(iter(open_)), report(next(iter(open_.values()))))
        finished.append(open_.pop(next(iter(open_))))
    recorded = [json.dumps(e.policy.to_dict()) for e in tuned.study.evaluations]
    assert recorded == finished and len(recorded) == 40
    fresh = bridge(tmp_path, problem, trials=41)
    assert [replace(e, seconds=0.0) for e in fresh.study.evaluations] == [
        replace(e, seconds=0.0) for e in tuned.study.evaluations
    ]


def trial(name: str, text: str) -> Any:
    return SimpleNamespace(trial_id=name, config={"policy": text})


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """A result as callbacks are given it."""
    text = flat.pop("config/policy")
    return flat | {"config": {"policy": text}, "costs": {"macs": 1.0}}


def test_a_callback_records_trials_whose_policies_were_drawn(problem, tmp_path):
    tuned = bridge(tmp_path, problem)
    recording = Recording(tuned)
    texts = [tuned.draw() for _ in range(4)]
    assert len(set(texts)) == 4
    assert all(problem.projector.feasible(problem.space.encode(Policy.from_json(text))) for text in texts)
    ran = [trial(str(n), text) for n, text in enumerate(texts[:3])]
    for one in ran:
        recording.on_trial_start(0, ran, one)
        recording.on_trial_result(0, ran, one, nested(report(one.config["policy"], "pruned")))
        recording.on_trial_start(0, ran, one)  # it was paused and goes on
    recording.on_trial_result(0, ran, ran[0], nested(report(texts[0])))
    recording.on_trial_complete(0, ran, ran[0])
    recording.on_trial_error(0, ran, ran[1])
    recording.on_trial_result(0, ran, ran[2], nested(report(texts[3])))  # what it runs was changed
    recording.on_trial_complete(0, ran, ran[2])
    recording.on_trial_complete(0, ran, ran[2])
    found = [(e.policy.to_line(), e.state, e.proposer) for e in tuned.study.evaluations]
    states = ("ok", "failed", "pruned", "ok")
    assert found == [(text, state, "random") for text, state in zip(texts, states, strict=True)]


def test_a_run_without_a_searcher_ends_where_its_trials_cannot_be_recorded(problem, tmp_path, monkeypatch):
    tuned = bridge(tmp_path, problem)
    recording, text = Recording(tuned), tuned.draw()
    recording.on_trial_start(0, [], trial("a", text))
    recording.on_trial_result(0, [], trial("a", text), nested(report(text)))

    def full(self, evaluation):
        raise StudyError("No space.")

    with monkeypatch.context() as patch:
        patch.setattr(Study, "append", full)
        for call in (recording.on_trial_complete, recording.on_trial_start):
            with pytest.raises(StudyError, match="No space"):
                call(0, [], trial("a", text))
    recording.on_trial_start(0, [], trial("b", text))
    assert [e.policy.to_line() for e in tuned.study.evaluations] == [text]


def test_a_callback_that_was_pickled_lets_no_run_begin(problem, tmp_path):
    data = cloudpickle.dumps(Recording(bridge(tmp_path, problem)))
    copy = pickle.loads(data)  # noqa: S301
    with pytest.raises(StudyError, match="make a new Tuner"):
        copy.setup()
    assert len(data) < 100
