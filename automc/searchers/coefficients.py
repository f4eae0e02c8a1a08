"""What told scores say about the layers: how much score each unit of a layer's error costs.

SPDY (Frantar and Alistarh 2022, section 3.2) searches these coefficients at random. Here two sources propose them.
* `implied`: coefficients under which a point, whoever proposed it, is the knapsack's solution: a start for local
  changes that needs no memory of who proposed what; `redrawn` makes these.
* `Regression.draw`: a draw from the posterior of the additive model (`scoring.surrogate`): Thompson sampling with the
  knapsack as its oracle (Agrawal and Goyal 2013; Wen et al. 2015 for combinatorial arms). Noise in the scores widens
  the posterior instead of misleading a local search.
"""

import numpy as np

from automc.scoring.surrogate import AdditiveModel
from automc.searcher import Problem
from automc.searchers.relaxation import Additive
from automc.space import FloatArray, IntArray, SearchSpace

LEAST, MOST = 0.02, 50.0
"""Bounds on a coefficient, relative to the common one."""
SHARE = 0.1
"""Of the coefficients that a local search draws anew at most."""
SPREAD = 1.0
"""Deviation of the logarithm of a coefficient drawn anew."""


def errors_of(problem: Problem) -> list[FloatArray]:
    """A problem's errors per axis and level, never rising with the level; zeros for axes without an order.

    An error that is no finite number counts as the loss of the whole output. Where a problem has no errors, the square
    of the lost share, SPDY's assumption.
    """
    space = problem.space
    raw = tuple(np.linspace(1.0, 0.0, n) ** 2 for n in space.sizes) if problem.errors is None else problem.errors()
    finite = [np.nan_to_num(e, nan=1.0, posinf=1.0) for e in raw]
    return [np.minimum.accumulate(e) if o else np.zeros(len(e)) for e, o in zip(finite, space.ordered, strict=True)]


def implied(table: Additive, errors: FloatArray, price: FloatArray, levels: IntArray) -> FloatArray:
    """Per ordered axis a coefficient (O,) for which `levels` (O,) minimise error plus priced cost.

    It lies in the middle of those that do, on a logarithmic scale, so that a small change of price or coefficient
    leaves the level alone; an end that is open lies at 1, or at twice or half the other end.
    """
    rows, index = np.arange(len(levels)), np.arange(table.known.shape[1])
    cost = np.tensordot(price, np.where(table.known, table.costs, 0.0), axes=1)  # (O, V)
    saved = errors[rows, levels][:, None] - np.where(table.known, errors, np.nan)
    paid = cost - cost[rows, levels][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = paid / saved  # positive where a higher level costs more and errs less
    above = (index > levels[:, None]) & table.known & (saved > 0)
    below = (index < levels[:, None]) & table.known & (saved < 0)
    high = np.where(above, ratio, np.inf).min(axis=1, initial=np.inf)
    low = np.where(below, ratio, 0.0).max(axis=1, initial=0.0)
    least = np.where(low > 0.0, low, np.minimum(1.0, high) / 2.0)
    most = np.where(np.isfinite(high), high, np.maximum(1.0, low) * 2.0)
    return np.asarray(np.sqrt(least * most).clip(LEAST, MOST))  # on no convex hull, low > high: between them


def redrawn(
    space: SearchSpace, coefficients: FloatArray, point: IntArray, count: int, rng: np.random.Generator
) -> tuple[FloatArray, IntArray]:
    """So many coefficients (A,) drawn anew, each the old one times a log-normal factor, since implied ones have no
    common range; of axes without an order the point's levels instead."""
    coefficients, point = coefficients.copy(), point.copy()
    for axis in rng.choice(len(point), size=count, replace=False):
        if space.ordered[axis]:
            coefficients[axis] *= np.exp(SPREAD * rng.standard_normal())
        else:
            point[axis] = rng.integers(0, space.sizes[axis])
    return coefficients, point


def most_redrawn(axes: int) -> int:
    """How many coefficients a local search draws anew at first."""
    return max(round(SHARE * axes), 1)


class Regression(AdditiveModel):
    """Scores explained by errors and criteria, to draw from."""

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, IntArray]:
        """From the posterior, per axis: a coefficient relative to the common one (1 without an order) and the level
        of most score (0 with an order), both (A,)."""
        weights = self.weights(rng)
        ordered = self.space.ordered
        coefficients = np.ones(len(ordered))
        coefficients[ordered] = (weights[: ordered.sum()] / self.common).clip(LEAST, MOST)
        choices = np.zeros(len(ordered), dtype=np.int64)
        ends = np.cumsum(self.space.sizes[~ordered])
        parts = np.split(weights[ordered.sum() :], ends[:-1])
        choices[~ordered] = [part.argmax() for part in parts if len(part)]
        return coefficients, choices
