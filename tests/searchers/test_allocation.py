"""The knapsack's solvers against brute force, and the coefficients that a point implies."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.budget import Budget
from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers import allocation
from automc.searchers.allocation import BUCKETS, Allocation, knapsack_levels, total
from automc.searchers.baselines import uniform_point
from automc.searchers.coefficients import LEAST, MOST, errors_of, implied
from automc.searchers.relaxation import additive, padded, priced_levels, prices, relaxed
from automc.space import IntArray, SearchSpace
from tests.searchers import table

Items = list[tuple[list[int], list[int]]]


@st.composite
def items(draw: st.DrawFn) -> Items:
    """Up to four items of up to four levels: whole errors in any order, whole costs from 0 that never fall; ties, free
    levels and levels beyond any capacity among them."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        levels = draw(st.integers(1, 4))
        steps = draw(st.lists(st.sampled_from((0, 0, 1, 2, 5, 100)), min_size=levels - 1, max_size=levels - 1))
        errors = draw(st.lists(st.integers(0, 6), min_size=levels, max_size=levels))
        found.append((errors, [0, *itertools.accumulate(steps)]))
    return found


def least(given: Items, capacity: float) -> int:
    """The least error sum of all choices within the capacity."""
    picks = itertools.product(*(range(len(errors)) for errors, _ in given))
    return min(
        sum(errors[i] for (errors, _), i in zip(given, pick, strict=True))
        for pick in picks
        if sum(costs[i] for (_, costs), i in zip(given, pick, strict=True)) <= capacity
    )


def solved(given: Items, capacity: float, buckets: int) -> tuple[int, int]:
    """Error sum and cost sum of the dynamic program's choice."""
    errors, costs = ([np.array(column, dtype=np.float64) for column in part] for part in zip(*given, strict=True))
    choice = knapsack_levels(errors, costs, capacity, buckets)
    return sum(e[i] for (e, _), i in zip(given, choice, strict=True)), sum(
        c[i] for (_, c), i in zip(given, choice, strict=True)
    )


@given(given=items(), capacity=st.integers(0, 30))
@settings(max_examples=300)
def test_dynamic_program_equals_brute_force_where_costs_fall_on_buckets(given: Items, capacity: int) -> None:
    error, cost = solved(given, capacity, buckets=max(capacity, 1))
    assert error == least(given, capacity)
    assert cost <= capacity


@given(given=items(), capacity=st.floats(0.1, 30), buckets=st.integers(1, 60))
@settings(max_examples=200)
def test_rounding_up_to_buckets_never_exceeds_the_capacity(given: Items, capacity: float, buckets: int) -> None:
    """And loses no more than a capacity smaller by a bucket an item would."""
    error, cost = solved(given, capacity, buckets)
    assert cost <= capacity * (1 + 1e-9)
    assert error <= least(given, max(capacity * (1 - len(given) / buckets), 0.0))


def test_what_costs_nothing_is_taken_without_any_capacity() -> None:
    errors, costs = [np.array([3.0, 1.0, 0.0])] * 2, [np.array([0.0, 0.0, 1.0])] * 2
    for capacity in (0.0, -1.0):
        assert knapsack_levels(errors, costs, capacity).tolist() == [1, 1]


def test_of_equal_levels_the_cheapest_is_taken() -> None:
    assert knapsack_levels([np.array([2.0, 1.0, 1.0])], [np.array([0.0, 1.0, 2.0])], 10.0).tolist() == [1]
    assert knapsack_levels([np.zeros(5)] * 3, [np.arange(5.0)] * 3, 10.0).tolist() == [0, 0, 0]


def test_no_items_need_no_choice() -> None:
    assert knapsack_levels([], [], 1.0).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_one_limit_is_solved_to_the_optimum(seed: int) -> None:
    """Against all points of a small space that leave the buckets' rounding free."""
    whole = table.problem(depth=8).space
    space = SearchSpace(whole.facts, tuple(a for a in whole.axes if "layer3" not in a.place))  # the rest is additive
    problem = Problem(space, Projector(space, Budget.parse("macs<=70%")), table.DENSE)
    rng = np.random.default_rng(seed)
    errors = [w * e for w, e in zip(rng.uniform(0.1, 3, len(space.axes)), table.calibrated(space), strict=True)]
    found = Allocation(replace(problem, errors=lambda: tuple(errors))).plain()

    ordered = np.flatnonzero(space.ordered)
    grids = np.meshgrid(*[np.arange(space.sizes[a]) for a in ordered], indexing="ij")
    points = np.zeros((grids[0].size, len(space.axes)), dtype=np.int64)
    points[:, ordered] = np.stack([g.reshape(-1) for g in grids], axis=1)
    rows = additive(problem, space.largest)
    rounding = len(ordered) / BUCKETS * float(rows.spare(problem.projector)[0])
    cost = problem.projector.costing.batch(points, ("macs",))[:, 0]
    points = points[cost <= problem.projector.limits["macs"] - rounding]
    total = sum(errors[a][points[:, a]] for a in ordered)
    assert problem.projector.feasible(found)
    assert sum(errors[a][found[a]] for a in ordered) <= total.min() + 1e-9


@pytest.mark.parametrize("budget", ["macs<=50%", "macs<=60%,size<=30%", "size<=20%,params<=80%,macs<=70%"])
def test_relaxation_meets_every_limit_and_beats_the_uniform_policy(budget: str) -> None:
    problem = table.problem("channels-bits", budget)
    uniform = uniform_point(problem, problem.projector)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        errors = [
            w * e for w, e in zip(rng.uniform(0.1, 3, len(uniform)), table.calibrated(problem.space), strict=True)
        ]
        rows = additive(problem, uniform)
        point = relaxed(problem.projector, rows, padded(rows, errors))
        assert problem.projector.feasible(point)
        assert sum(e[i] for e, i in zip(errors, point, strict=True)) < sum(
            e[i] for e, i in zip(errors, uniform, strict=True)
        )


def test_implied_coefficients_make_a_solution_a_solution_again() -> None:
    problem = table.problem()
    rng = np.random.default_rng(0)
    weights = np.exp(rng.normal(0, 0.7, len(problem.space.axes)))
    weighted = [w * e for w, e in zip(weights, table.calibrated(problem.space), strict=True)]
    start = problem.space.largest
    rows = additive(problem, start)
    price = prices(rows, padded(rows, weighted), rows.spare(problem.projector))
    levels = priced_levels(rows, padded(rows, weighted), price)
    plain = padded(rows, list(table.calibrated(problem.space)))
    coefficients = implied(rows, plain, price, levels)
    assert np.array_equal(priced_levels(rows, coefficients[:, None] * plain, price), levels)
    assert ((coefficients >= LEAST) & (coefficients <= MOST)).all()


@pytest.mark.parametrize(("space", "budget"), [("criteria", "macs<=50%"), ("bits", "size<=20%"), ("joint", "bops<=5%")])
def test_a_solution_is_about_the_solution_under_what_it_implies(space: str, budget: str) -> None:
    problem = table.problem(space, budget)
    weighing = Allocation(problem)
    rng = np.random.default_rng(0)
    point = weighing.plain()
    for _ in range(5):
        coefficients = np.exp(rng.normal(0, 0.7, len(point)))
        point = weighing.solve(coefficients, point)
        again = weighing.solve(weighing.implied(point), point)
        assert (again == point).mean() >= 0.85
        assert total([c * e for c, e in zip(coefficients, weighing.errors, strict=True)], again) < 1.02 * total(
            [c * e for c, e in zip(coefficients, weighing.errors, strict=True)], point
        )


def test_implied_coefficients_stand_amid_those_that_leave_the_levels_alone() -> None:
    """A price a little higher or lower changes next to nothing; at the edges of their ranges most would give way."""
    problem = table.problem("channels", depth=32)
    weighing = Allocation(problem)
    point = weighing.solve(np.exp(np.random.default_rng(0).normal(0, 0.7, len(problem.space.axes))), weighing.plain())
    rows = additive(problem, point)
    errors = padded(rows, weighing.errors)
    price = prices(rows, errors, rows.spare(problem.projector))
    coefficients = implied(rows, errors, price, point)
    for factor in (0.97, 1.03):
        assert (priced_levels(rows, coefficients[:, None] * errors, factor * price) == point).mean() >= 0.9


def joint_costs(seed: int) -> tuple[Allocation, np.ndarray, IntArray]:
    """Channels times bits: costs that are no sum."""
    problem = table.problem("channels-bits", "bops<=5%", depth=20)
    rng = np.random.default_rng(seed)
    weighing = Allocation(problem)
    return weighing, rng.uniform(0.1, 1.0, len(problem.space.axes)), uniform_point(problem, problem.projector)


def test_costs_made_additive_around_the_solution_leave_less_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(seed: int) -> float:
        weighing, coefficients, start = joint_costs(seed)
        point = weighing.solve(coefficients, start)
        assert weighing.problem.projector.feasible(point)
        return total([c * e for c, e in zip(coefficients, weighing.errors, strict=True)], point)

    often = [error(seed) for seed in range(5)]
    monkeypatch.setattr(allocation, "ROUNDS", 1)
    assert np.mean(often) < 0.98 * np.mean([error(seed) for seed in range(5)])


def test_a_tighter_projection_and_the_words_of_the_start_are_kept() -> None:
    problem = table.problem("criteria")
    weighing, free = Allocation(problem), ~problem.space.ordered
    start = np.where(free, 2, weighing.plain())
    tight = problem.projector.tightened(0.6)
    point = weighing.solve(np.ones(len(start)), start, tight)
    assert tight.feasible(point)
    assert (point[free] == 2).all()


def test_errors_never_rise_with_the_level_and_are_finite() -> None:
    problem = table.problem("criteria")
    broken = [e.copy() for e in table.calibrated(problem.space)]
    broken[0][:4] = (np.nan, 0.2, 0.5, np.inf)
    errors = errors_of(replace(problem, errors=lambda: tuple(broken)))
    assert errors[0][:4].tolist() == [1.0, 0.2, 0.2, 0.2]
    for error, ordered in zip(errors, problem.space.ordered, strict=True):
        assert (np.diff(error) <= 0).all() and np.isfinite(error).all()
        assert ordered or not error.any()
    assumed = errors_of(replace(problem, errors=None))
    assert assumed[0] == pytest.approx(np.linspace(1, 0, len(assumed[0])) ** 2)
