"""The additive model against posteriors worked out directly, and on scores it can and cannot explain."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from automc.scoring.surrogate import AdditiveModel
from automc.space import IntArray, SearchSpace
from tests.searchers import table


@pytest.fixture
def space() -> SearchSpace:
    return table.problem("channels").space


def told(space: SearchSpace, count: int, seed: int = 0, noise: float = 0.002) -> tuple[list[IntArray], list[float]]:
    """Points and scores that fall with each axis' own weight."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(9).uniform(0.2, 3.0, len(space.axes))
    points = [space.sample(rng) for _ in range(count)]
    errors = levels(space)
    return points, [
        0.9 - 0.02 * sum(w * e[v] for w, e, v in zip(weights, errors, p, strict=True)) + noise * rng.normal()
        for p in points
    ]


def levels(space: SearchSpace) -> list[np.ndarray]:
    return [np.linspace(1.0, 0.0, n) ** 2 for n in space.sizes]


def test_predictions_are_the_posterior(space: SearchSpace) -> None:
    points, scores = told(space, 25)
    model = AdditiveModel.of(space, levels(space), points, scores)
    covariance, noise, _ = model._fit
    precision = model.features.T @ model.features / noise**2 + np.linalg.inv(covariance)
    posterior = np.linalg.inv(precision)
    weights = posterior @ (model.features.T @ model.scores / noise**2 + np.linalg.inv(covariance) @ model.prior)
    mean, deviation = model.predict(points)
    assert np.allclose(mean, np.mean(scores) + model.features @ weights, atol=1e-8)
    spread = np.einsum("nd,de,ne->n", model.features, posterior, model.features)
    assert np.allclose(deviation**2, spread + noise**2 * (1 + 1 / 25), rtol=1e-5)


def test_left_out_scores_are_predicted_by_the_others(space: SearchSpace) -> None:
    points, scores = told(space, 30)
    model = AdditiveModel.of(space, levels(space), points, scores)
    covariance, noise, _ = model._fit
    mean, deviation = model.left_out()
    for i in range(30):
        others = np.arange(30) != i
        shared = model.features[others] @ covariance @ model.features[i]
        system = model.features[others] @ covariance @ model.features[others].T + noise**2 * np.eye(29)
        residual = (model.scores - model.features @ model.prior)[others]
        expected = model.features[i] @ model.prior + shared @ np.linalg.solve(system, residual)
        left = model.features[i] @ covariance @ model.features[i] - shared @ np.linalg.solve(system, shared)
        assert mean[i] == pytest.approx(np.mean(scores) + expected, abs=1e-9)
        assert deviation[i] ** 2 == pytest.approx(left + noise**2, rel=1e-6)


def test_unseen_scores_are_ordered_and_as_uncertain_as_it_says(space: SearchSpace) -> None:
    points, scores = told(space, 80)
    model = AdditiveModel.of(space, levels(space), points, scores)
    new, truth = told(space, 200, seed=1)
    mean, deviation = model.predict(new)
    assert kendalltau(mean, truth).statistic > 0.8
    assert 0.3 < float(np.std((np.array(truth) - mean) / deviation)) < 1.6


def test_noise_is_not_explained(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    points = [space.sample(rng) for _ in range(60)]
    model = AdditiveModel.of(space, levels(space), points, rng.normal(size=60).tolist())
    _, deviation = model.predict(points)
    assert float(deviation.mean()) > 0.6


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5, 0.5]])
def test_one_score_or_equal_ones_are_enough(space: SearchSpace, scores: list[float]) -> None:
    points, _ = told(space, len(scores))
    mean, deviation = AdditiveModel.of(space, levels(space), points, scores).predict(points)
    assert np.allclose(mean, 0.5, atol=0.2) and np.isfinite(deviation).all()


def test_points_of_equal_error_predict_no_wonders(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    points = [np.where(space.ordered, space.sizes // 2, space.sample(rng)) for _ in range(20)]
    model = AdditiveModel.of(space, levels(space), points, rng.random(20).tolist())
    mean, _ = model.predict([space.sample(rng) for _ in range(50)])
    assert np.abs(mean).max() < 20.0
