"""The joint search: what its arms share, which budgets it aims at, and who is asked next."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.errors import BudgetError
from automc.evaluation import Evaluation
from automc.pareto import hypervolume, objectives
from automc.searchers.aims import Aims
from automc.searchers.bandit import Bandit
from automc.searchers.baselines import random_searcher
from automc.searchers.history import History
from automc.searchers.joint import JointSearcher, joint
from automc.searchers.optuna_search import (
    asked,
    finished_trial,
    level_ranges,
    levels_at,
    memory_study,
    parameters_at,
    tpe_sampler,
)
from automc.searchers.sampled import Trials
from tests.searchers import table


def tightness(searcher: JointSearcher) -> list[float]:
    macs = searcher.history.problem.projector.limits["macs"]
    costing = searcher.history.problem.projector.costing
    return [costing.of(p)["macs"] / macs for p in searcher.history.points]


def test_what_one_arm_found_reaches_every_other() -> None:
    problem = table.problem()
    searcher = joint(problem, 0)
    told = table.search(searcher, table.lookup(problem), 40)
    assert len(searcher.history.points) == len(searcher.trials._told) == 40
    assert len(searcher.agent.agent.replay) == 40 * len(searcher.agent.walk.steps)  # type: ignore[attr-defined]
    assert {"uniform", *searcher.arms} == {e.proposer for e in told}  # the bandit tries all
    own = sum(e.proposer == "agent+tpe" for e in told)
    updates = searcher.agent.agent.critic_optimizer.state_dict()["state"].values()  # type: ignore[attr-defined]
    assert {int(s["step"]) for s in updates} == {own * len(searcher.agent.walk.steps)}  # one a step of its own episodes


def test_the_agent_decides_shares_and_the_sampler_criteria_each_shown_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = table.problem()
    searcher = joint(problem, 0)
    table.search(searcher, table.lookup(problem), 14)
    owned, arm = searcher.agent.walk.owned_axes, searcher.arms["agent+tpe"]
    assert {problem.space.axes[i].field for i in np.flatnonzero(owned)} == {"keep"}
    aim = searcher.aims.at(1.0, searcher.history)
    sampled = problem.projector.project(problem.space.sample(np.random.default_rng(3)))
    asked: list[list[int]] = []
    shown: list[np.ndarray] = []

    def suggest(chosen: list[int], seed: int) -> np.ndarray:
        asked.append(chosen)
        return sampled

    def episode(start: np.ndarray, *_: object) -> np.ndarray:
        shown.append(start)
        return np.where(owned, 1, start)

    monkeypatch.setattr(searcher.trials, "suggest", suggest)
    monkeypatch.setattr(searcher.agent, "episode", episode)
    for seed in range(12):
        point = arm.point(aim, np.random.default_rng(seed))
        assert np.array_equal(point, np.where(owned, 1, sampled))
    first = [np.array_equal(start, sampled) for start in shown]
    assert 2 <= sum(first) <= 10  # in turn: the agent sees what the sampler chose, or the best known
    conditioned = [chosen for chosen, sampler_first in zip(asked, first, strict=True) if not sampler_first]
    assert all(len(chosen) < len(aim.near) for chosen in conditioned)  # fitted to those nearest to the agent's shares


def test_it_opens_with_the_uniform_policy_and_plain_solutions_over_the_whole_range() -> None:
    problem = table.problem()
    searcher = joint(problem, 0)
    told = table.search(searcher, table.lookup(problem), 6)
    assert [e.proposer for e in told] == ["uniform"] + 5 * ["dp"]
    opened = tightness(searcher)[1:]
    assert opened == sorted(opened, reverse=True)
    assert opened[0] > 0.9 and opened[-1] < 2 * searcher.aims.floor


def test_it_proposes_for_the_budget_asked_for_and_for_tighter_ones() -> None:
    problem = table.problem()
    searcher = joint(problem, 1)
    table.search(searcher, table.lookup(problem), 60)
    found = np.array(tightness(searcher)[7:])
    assert 0.45 < (found > 0.97).mean() < 0.85
    assert (found < 0.8).sum() > 8


def test_its_front_holds_more_than_that_of_a_search_for_one_budget() -> None:
    problem = table.problem()
    macs = problem.projector.limits["macs"]

    def volume(told: list[Evaluation]) -> float:
        return hypervolume(objectives(told, ["macs"]), np.array([0.0, 1.1 * macs])) / macs

    evaluate = table.lookup(problem, noise=0.001)
    ours, plain = (table.search(make(problem, 0), evaluate, 40) for make in (joint, random_searcher))
    assert volume(ours) > 1.2 * volume(plain)


def test_an_estimate_pays_nothing_and_stands_on_no_front() -> None:
    problem = table.problem()
    searcher = joint(problem, 0)
    good = table.lookup(problem)(searcher.ask())
    assert searcher._gain(replace(good, state="pruned")) == 0.0
    assert len(searcher._front) == 0
    assert searcher._gain(good) > 0
    assert searcher._gain(good) == 0.0  # the same again adds nothing


def test_trials_of_an_earlier_study_fill_the_agents_memory() -> None:
    problem = table.problem()
    earlier = table.search(random_searcher(problem, 0), table.lookup(problem), 12)
    searcher = joint(problem, 0)
    assert searcher.remember(earlier) == 12
    assert len(searcher.agent.agent.replay) == 12 * len(searcher.agent.walk.steps)  # type: ignore[attr-defined]
    assert searcher.agent.agent.episode == 12


def test_several_limits_are_tightened_together_and_kept() -> None:
    problem = table.problem("channels-bits", "macs<=60%,size<=40%")
    told = table.search(joint(problem, 0), table.lookup(problem), 25)
    for name, limit in problem.projector.limits.items():
        assert all(e.cost(name) <= limit for e in told)
        assert any(e.cost(name) < 0.7 * limit for e in told)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 12))
def test_aims_lie_between_the_floor_and_the_budget(seed: int, count: int) -> None:
    problem = table.problem("channels", depth=8)
    aims, history = Aims(problem), History(problem, 0)
    rng = np.random.default_rng(seed)
    evaluate = table.lookup(problem)
    for _ in range(count):
        point = problem.projector.project(problem.space.sample(rng))
        history.tell(evaluate(problem.space.decode(point)))
        aims.tell(point)
    for _ in range(10):
        chosen = aims.choose(history, rng)
        assert aims.floor <= chosen <= 1.0
        aim = aims.at(chosen, history)
        assert problem.space.ordered.all() and aim.projector.feasible(problem.space.smallest)
        assert len(aim.near) == len(aim.points) == len(aim.scores) <= count
        assert aim.scores == sorted(aim.scores, reverse=True)


def test_most_tight_aims_lie_in_the_widest_gap() -> None:
    problem = table.problem("channels", depth=8)
    aims, history = Aims(problem), History(problem, 0)
    aims._tightness, history.scores = [0.3, 0.35, 0.9], [0.5, 0.55, 0.9]
    history.points = [problem.space.smallest] * 3
    rng = np.random.default_rng(0)
    drawn = np.array([aims.choose(history, rng) for _ in range(600)])
    tight = drawn[drawn < 1]
    assert 0.5 < (drawn == 1).mean() < 0.7
    assert ((tight > 0.35) & (tight < 0.9)).mean() > 0.75


def test_the_best_point_of_an_aim_is_within_its_limits_or_the_tightest() -> None:
    problem = table.problem()
    searcher = joint(problem, 0)
    table.search(searcher, table.lookup(problem), 30)
    found = np.array(tightness(searcher))
    for tight in (1.0, float(np.median(found)), 1.1 * float(found.min())):
        best = searcher.aims.at(tight, searcher.history).best
        index = next(i for i, p in enumerate(searcher.history.points) if np.array_equal(p, best))
        within = [s for s, t in zip(searcher.history.scores, found, strict=True) if t <= tight]
        assert searcher.history.scores[index] == max(within)
    nothing = searcher.aims.at(0.5 * found.min(), searcher.history).best
    assert np.array_equal(nothing, searcher.history.points[int(found.argmin())])


def test_shown_trials_suggest_what_a_study_of_them_does() -> None:
    problem = table.problem()
    trials, rng = Trials(problem), np.random.default_rng(0)
    space, ranges = problem.space, level_ranges(problem.space)
    points = [problem.projector.project(problem.space.sample(rng)) for _ in range(25)]
    for number, point in enumerate(points):
        trials.tell(point, float("nan") if number % 6 == 5 else float(rng.uniform()))
    chosen = [3, 20, 5, 4, 11, 17, 0, 22, 8, 9, 2, 14, 19]
    study = memory_study(1)
    for index in chosen:
        told = trials._told[index]
        if told is not None:
            study.add_trial(finished_trial(parameters_at(space, points[index]), ranges, told.values))
    for seed in range(3):
        expected = levels_at(space, asked(study, tpe_sampler(seed), ranges).params)
        assert np.array_equal(trials.suggest(chosen, seed), expected)


def test_bandit_prefers_what_pays_and_forgets() -> None:
    bandit = Bandit(("a", "b"))
    rng = np.random.default_rng(0)
    for _ in range(60):
        arm = bandit.choose(rng)
        bandit.update(arm, float(arm == "b"))
    assert sum(bandit.choose(rng) == "b" for _ in range(200)) > 150
    for _ in range(60):
        arm = bandit.choose(rng)
        bandit.update(arm, float(arm == "a"))
    assert sum(bandit.choose(rng) == "a" for _ in range(200)) > 150
    before = dict(bandit.wins)
    bandit.update("uniform", 1.0)
    assert bandit.wins == before


def test_a_gain_counts_by_its_rank_among_late_ones_whatever_their_scale() -> None:
    counts = []
    for scale in (1.0, 1e-9):
        bandit = Bandit(("a",))
        for gain in (3.0, 0.0, 1.0, 2.0, 0.0, 4.0):
            bandit.update("a", scale * gain)
        counts.append((bandit.wins["a"], bandit.losses["a"]))
    assert counts[0] == counts[1]
    idle = Bandit(("a",))
    for _ in range(10):
        idle.update("a", 0.0)
    assert idle.wins["a"] == 0.0


@pytest.mark.parametrize("budget", ["size<=30%", "size<=70%", "macs<=90%"])
def test_opening_budgets_differ_wherever_the_floor_is(budget: str) -> None:
    for space in ("channels", "halves", "weight-bits"):
        try:
            problem = table.problem(space, budget)
        except BudgetError:
            continue
        aims = Aims(problem)
        spread = aims.spread(5)
        assert spread[0] == pytest.approx(1.0) and spread == sorted(spread, reverse=True)
        assert min(aims.floor, 1.0) <= spread[-1] and (len(set(spread)) == 5 or aims.floor >= 1.0)


def test_the_sampler_weighs_told_points_by_age() -> None:
    problem = table.problem()
    searcher = joint(problem, 0)
    table.search(searcher, table.lookup(problem), 30)
    numbers = [t.number for t in searcher.trials._told if t is not None]
    assert numbers == list(range(30))


def test_the_local_search_over_coefficients_leaves_the_best_point_but_not_its_budget() -> None:
    problem = table.problem()
    searcher = joint(problem, 0)
    table.search(searcher, table.lookup(problem), 20)
    for tight in (1.0, 0.8):
        aim = searcher.aims.at(tight, searcher.history)
        found = {searcher.arms["spdy"].point(aim, np.random.default_rng(seed)).tobytes() for seed in range(12)}
        assert len(found) > 3  # chance decides which coefficients are drawn anew
        points = [np.frombuffer(raw, dtype=np.int64) for raw in found]
        assert all(aim.projector.feasible(point) for point in points)
        assert not all(searcher.history.seen(point) for point in points)
