"""Thompson sampling over what the layers' errors weigh, with the knapsack as its oracle.

Solutions of the knapsack (`allocation`) are proposed under coefficients that the told scores make likely: drawn from
the posterior of an additive model once there are enough scores, random mutations of the best point's before (see
`coefficients`). SPDY (Frantar and Alistarh 2022) searches the same coefficients by chance and locally: `dp`. Some
solutions aim below the budget, to populate the front.
"""

import numpy as np

from automc.policy import Policy
from automc.scoring.screen import MOST
from automc.searcher import Problem
from automc.searchers.allocation import Allocation
from automc.searchers.history import FromHistory
from automc.space import FloatArray, IntArray

SPREAD = 0.5
"""Deviation of the logarithm of a mutated coefficient."""
ENOUGH = 8
"""Scored points before the regression is asked."""
FRONT_EVERY = 10
"""One in so many proposals aims at a tighter budget."""


class KnapsackSearcher(FromHistory):
    """Proposes knapsack solutions under coefficients that the told scores make likely."""

    proposer = "knapsack"

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self.allocation = Allocation(problem)

    def ask(self) -> Policy:
        """The plain solution where nothing is told; then one under drawn coefficients."""
        rng, projector = self.history.rng(), self.history.problem.projector
        best = self.history.ranked()
        if not best:
            return self.history.propose(self.allocation.plain(), rng)
        if rng.random() < 1.0 / FRONT_EVERY:
            projector = projector.tightened(float(rng.uniform(0.6, 0.95)))
        around = self.history.points[best[0]]
        if len(best) >= ENOUGH:
            point = self.allocation.likely(*self.history.told(sorted(best)[-MOST:]), around, projector, rng)
        else:
            point = self.allocation.solve(self._mutated(around, rng), around, projector)
        return self.history.propose(point, rng)

    def _mutated(self, point: IntArray, rng: np.random.Generator) -> FloatArray:
        """Coefficients that make a point a solution, a tenth to all of them moved."""
        coefficients = self.allocation.implied(point)
        moved = rng.random(len(coefficients)) < max(float(rng.choice((0.1, 0.3, 1.0))), 1.0 / len(coefficients))
        return np.asarray(coefficients * np.exp(SPREAD * rng.standard_normal(len(coefficients)) * moved))


def knapsack(problem: Problem, seed: int) -> KnapsackSearcher:
    """The searcher registered as `knapsack`."""
    return KnapsackSearcher(problem, seed)
