"""What every searcher does with input it did not ask for: bad scores, strangers, repeats, spaces without a choice."""

from dataclasses import replace

import numpy as np
import pytest

from automc.errors import PolicyError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.registry import SEARCHERS
from automc.searcher import Problem
from automc.space import Axis, SearchSpace
from tests.searchers import table

ALL = list(SEARCHERS)
OF_SHARES = [name for name in ALL if name != "haq"]
"""Searchers that have something to decide where only channels are open."""


def small(*axes: Axis, budget: str = "macs<=99%") -> Problem:
    return table.of_space(SearchSpace(table.facts(8), axes), budget)


@pytest.mark.parametrize("score", [float("nan"), -float("inf")])
@pytest.mark.parametrize("name", ALL)
def test_a_score_that_is_not_finite_teaches_nothing_and_stops_nothing(name: str, score: float) -> None:
    problem = table.problem_for(name, depth=8)
    searcher, evaluate = SEARCHERS.load(name)(problem, 0), table.lookup(problem)
    for number in range(14):
        found = evaluate(searcher.ask())
        searcher.tell(replace(found, score=score) if number % 3 == 0 else found)
    assert problem.projector.feasible(problem.space.encode(searcher.ask()))
    assert sum(np.isnan(searcher.history.scores)) == 5


@pytest.mark.parametrize("name", ALL)
def test_an_evaluation_of_another_model_is_refused(name: str) -> None:
    problem = table.problem_for(name, depth=8)
    searcher = SEARCHERS.load(name)(problem, 0)
    with pytest.raises(PolicyError, match="must be applied to the model it was made for"):
        searcher.tell(Evaluation(Policy("another"), "ok", 0.5, (("macs", 1.0),)))


@pytest.mark.parametrize("name", ALL)
def test_tells_without_asks_and_repeats_are_taken(name: str) -> None:
    """One policy told twenty times, with two scores, by somebody else."""
    problem = table.problem_for(name, depth=8)
    searcher = SEARCHERS.load(name)(problem, 0)
    rng = np.random.default_rng(0)
    found = table.lookup(problem)(problem.space.decode(problem.projector.project(problem.space.sample(rng))))
    for number in range(20):
        searcher.tell(replace(found, score=0.5 + 0.1 * (number % 2), proposer="somebody"))
    asks = [searcher.ask() for _ in range(3)]
    assert len({*asks, found.policy}) == 4
    assert all(problem.projector.feasible(problem.space.encode(p)) for p in asks)


@pytest.mark.parametrize("name", ALL)
def test_what_another_searcher_found_is_taken(name: str) -> None:
    problem = table.problem("joint", "size<=50%", depth=8)
    others = table.search(SEARCHERS.load("random")(problem, 1), table.lookup(problem), 30)
    searcher = SEARCHERS.load(name)(problem, 0)
    for evaluation in others:
        searcher.tell(evaluation)
    told = table.search(searcher, table.lookup(problem), 3)
    assert not {e.policy for e in told} & {e.policy for e in others}


@pytest.mark.parametrize("name", OF_SHARES)
def test_one_axis_is_searched(name: str) -> None:
    problem = small(Axis(table.facts(8).groups[0].name, "group", "keep", (0.25, 0.375, 0.5, 0.625, 0.75, 1.0)))
    told = table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 14)
    assert len({e.policy for e in told}) >= 3


@pytest.mark.parametrize("name", OF_SHARES)
def test_axes_without_a_choice_are_no_obstacle(name: str) -> None:
    problem = small(*(Axis(g.name, "group", "keep", (1.0,)) for g in table.facts(8).groups), budget="macs<=100%")
    told = table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 13)
    assert {e.policy for e in told} == {problem.space.decode(problem.space.largest)}


@pytest.mark.parametrize("name", ALL)
def test_words_without_a_choice_are_no_obstacle(name: str) -> None:
    problem = small(*(Axis(g.name, "group", "criterion", ("l1",)) for g in table.facts(8).groups), budget="macs<=100%")
    try:
        searcher = SEARCHERS.load(name)(problem, 0)
    except PolicyError as error:  # who decides shares or bits has nothing to do here
        assert not table.serves(name, problem.space) and "criterion" in str(error)
    else:
        assert len(table.search(searcher, table.lookup(problem), 12)) == 12


@pytest.mark.parametrize("name", OF_SHARES)
def test_equal_scores_and_a_budget_met_by_one_point_only(name: str) -> None:
    """The limit is the smallest model's cost: there is nothing to choose but criteria."""
    whole = table.problem("criteria", depth=8)
    least = whole.projector.costing.of(whole.space.smallest)["macs"]
    problem = table.of_space(whole.space, f"macs<={least:.0f}")
    told = table.search(SEARCHERS.load(name)(problem, 0), lambda p: replace(table.lookup(problem)(p), score=0.5), 13)
    assert all(not problem.space.encode(e.policy)[problem.space.ordered].any() for e in told)


@pytest.mark.parametrize("name", ALL)
def test_a_budget_that_binds_nothing_is_no_obstacle(name: str) -> None:
    problem = table.problem_for(name, "macs<=100%", depth=8)
    told = table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 12)
    assert len({e.policy for e in told}) == 12
