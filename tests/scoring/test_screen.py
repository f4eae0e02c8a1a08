"""Screening by predicted score: what it skips, what it may never skip, and what the study says of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import automc
from automc.evaluation import Evaluation
from automc.report.text import counts_line, surrogate_line
from automc.scoring.incumbents import Incumbents
from automc.scoring.race import Race
from automc.scoring.screen import ENOUGH, Guess, Screen
from automc.searcher import Problem
from automc.study import Study
from tests.scoring import tiny
from tests.searchers import table


def told(problem: Problem, count: int, seed: int = 0) -> tuple[Screen, list[Evaluation]]:
    screen = Screen(problem.space, lambda: table.calibrated(problem.space))
    rng, evaluate = np.random.default_rng(seed), table.lookup(problem, noise=0.002)
    policies = [problem.space.decode(problem.projector.project(problem.space.sample(rng))) for _ in range(count)]
    found = [evaluate(policy) for policy in policies]
    for evaluation in found:
        screen.learn(evaluation)
    return screen, found


def test_nothing_is_guessed_before_there_is_enough_to_tell() -> None:
    problem = table.problem("channels")
    screen, found = told(problem, ENOUGH - 1)
    assert screen.guess(found[0].policy) is None
    screen.learn(found[0])
    assert screen.guess(found[0].policy) is not None


def test_a_guess_is_as_uncertain_as_earlier_ones_were_wrong() -> None:
    problem = table.problem("channels")
    screen, _ = told(problem, 60)
    _, fresh = told(problem, 150, seed=1)
    guesses = [screen.guess(e.policy) for e in fresh]
    z = [(e.score - g.mean) / g.deviation for e, g in zip(fresh, guesses, strict=True) if g and e.score is not None]
    assert len(z) == 150 and 0.6 < float(np.std(z)) < 1.5
    assert np.mean(np.array(z) > 2.33) < 0.05


def test_what_was_only_predicted_teaches_nothing() -> None:
    problem = table.problem("channels")
    screen, found = told(problem, 40)
    before = screen.guess(found[0].policy)
    for evaluation in found:
        screen.learn(replace(evaluation, state="pruned", share=0.0, score=5.0))
    assert screen.guess(found[0].policy) == before
    assert not replace(found[0], state="pruned", share=0.0).scored


def test_without_ordered_axes_nothing_is_guessed() -> None:
    problem = table.problem("criteria")
    flat = [axis for axis, ordered in zip(problem.space.axes, problem.space.ordered, strict=True) if not ordered]
    space = type(problem.space)(problem.space.facts, tuple(flat))
    screen = Screen(space, lambda: tuple(np.zeros(n) for n in space.sizes))
    policy = space.decode(space.largest)
    for _ in range(ENOUGH + 5):
        screen.learn(Evaluation(policy, "ok", 0.5, (("macs", 1.0),)))
    assert screen.guess(policy) is None


class Sure(Screen):
    """Guesses the worst of everything."""

    def __init__(self, mean: float) -> None:
        self.mean = mean

    def learn(self, evaluation: Evaluation) -> None:
        pass

    def guess(self, policy: object) -> object:  # type: ignore[override]
        return Guess(self.mean, 0.01)


@pytest.mark.parametrize("stages", [(), (60,)])
def test_a_policy_is_skipped_only_for_one_that_costs_no_more(stages: tuple[int, ...]) -> None:
    setting = tiny.setting(tiny.task(), stages)
    race = Race(setting.evaluator, ("macs",), screen=Sure(-1.0))
    policies = sorted(tiny.policies(setting, 8), key=lambda p: dict(setting.evaluator.costs(p))["macs"])
    middle = race.evaluate(policies[4])
    assert middle.ok and middle.predicted == -1.0  # nobody to lose against
    race.learn(replace(middle, number=0))
    for policy in policies:
        found = race.evaluate(policy)
        cheaper = dict(found.costs)["macs"] < dict(middle.costs)["macs"]
        assert found.ok == cheaper
        if not cheaper:
            assert (found.state, found.share, found.score) == ("pruned", 0.0, -1.0)
            assert found.reason.startswith("Not scored: predicted -1")
    hopeful = Race(setting.evaluator, ("macs",), screen=Sure(2.0))
    hopeful.learn(replace(middle, number=0))
    assert hopeful.evaluate(policies[-1]).share > 0


def test_a_slack_lets_almost_equal_costs_stop_one_another() -> None:
    problem = table.problem("channels")
    policies = [problem.space.decode(problem.space.smallest), problem.space.decode(problem.space.largest)]
    dearer = Evaluation(policies[0], "ok", 0.9, (("macs", 100.4),), number=0)
    for slack, rival in (({}, None), ({"macs": 0.5}, dearer), ({"macs": 0.3}, None)):
        incumbents = Incumbents(("macs",), slack=slack)
        incumbents.add(dearer)
        assert incumbents.rival({"macs": 100.0}) is rival


def test_a_search_says_what_it_skipped_and_goes_on_as_it_began(tmp_path: Path) -> None:
    task = tiny.task()

    def search(where: str, trials: int) -> Study:
        return automc.search(
            task, budget="macs<=60%", searcher="random", screen=True, trials=trials, storage=tmp_path / where
        )

    whole = search("whole.journal", 60)
    search("parts.journal", 33)
    parts = search("parts.journal", 60)
    assert [replace(e, seconds=0) for e in whole.evaluations] == [replace(e, seconds=0) for e in parts.evaluations]
    again = Study.open(tmp_path / "whole.journal")
    assert again.evaluations == whole.evaluations
    skipped = [e for e in again.evaluations if e.state == "pruned"]
    assert skipped and all(e.share == 0 and e.predicted == e.score for e in skipped)
    assert f"{len(skipped)} predicted to lose and skipped" in counts_line(again.evaluations)
    assert "Kendall's tau" in surrogate_line(again.evaluations)
    assert again.best.ok
