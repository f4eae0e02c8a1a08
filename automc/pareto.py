"""Dominance: which points no other point beats in every objective, and how much of the space they dominate together.

Arrays of points hold objectives that are all minimised; `objectives` makes them from evaluations, the score negated.
The hypervolume (Zitzler and Thiele 1999) is exact in any number of dimensions: slices along the first objective, each
of which is a point's exclusive share one dimension down, by the limit set of WFG (While, Bradstreet and Barone 2012).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from automc.errors import StudyError
from automc.evaluation import Evaluation

FloatArray = NDArray[np.float64]


def nondominated(points: FloatArray) -> NDArray[np.bool_]:
    """Marks the rows of `points` (N, D), all objectives minimised, that no other row dominates.

    A row dominates another if it is no larger anywhere and smaller somewhere; of equal rows all stay.
    """
    if points.size == 0:
        return np.zeros(len(points), dtype=np.bool_)
    keep = np.zeros(len(points), dtype=np.bool_)
    found = np.empty_like(points)
    count = 0
    for row in np.lexsort(points.T[::-1]):  # whoever dominates a row stands before it
        point, known = points[row], found[:count]
        keep[row] = not ((known <= point).all(axis=1) & (known < point).any(axis=1)).any()
        if keep[row]:
            found[count] = point
            count += 1
    return keep


def front(evaluations: Sequence[Evaluation], costs: Sequence[str]) -> list[Evaluation]:
    """The feasible evaluations no other feasible one beats in score and every named cost, cheapest first.

    Evaluations with identical objectives are given once, the earliest.
    """
    feasible = [e for e in evaluations if e.ok and e.score is not None]
    unique: dict[tuple[float, ...], Evaluation] = {}
    for evaluation, key in zip(feasible, objectives(feasible, costs).tolist(), strict=True):
        unique.setdefault(tuple(key), evaluation)
    keep = nondominated(np.array(list(unique), dtype=np.float64).reshape(len(unique), 1 + len(costs)))
    chosen = [e for e, stays in zip(unique.values(), keep, strict=True) if stays]
    return sorted(chosen, key=lambda e: tuple(e.cost(c) for c in costs))


def objectives(evaluations: Sequence[Evaluation], costs: Sequence[str]) -> FloatArray:
    """Negated score, then the named costs, of evaluations that have a score (N, 1 + costs): all to be minimised."""
    rows = [(-float(e.score or 0.0), *(e.cost(c) for c in costs)) for e in evaluations]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 1 + len(costs))


def hypervolume(points: FloatArray, reference: FloatArray) -> float:
    """Volume of what some row of `points` (N, D) dominates and `reference` (D,) bounds, all objectives minimised.

    The score enters negated: with dense accuracy 0.9 and a limit of 50 MMACs, reference (0.0, 50e6) and points
    (-accuracy, macs); divide each column by its range for numbers that compare between problems. A point that is not
    better than the reference in every objective adds nothing. StudyError for widths that differ and what is not finite.
    """
    points, reference = _checked(points, reference)
    return _volume(reference - points[(points < reference).all(axis=1)])


def hypervolume_gain(points: FloatArray, point: FloatArray, reference: FloatArray) -> float:
    """What `point` (D,) would add to the hypervolume of `points` (N, D): 0 where one of them is no worse anywhere.

    Orientation and errors as for `hypervolume`.
    """
    own = np.asarray(point, dtype=np.float64)
    points, reference = _checked(np.vstack([np.reshape(points, (-1, len(own))), own]), reference)
    edges = reference - points
    return _exclusive(edges[:-1], edges[-1]) if (edges[-1] > 0).all() else 0.0


def _checked(points: FloatArray, reference: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both as floats; `points` may be empty of any width."""
    bound = np.asarray(reference, dtype=np.float64)
    rows = np.asarray(points, dtype=np.float64)
    rows = rows.reshape(0, len(bound)) if rows.size == 0 else rows
    if rows.ndim != 2 or bound.shape != rows.shape[1:]:
        raise StudyError(
            f"A reference point must have as many objectives as the points; they have shapes {bound.shape} and "
            f"{rows.shape}: give one value an objective."
        )
    if not (np.isfinite(bound).all() and np.isfinite(rows).all()):
        raise StudyError("Objectives of a hypervolume must be numbers; one is not finite: leave failed trials out.")
    return rows, bound


def _volume(edges: FloatArray) -> float:
    """Volume of the union of boxes (N, D) that share a corner, given as the lengths of their edges."""
    if len(edges) == 0:
        return 0.0
    if edges.shape[1] == 1:
        return float(edges.max())
    edges = edges[np.lexsort(-edges.T[::-1])]  # by the first edge, longest first
    if edges.shape[1] == 2:
        heights = np.maximum.accumulate(edges[:, 1])
        return float(edges[:, 0] @ np.diff(heights, prepend=0.0))
    edges = edges[nondominated(-edges)]
    return sum(float(box[0]) * _exclusive(edges[:i, 1:], box[1:]) for i, box in enumerate(edges))


def _exclusive(edges: FloatArray, box: FloatArray) -> float:
    """Volume of one box (D,) outside the union of others (N, D)."""
    return max(float(box.prod()) - _volume(np.minimum(edges, box).clip(0.0)), 0.0)
