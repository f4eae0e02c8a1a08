"""SPDY: dynamic programming on the layers' errors, and a search for how much each layer's error counts.

Frantar and Alistarh (2022), section 3, and the settings of their code: one coefficient a layer turns calibrated errors
into a knapsack (`allocation`), and the real score judges its solution. First the plain solution, then coefficients
drawn at random, U(0, 1) each, then a local search around the best: k coefficients drawn anew, from a tenth of them down
to a single one, so many times without improvement each. Deviations:
* Twenty random vectors and twenty tries a k instead of a hundred each: a search here has a few hundred trials.
* After k = 1 it begins again with a tenth; the reference stops.
* Nothing but the told scores is remembered: the local search starts from coefficients that the best point implies, in
  the middle of those under which it is a solution. So it goes on from whatever another searcher found, and after a
  resume. A new coefficient is the old one times a log-normal factor, as the implied ones have no common range.
* An axis without an order counts as a coefficient; drawn anew, it takes a random level.
* A vector whose solution was proposed before is drawn again; the reference scores it again.
"""

from typing import Any

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.searcher import Problem
from automc.searchers.allocation import Allocation
from automc.searchers.coefficients import most_redrawn, redrawn
from automc.searchers.history import FromHistory
from automc.space import FloatArray, IntArray

DRAWS = 20
TRIES = 20
REDRAWS = 8
"""How often a vector is drawn for a solution not proposed before; then a neighbour of the last one is proposed."""


class DPSearcher(FromHistory):
    """Proposes knapsack solutions; the told scores choose the coefficients."""

    proposer = "dp"

    def __init__(self, problem: Problem, seed: int, *, draws: int = DRAWS, tries: int = TRIES) -> None:
        super().__init__(problem, seed)
        self.allocation = Allocation(problem)
        self._draws, self._tries = draws, tries
        self._most = most_redrawn(len(problem.space.axes))
        self._changes, self._failed = self._most, 0
        """How many coefficients are drawn anew, and how many tries in a row have not paid."""
        self._best: int | None = None

    def ask(self) -> Policy:
        """The plain solution where nothing was scored; then one under drawn coefficients."""
        rng = self.history.rng()
        if self._best is None:
            return self.history.propose(self.allocation.plain(), rng)
        best = self.history.points[self._best]
        local = len(self.history.points) + self.history.asked > self._draws
        implied = self.allocation.implied(best) if local else None

        def draw() -> tuple[FloatArray, IntArray]:
            if implied is None:
                return rng.uniform(size=len(best)), best
            return redrawn(self.history.problem.space, implied, best, self._changes, rng)

        return self.history.propose(self.allocation.fresh(draw, self.history.seen, REDRAWS), rng)

    def tell(self, evaluation: Evaluation) -> None:
        """Takes note of a score, whoever proposed the policy."""
        super().tell(evaluation)
        last = len(self.history.points) - 1
        score = self.history.scores[last]
        if not np.isnan(score) and (self._best is None or score > self.history.scores[self._best]):
            self._best, self._failed = last, 0
        elif last > self._draws:
            self._failed += 1
            if self._failed == self._tries:
                self._changes, self._failed = self._changes - 1 or self._most, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the local search stands."""
        return super().state_dict() | {"changes": self._changes, "failed": self._failed}


def dp(problem: Problem, seed: int) -> DPSearcher:
    """The searcher registered as `dp`."""
    return DPSearcher(problem, seed)
