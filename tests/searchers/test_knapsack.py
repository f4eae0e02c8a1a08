"""The knapsack's solvers against brute force, and the coefficients they are given."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.budget import Budget
from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers.coefficients import LEAST, MOST, Regression, implied
from automc.searchers.knapsack import BUCKETS, KnapsackSearcher, knapsack_levels, plain_solution
from automc.searchers.relaxation import additive, padded, priced_levels, prices, relaxed
from automc.space import SearchSpace
from tests.searchers import table


def instance(seed: int, items: int = 4, levels: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Errors that fall and whole costs that rise with the level, from 0."""
    rng = np.random.default_rng(seed)
    errors = [np.sort(rng.uniform(size=levels))[::-1].copy() for _ in range(items)]
    costs = [np.concatenate([[0], np.cumsum(rng.integers(1, 6, levels - 1))]).astype(np.float64) for _ in range(items)]
    return errors, costs


@given(seed=st.integers(0, 10_000), capacity=st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_dynamic_program_equals_brute_force_where_costs_fall_on_buckets(seed: int, capacity: int) -> None:
    errors, costs = instance(seed)
    choice = knapsack_levels(errors, costs, capacity, buckets=max(capacity, 1))
    least = min(
        sum(float(e[i]) for e, i in zip(errors, pick, strict=True))
        for pick in itertools.product(range(4), repeat=4)
        if sum(float(c[i]) for c, i in zip(costs, pick, strict=True)) <= capacity
    )
    assert sum(float(c[i]) for c, i in zip(costs, choice, strict=True)) <= capacity
    assert sum(float(e[i]) for e, i in zip(errors, choice, strict=True)) == pytest.approx(least)


@given(seed=st.integers(0, 10_000), capacity=st.floats(0.5, 60))
@settings(max_examples=100, deadline=None)
def test_rounding_to_buckets_never_exceeds_the_capacity(seed: int, capacity: float) -> None:
    errors, costs = instance(seed, items=6)
    scaled = [c * 1.37 for c in costs]
    choice = knapsack_levels(errors, scaled, capacity, buckets=37)
    assert sum(float(c[i]) for c, i in zip(scaled, choice, strict=True)) <= capacity


@pytest.mark.parametrize("seed", range(5))
def test_one_limit_is_solved_to_the_optimum(seed: int) -> None:
    """Against all points of a small space that leave the buckets' rounding free."""
    whole = table.problem(depth=8).space
    space = SearchSpace(whole.facts, tuple(a for a in whole.axes if "layer3" not in a.place))  # the rest is additive
    problem = Problem(space, Projector(space, Budget.parse("macs<=70%")), table.DENSE)
    rng = np.random.default_rng(seed)
    errors = [w * e for w, e in zip(rng.uniform(0.1, 3, len(space.axes)), table.calibrated(space), strict=True)]
    found = plain_solution(problem, errors)

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
    from automc.searchers.baselines import uniform_point

    problem = table.problem("channels-bits", budget)
    uniform = uniform_point(problem, problem.projector)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        errors = [
            w * e for w, e in zip(rng.uniform(0.1, 3, len(uniform)), table.calibrated(problem.space), strict=True)
        ]
        rows = additive(problem, uniform)
        point = relaxed(problem, problem.projector, rows, padded(rows, errors))
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


def test_regression_finds_the_layers_that_matter() -> None:
    problem = table.problem()
    space = problem.space
    rng = np.random.default_rng(0)
    errors = list(table.calibrated(space))
    truth = np.exp(rng.uniform(-1.5, 1.5, len(errors)))
    points = [space.sample(rng) for _ in range(150)]
    scores = [-0.01 * sum(float(w * e[i]) for w, e, i in zip(truth, errors, p, strict=True)) for p in points]
    draws = [Regression.of(problem.space, errors, points, scores).draw(np.random.default_rng(s))[0] for s in range(20)]
    found = np.mean(draws, axis=0)[space.ordered]
    assert np.corrcoef(np.log(found), np.log(truth[space.ordered]))[0, 1] > 0.9


def test_regression_finds_the_criterion_that_helps_and_survives_equal_scores() -> None:
    problem = table.problem()
    space = problem.space
    rng = np.random.default_rng(0)
    points = [space.sample(rng) for _ in range(200)]
    free = np.flatnonzero(~space.ordered)
    scores = [float(np.sum(p[free] == 2)) for p in points]
    _, chosen = Regression.of(problem.space, list(table.calibrated(space)), points, scores).draw(rng)
    assert (chosen[free] == 2).mean() > 0.8
    coefficients, _ = Regression.of(problem.space, list(table.calibrated(space)), points, [0.5] * 200).draw(rng)
    assert np.isfinite(coefficients).all()


def test_draws_are_those_of_the_posterior_shrunk_towards_its_mean() -> None:
    """Against the closed form of Bayesian linear regression; a share s ~ U(0, 1) scales a draw's distance."""
    problem = table.problem("channels")
    rng = np.random.default_rng(0)
    errors = list(table.calibrated(problem.space))
    points = [problem.space.sample(rng) for _ in range(30)]
    scores = [-0.01 * sum(float(e[i]) for e, i in zip(errors, p, strict=True)) + 0.003 * rng.normal() for p in points]
    model = Regression.of(problem.space, errors, points, scores)
    before, noise, _ = model._fit
    covariance = np.linalg.inv(model.features.T @ model.features / noise**2 + np.linalg.inv(before))
    mean = covariance @ (model.features.T @ model.scores / noise**2 + np.linalg.solve(before, model.prior))
    drawn = np.array([model.weights(rng) for _ in range(4000)])
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((drawn.mean(axis=0) - mean) / deviation).max() < 0.05
    assert drawn.std(axis=0) == pytest.approx(deviation / 3**0.5, rel=0.06)


def test_searcher_learns_what_calibration_does_not_know() -> None:
    problem = table.problem()
    evaluate = table.lookup(problem, noise=0.001)
    plain = evaluate(problem.space.decode(plain_solution(problem, list(table.calibrated(problem.space)))))
    told = table.search(KnapsackSearcher(problem, 0), evaluate, 40)
    assert table.best(told[20:]) > float(plain.score or 0) + 0.002


def test_searcher_works_without_layer_errors() -> None:
    from dataclasses import replace

    problem = replace(table.problem(), errors=None)
    assert len(table.search(KnapsackSearcher(problem, 0), table.lookup(problem), 12)) == 12


def test_few_scores_teach_about_neighbouring_layers_too() -> None:
    """Deep layers matter ten times more; eight scores suffice to see which half of the network that is."""
    problem = table.problem("channels", depth=32)
    space = problem.space
    errors, deep = list(table.calibrated(space)), space.layers > np.median(space.layers)
    rng = np.random.default_rng(0)
    points = [space.sample(rng) for _ in range(8)]
    scores = [
        -0.01 * sum(float((10 if d else 1) * e[i]) for d, e, i in zip(deep, errors, p, strict=True)) for p in points
    ]
    model = Regression.of(problem.space, errors, points, scores)
    found = np.mean([model.draw(np.random.default_rng(s))[0] for s in range(30)], axis=0)
    assert found[deep].min() > found[~deep].max() * 0.8
    assert found[deep].mean() > 2 * found[~deep].mean()
