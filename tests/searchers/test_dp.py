"""SPDY's search: which coefficients are tried when, and that told scores alone say so."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from automc.evaluation import Evaluation
from automc.searchers.allocation import Allocation
from automc.searchers.dp import DPSearcher
from automc.space import FloatArray, IntArray
from tests.searchers import table


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[FloatArray, IntArray]]:
    """The coefficients of every solution asked for, and the point it starts from."""
    found: list[tuple[FloatArray, IntArray]] = []
    solve = Allocation.solve

    def noted(self: Allocation, coefficients: FloatArray, around: IntArray, *rest: Any, **named: Any) -> IntArray:
        found.append((coefficients.copy(), around.copy()))
        return solve(self, coefficients, around, *rest, **named)

    monkeypatch.setattr(Allocation, "solve", noted)
    return found


def scored(searcher: DPSearcher, score: float | None, proposer: str = "dp") -> Evaluation:
    """What is asked next, with a score of one's choice."""
    policy = searcher.ask()
    costs = tuple(searcher.history.problem.projector.costing.of(searcher.history.problem.space.encode(policy)).items())
    return Evaluation(policy, "ok" if score is not None else "failed", score, costs, proposer=proposer)


def test_the_plain_solution_comes_first_until_something_is_scored() -> None:
    problem = table.problem("channels")
    searcher = DPSearcher(problem, 0)
    found = scored(searcher, None)
    assert np.array_equal(problem.space.encode(found.policy), Allocation(problem).plain())
    searcher.tell(found)
    assert searcher.ask() != found.policy  # a neighbour of what failed


def test_random_vectors_first_then_a_tenth_of_the_best_ones_coefficients(
    tried: list[tuple[FloatArray, IntArray]],
) -> None:
    problem = table.problem("channels", depth=32)
    searcher = DPSearcher(problem, 0, draws=4, tries=3)
    for number in range(12):
        before = len(tried)
        searcher.tell(scored(searcher, 0.9 - 0.01 * number))  # the first stays the best
        coefficients, around = tried[before]
        if number == 0:
            assert (coefficients == 1).all()
        else:
            assert np.array_equal(around, searcher.history.points[0])
            changed = (coefficients != Allocation(problem).implied(around)).sum()
            assert changed == (len(around) if number <= 4 else 1 if 8 <= number <= 10 else 2)
        assert number not in range(1, 5) or ((coefficients > 0) & (coefficients < 1)).all()


def test_fewer_coefficients_after_each_round_of_failures_and_all_over_again_after_the_last() -> None:
    problem = table.problem("channels", depth=32)
    searcher = DPSearcher(problem, 0, draws=1, tries=2)
    states = []
    for score in (0.5, 0.4, 0.5, 0.4, 0.4, 0.4, 0.4, 0.6, 0.4, None):
        searcher.tell(scored(searcher, score))
        states.append((searcher.state_dict()["changes"], searcher.state_dict()["failed"]))
    assert states == [(2, 0), (2, 0), (2, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 0), (2, 1), (1, 0)]


def test_what_others_found_is_where_it_goes_on(tried: list[tuple[FloatArray, IntArray]]) -> None:
    problem = table.problem("criteria")
    searcher = DPSearcher(problem, 0, draws=0)
    searcher.tell(scored(searcher, 0.5))
    point = problem.projector.project(problem.space.sample(np.random.default_rng(0)), fill=True)
    found = table.lookup(problem)(problem.space.decode(point))
    searcher.tell(replace(found, score=0.8, proposer="somebody"))
    tried.clear()
    asked = problem.space.encode(searcher.ask())
    implied = Allocation(problem).implied(point)
    for coefficients, around in tried:
        assert np.array_equal(around[problem.space.ordered], point[problem.space.ordered])
        assert (coefficients != implied).sum() + (around != point).sum() <= 1  # a tenth of twelve
    assert (asked != point).any()


@pytest.mark.parametrize("space", ["criteria", "joint"])
def test_a_resume_at_any_time_goes_on_alike(space: str) -> None:
    problem = table.problem(space, "macs<=60%,size<=40%")
    evaluate, whole = table.lookup(problem, noise=0.002), DPSearcher(problem, 0, draws=3, tries=2)
    told: list[Evaluation] = []
    for _ in range(14):
        again = DPSearcher(problem, 0, draws=3, tries=2)
        for evaluation in told:
            again.tell(evaluation)
        asked = whole.ask()
        assert again.ask() == asked
        told.append(replace(evaluate(asked), proposer="dp"))
        whole.tell(told[-1])


def test_search_improves_on_the_plain_solution() -> None:
    problem = table.problem()
    evaluate = table.lookup(problem, noise=0.001)
    told = table.search(DPSearcher(problem, 0), evaluate, 60)
    assert table.best(told) > float(told[0].score or 0) + 0.003
