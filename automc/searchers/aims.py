"""Which budget the next proposal is made for: the one asked for, or a tighter one where the front has a gap.

A search has one budget, yet people choose from a front. What a proposal may add to the front's hypervolume is bounded
by the empty corner between two neighbours on it, so tighter budgets are drawn in proportion to these corners, after a
few spread over the whole range.
"""

from dataclasses import dataclass

import numpy as np

from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers.history import History
from automc.space import FloatArray, IntArray

FULL = 0.6
"""Share of proposals made for the budget asked for."""
ANYWHERE = 0.1
"""Share of proposals made for a budget from anywhere in the range: no point of a front is the last word on its own."""
NEAREST = 60
"""Told points that a proposal learns from: layers that hardly matter for a roomy budget may for a tight one."""


@dataclass(frozen=True, eq=False, slots=True)
class Aim:
    """What one proposal is made for, and the told points it should be made from."""

    projector: Projector
    """Every limit times the same factor."""
    tightness: float
    """That factor, in (0, 1]."""
    near: list[int]
    """Scored points whose tightness is nearest, by their order of telling; best first."""
    points: list[IntArray]
    """These."""
    scores: list[float]
    """Of these."""
    best: IntArray
    """The best point within the aim's limits, or the tightest of all where none is."""


class Aims:
    """The told points over tightness: the largest ratio of a point's cost to its limit."""

    def __init__(self, problem: Problem) -> None:
        self.projector, self._names = problem.projector, tuple(problem.projector.limits)
        self._bounds = np.array(list(problem.projector.limits.values()))
        self._tightness: list[float] = []
        self.floor = self._of(problem.space.smallest)
        """The tightest there is."""

    def tell(self, point: IntArray) -> None:
        """Takes note of a told point, in the order of the history."""
        self._tightness.append(self._of(point))

    def spread(self, count: int) -> list[float]:
        """So many budgets from the one asked for down to nearly the tightest, evenly by their logarithm."""
        floor = min(self.floor, 1.0)
        return [float(x) for x in np.geomspace(1.0, min(1.5 * floor, floor**0.5), count)]

    def choose(self, history: History, rng: np.random.Generator) -> float:
        """How tight the next proposal is to be."""
        draw = float(rng.uniform())
        if draw < FULL or self.floor >= 1.0:
            return 1.0
        edges, heights = self._front(history)
        corners = np.diff(edges) * np.diff(heights)
        if draw < FULL + ANYWHERE or not corners.sum() > 0:
            return float(rng.uniform(self.floor, 1.0))
        gap = int(rng.choice(len(corners), p=corners / corners.sum()))
        return float(rng.uniform(edges[gap], edges[gap + 1]))

    def projection(self, tightness: float) -> Projector:
        """The projection under every limit times a factor."""
        return self.projector if tightness >= 1.0 else self.projector.tightened(tightness)

    def at(self, tightness: float, history: History) -> Aim:
        """The aim at a budget, with what was told so far."""
        projector = self.projection(tightness)
        scored = np.array(history.ranked(), dtype=np.int64)
        if not len(scored):
            return Aim(projector, tightness, [], [], [], history.problem.space.smallest)
        told = np.array(self._tightness)[scored]
        near = np.sort(np.argsort(np.abs(np.log(told / tightness)), kind="stable")[:NEAREST])
        within = np.flatnonzero(told <= tightness)
        best = scored[within[0] if len(within) else told.argmin()]
        chosen = scored[near].tolist()
        return Aim(projector, tightness, chosen, *history.told(chosen), history.points[best])

    def _front(self, history: History) -> tuple[FloatArray, FloatArray]:
        """Tightness and score along the front, from the floor at the least score to the budget at the best one."""
        scores = np.array(history.scores)
        scored = np.flatnonzero(~np.isnan(scores))
        if not len(scored):
            return np.array([self.floor, 1.0]), np.zeros(2)
        tightness, scores = np.array(self._tightness)[scored], scores[scored]
        order = np.lexsort((-scores, tightness))
        heights = np.maximum.accumulate(scores[order])
        rises = np.concatenate([[True], heights[1:] > heights[:-1]])
        edges = np.concatenate([[self.floor], tightness[order][rises], [1.0]])
        return edges, np.concatenate([[scores.min()], heights[rises], heights[-1:]])

    def _of(self, point: IntArray) -> float:
        return float((self.projector.costing.batch(point[None], self._names)[0] / self._bounds).max())
