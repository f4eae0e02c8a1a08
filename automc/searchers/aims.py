"""Which budget the next proposal aims at: the one asked for, or a tighter one where the front has its widest gap.

A search has one budget, yet people choose from a front. What a proposal may add to it is bounded by the empty corner
between two neighbours on the front: that much hypervolume and no more. So tighter budgets are drawn in proportion to
these corners, after a few spread over the whole range.
"""

import numpy as np

from automc.evaluation import Evaluation
from automc.projection import Projector
from automc.searcher import Problem
from automc.space import FloatArray

FULL = 0.4
"""Share of proposals at the budget asked for."""
ANYWHERE = 0.15
"""Share of proposals at a budget drawn from the whole range: no point of the front is the last word on its budget."""


class Aims:
    """The front so far over tightness: the largest ratio of a cost to its limit."""

    def __init__(self, problem: Problem) -> None:
        self.projector = problem.projector
        self.limits = problem.projector.limits
        smallest = problem.projector.costing.of(problem.space.smallest)
        self.floor = max(smallest[name] / limit for name, limit in self.limits.items())
        """The tightest budget there is."""
        self._tightness: list[float] = []
        self._scores: list[float] = []

    def tell(self, evaluation: Evaluation) -> None:
        """Takes note of a score; estimates tell nothing of the front."""
        if evaluation.ok and evaluation.score is not None:
            costs = dict(evaluation.costs)
            self._tightness.append(max(costs[name] / limit for name, limit in self.limits.items()))
            self._scores.append(evaluation.score)

    def spread(self, count: int) -> FloatArray:
        """So many budgets over the range, from the one asked for downwards, evenly by their logarithm."""
        return np.geomspace(1.0, min(1.0, 1.5 * self.floor), count)

    def choose(self, rng: np.random.Generator) -> float:
        """The factor on every limit that the next proposal is made under."""
        draw = float(rng.uniform())
        if draw < FULL or self.floor >= 1.0:
            return 1.0
        if draw < FULL + ANYWHERE or not self._scores:
            return float(np.exp(rng.uniform(np.log(self.floor), 0.0)))
        edges, heights = self._front()
        corners = np.diff(edges) * np.diff(heights)
        if not corners.sum() > 0:
            return float(rng.uniform(self.floor, 1.0))
        gap = int(rng.choice(len(corners), p=corners / corners.sum()))
        return float(edges[gap] + rng.uniform(0.1, 1.0) * (edges[gap + 1] - edges[gap]))

    def projection(self, factor: float) -> Projector:
        """The projection under every limit times a factor."""
        return self.projector if factor >= 1.0 else self.projector.tightened(factor)

    def nearest(self, factor: float, count: int, tightness: FloatArray) -> np.ndarray:
        """Indices of so many points whose tightness is nearest to a factor, by ratio."""
        return np.argsort(np.abs(np.log(tightness / factor)), kind="stable")[:count]

    def _front(self) -> tuple[FloatArray, FloatArray]:
        """Tightness and score along the front, from the floor at the least score to the budget at the best one."""
        order = np.lexsort((-np.array(self._scores), self._tightness))
        tightness, scores = np.array(self._tightness)[order], np.array(self._scores)[order]
        best = np.maximum.accumulate(scores)
        rises = np.concatenate([[True], best[1:] > best[:-1]])
        edges = np.concatenate([[self.floor], tightness[rises], [1.0]])
        return edges, np.concatenate([[scores.min()], best[rises], [best[-1]]])
