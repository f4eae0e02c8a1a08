"""What told scores say about the layers: how much score each unit of a layer's error costs.

SPDY (Frantar and Alistarh 2022, section 3.2) searches these coefficients at random. Here two sources propose them.
* `implied`: the coefficients under which a point, whoever proposed it, is the knapsack's solution: a start for
  mutations that needs no memory of who proposed what.
* `Regression.draw`: a draw from the posterior of the additive model (`scoring.surrogate`): Thompson sampling with the
  knapsack as its oracle (Agrawal and Goyal 2013; Wen et al. 2015 for combinatorial arms). Noise in the scores widens
  the posterior instead of misleading a local search.
"""

import numpy as np

from automc.scoring.surrogate import AdditiveModel
from automc.searchers.relaxation import Additive
from automc.space import FloatArray, IntArray

LEAST, MOST = 0.02, 50.0
"""Bounds on a coefficient, relative to the common one."""
TIE = 1e-6
"""How far a coefficient stays from where a neighbouring level is as good."""


def implied(table: Additive, errors: FloatArray, price: FloatArray, levels: IntArray) -> FloatArray:
    """Per ordered axis the coefficient nearest to 1 (O,) for which `levels` (O,) minimise error plus priced cost."""
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
    broken = low > high  # on no convex hull: no coefficient makes it optimal
    middle = np.sqrt(np.maximum(low * np.where(np.isfinite(high), high, 1.0), 1e-12))
    inside = np.clip(1.0, low * (1.0 + TIE), high * (1.0 - TIE))
    return np.asarray(np.where(broken, middle, inside).clip(LEAST, MOST))


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
