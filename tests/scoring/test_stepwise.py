"""Stage by stage a candidate's score is the mean of what was seen, and in the end what `evaluate` gives."""

import pytest
import torch

from automc.policy import Policy
from automc.scoring.evaluator import Evaluator
from automc.scoring.stepwise import Stepwise
from tests.scoring import tiny

STAGES = (64, 700)


@pytest.fixture(scope="module", params=["metric", "kl"])
def scored(request: pytest.FixtureRequest) -> tuple[Evaluator, list[Policy]]:
    setting = tiny.setting(tiny.task(), STAGES, score=request.param)
    return setting.evaluator, tiny.policies(setting, 3)


def test_each_step_is_the_mean_over_the_samples_seen_and_the_last_is_evaluate(scored):
    evaluator, policies = scored
    rows = [stage.rows for stage in evaluator.stages]
    for policy in policies:
        by_sample, whole = evaluator.searched_scores(policy), evaluator.evaluate(policy)
        steps = Stepwise(evaluator, policy)
        for number, samples in enumerate((*STAGES, tiny.SAMPLES), start=1):
            found = steps.step()
            seen = torch.cat(rows[:number])
            assert (steps.seen, len(seen), steps.all) == (samples, samples, tiny.SAMPLES)
            assert found.score == pytest.approx(float(by_sample[seen].mean()), abs=1e-12)
            assert (found.state, found.share) == (("pruned", samples / tiny.SAMPLES) if number < 3 else ("ok", 1.0))
            assert found.costs == whole.costs
        assert (found.score, found.metric) == (whole.score, whole.metric)  # to the last bit


def test_a_candidate_is_compressed_once_and_its_seconds_add_up(scored, monkeypatch):
    evaluator, policies = scored
    compressed, compress = [], evaluator.compressor.compress

    def noted(policy):
        compressed.append(policy)
        return compress(policy)

    monkeypatch.setattr(evaluator.compressor, "compress", noted)
    steps = Stepwise(evaluator, policies[0])
    seconds = [steps.step().seconds for _ in range(3)]
    assert compressed == [policies[0]] and 0 < seconds[0] < seconds[1] < seconds[2]


def test_scores_found_elsewhere_are_gone_on_from(scored):
    evaluator, policies = scored
    first = Stepwise(evaluator, policies[0])
    first.step()
    second = Stepwise(evaluator, policies[0], first.found)
    for _ in range(2):
        here, there = first.step(), second.step()
        assert (here.score, here.metric, here.share, here.state) == (
            there.score,
            there.metric,
            there.share,
            there.state,
        )


@pytest.mark.parametrize("changes", [{}, {"evaluate": lambda model: 0.25}])
def test_without_stages_there_is_one_step(changes):
    setting = tiny.setting(tiny.task(**changes), STAGES if changes else ())
    [policy] = tiny.policies(setting, 1)
    steps, whole = Stepwise(setting.evaluator, policy), setting.evaluator.evaluate(policy)
    found = steps.step()
    assert (found.state, found.score, found.metric, found.stages) == ("ok", whole.score, whole.metric, ())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_what_goes_wrong_at_a_stage_is_a_failed_trial_with_its_reason(stage):
    scored, armed = [0], [False]

    def metric(outputs, targets):
        scored[0] += len(targets)
        if armed[0] and scored[0] > (0, *STAGES)[stage]:
            raise ArithmeticError(f"at stage {stage}")
        return (outputs.argmax(1) == targets).double()

    setting = tiny.setting(tiny.task(metric=metric), STAGES)
    [policy] = tiny.policies(setting, 1)
    scored[0], armed[0] = 0, True
    steps = Stepwise(setting.evaluator, policy)
    found = [steps.step() for _ in range(stage + 1)]
    assert [e.state for e in found] == ["pruned"] * stage + ["failed"]
    assert found[-1].reason == f"ArithmeticError: at stage {stage}" and found[-1].score is None
