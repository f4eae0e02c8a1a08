"""Thompson sampling over the layers' coefficients: what the told scores say, and what is proposed from it."""

from dataclasses import replace

import numpy as np
import pytest

from automc.searchers.allocation import Allocation
from automc.searchers.coefficients import Regression
from automc.searchers.knapsack import KnapsackSearcher
from tests.searchers import table


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
    plain = evaluate(problem.space.decode(Allocation(problem).plain()))
    told = table.search(KnapsackSearcher(problem, 0), evaluate, 40)
    assert table.best(told[20:]) > float(plain.score or 0) + 0.002


def test_searcher_works_without_layer_errors() -> None:
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
