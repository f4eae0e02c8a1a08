"""Dominance: which points no other point beats in every objective."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from automc.evaluation import Evaluation


def nondominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Marks the rows of `points` (N, D), all objectives minimised, that no other row dominates.

    A row dominates another if it is no larger anywhere and smaller somewhere; of equal rows all stay.
    """
    if points.size == 0:
        return np.zeros(len(points), dtype=np.bool_)
    no_larger = (points[:, None, :] <= points[None, :, :]).all(axis=2)
    smaller = (points[:, None, :] < points[None, :, :]).any(axis=2)
    dominated: NDArray[np.bool_] = np.asarray((no_larger & smaller).any(axis=0))
    return ~dominated


def front(evaluations: Sequence[Evaluation], costs: Sequence[str]) -> list[Evaluation]:
    """The feasible evaluations no other feasible one beats in score and every named cost, cheapest first.

    Evaluations with identical objectives are given once, the earliest.
    """
    feasible = [e for e in evaluations if e.ok and e.score is not None]
    unique: dict[tuple[float, ...], Evaluation] = {}
    for evaluation in feasible:
        key = (-float(evaluation.score or 0.0), *(evaluation.cost(c) for c in costs))
        unique.setdefault(key, evaluation)
    keys = list(unique)
    keep = nondominated(np.array(keys, dtype=np.float64).reshape(len(keys), 1 + len(costs)))
    chosen = [unique[key] for key, stays in zip(keys, keep, strict=True) if stays]
    return sorted(chosen, key=lambda e: tuple(e.cost(c) for c in costs))
