"""The hypervolume against brute force on a grid, Optuna's own, and Monte Carlo; its gain against the difference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from automc.errors import StudyError
from automc.evaluation import Evaluation
from automc.pareto import hypervolume, hypervolume_gain, nondominated, objectives
from automc.policy import Policy


def counted(points: np.ndarray, reference: np.ndarray) -> int:
    """Unit cells below the reference that some point dominates; whole coordinates from 0."""
    cells = np.stack(np.meshgrid(*[np.arange(r) for r in reference], indexing="ij"), axis=-1).reshape(
        -1, len(reference)
    )
    return int((points[:, None, :] <= cells[None]).all(axis=2).any(axis=0).sum())


@given(seed=st.integers(0, 10_000), width=st.integers(1, 4), count=st.integers(0, 7))
@settings(max_examples=150)
def test_hypervolume_counts_the_dominated_cells_of_a_grid(seed: int, width: int, count: int) -> None:
    """Ties, duplicates, dominated points and points beyond the reference among them."""
    rng = np.random.default_rng(seed)
    points, reference = rng.integers(0, 7, (count, width)).astype(float), rng.integers(1, 6, width).astype(float)
    assert hypervolume(points, reference) == pytest.approx(counted(points, reference))


@given(seed=st.integers(0, 10_000), width=st.integers(1, 4), count=st.integers(0, 7))
@settings(max_examples=150)
def test_gain_is_the_difference_a_point_makes(seed: int, width: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    points, reference = rng.integers(0, 7, (count, width)).astype(float), rng.integers(1, 6, width).astype(float)
    point = rng.integers(0, 7, width).astype(float)
    both = hypervolume(np.vstack([points, point]), reference)
    assert hypervolume_gain(points, point, reference) == pytest.approx(both - hypervolume(points, reference))


@pytest.mark.parametrize(("width", "count"), [(2, 200), (3, 60), (4, 25), (5, 10)])
def test_hypervolume_equals_optunas(width: int, count: int) -> None:
    rng = np.random.default_rng(width)
    for _ in range(5):
        points = -np.abs(rng.normal(size=(count, width))) * np.geomspace(1, 1e6, width)
        reference = np.zeros(width)
        assert hypervolume(points, reference) == pytest.approx(compute_hypervolume(points, reference), rel=1e-9)


def test_hypervolume_equals_the_dominated_share_of_random_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(12, 3))
    drawn = rng.uniform(size=(200_000, 3))
    share = (points[:, None] <= drawn[None]).all(axis=2).any(axis=0).mean()
    assert hypervolume(points, np.ones(3)) == pytest.approx(share, abs=0.005)


def test_a_closed_form_with_the_score_negated() -> None:
    policy = Policy("f")
    told = [Evaluation(policy, "ok", score, (("macs", macs),)) for score, macs in ((0.9, 40.0), (0.5, 10.0))]
    points = objectives(told, ("macs",))
    assert points.tolist() == [[-0.9, 40.0], [-0.5, 10.0]]
    assert hypervolume(points, np.array([0.0, 50.0])) == pytest.approx(0.9 * 10 + 0.5 * 30)
    assert hypervolume_gain(points, np.array([-0.7, 20.0]), np.array([0.0, 50.0])) == pytest.approx(0.2 * 20)
    assert hypervolume_gain(points, np.array([-0.4, 20.0]), np.array([0.0, 50.0])) == 0.0


def test_nothing_and_points_at_the_reference_have_no_volume() -> None:
    reference = np.array([1.0, 1.0])
    assert hypervolume(np.zeros((0, 2)), reference) == hypervolume(np.array([]), reference) == 0.0
    assert hypervolume(np.array([[1.0, 0.0], [0.0, 2.0]]), reference) == 0.0
    assert hypervolume_gain(np.array([]), np.array([1.0, 0.5]), reference) == 0.0
    assert hypervolume_gain(np.array([]), np.array([0.5, 0.5]), reference) == 0.25


@pytest.mark.parametrize(
    ("points", "reference", "match"),
    [
        ([[0.0, float("nan")]], [1.0, 1.0], "must be numbers"),
        ([[0.0, 0.0]], [1.0, float("inf")], "must be numbers"),
        ([[0.0, 0.0]], [1.0, 1.0, 1.0], "as many objectives"),
        ([0.0, 0.0], [1.0, 1.0], "as many objectives"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(points: list[object], reference: list[float], match: str) -> None:
    with pytest.raises(StudyError, match=match):
        hypervolume(np.array(points), np.array(reference))


def test_dominated_points_change_nothing() -> None:
    points = np.random.default_rng(1).uniform(size=(40, 3))
    keep = nondominated(points)
    assert 0 < keep.sum() < 40
    assert hypervolume(points[keep], np.ones(3)) == pytest.approx(hypervolume(points, np.ones(3)))


@given(seed=st.integers(0, 10**6), width=st.integers(1, 4), count=st.integers(0, 40))
def test_what_is_dominated_is_what_another_row_dominates(seed: int, width: int, count: int) -> None:
    points = np.random.default_rng(seed).integers(0, 5, (count, width)).astype(float)
    brute = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert nondominated(points).tolist() == brute
