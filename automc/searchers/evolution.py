"""Evolution around the best points told so far: crossover of two, a few mutations, projected and filled.

The steady-state form of the evolutionary searches of OFA (Cai et al. 2020) and EvoPress (Sieberling et al. 2024);
like the latter, it moves budget from one place to another, here because every child is filled up to the budget again.
"""

from typing import Any

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.searcher import Problem
from automc.searchers.history import History

PARENTS = 6


class EvolutionSearcher:
    """Children of the best points; random points while nothing is told."""

    proposer = "evolution"

    def __init__(self, problem: Problem, seed: int) -> None:
        self.history = History(problem, seed)

    def ask(self) -> Policy:
        """A child of two of the best points, the better ones more often."""
        rng, problem = self.history.rng(), self.history.problem
        best = self.history.ranked()[:PARENTS]
        if not best:
            return self.history.propose(problem.projector.project(problem.space.sample(rng), fill=True), rng)
        weights = 0.5 ** np.arange(len(best))
        first, second = (self.history.points[i] for i in rng.choice(best, size=2, p=weights / weights.sum()))
        child = np.where(rng.random(len(first)) < 0.5, first, second) if rng.random() < 0.5 else first
        changes = int(min(rng.integers(1, 7), rng.integers(1, 7)))
        reach = max(1, int(problem.space.sizes.max()) // 10)
        child = problem.space.neighbours(child, rng, changes=changes, reach=reach)
        return self.history.propose(problem.projector.project(child, fill=True), rng)

    def tell(self, evaluation: Evaluation) -> None:
        """Adds a possible parent."""
        self.history.tell(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """The parents' scores."""
        return {"parents": [self.history.scores[i] for i in self.history.ranked()[:PARENTS]]}


def evolution(problem: Problem, seed: int) -> EvolutionSearcher:
    """The searcher registered as `evolution`."""
    return EvolutionSearcher(problem, seed)
