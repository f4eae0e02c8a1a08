"""One threshold for all layers: what scores least goes, wherever it is, until the budget is met.

The classical baseline (Han et al. 2015) next to which a search has to justify itself. The first trial of each criterion
is at the budget, the next ones are at ever tighter budgets.
"""

import numpy as np

from automc.errors import PolicyError
from automc.policy import Policy
from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers.history import FromHistory
from automc.space import IntArray

TIGHTER = 0.95
FURTHER = 10
"""How many tighter budgets are tried for a point not proposed before."""


class GlobalSearcher(FromHistory):
    """Ranks by some criteria in turn; decisions that no ranking reaches stay dense as far as the budget allows."""

    proposer = "global"

    def __init__(self, problem: Problem, seed: int, *, criteria: tuple[str, ...]) -> None:
        if problem.thresholds is None:
            raise PolicyError("A global ranking must have the layers' scores; this problem has none: choose uniform.")
        super().__init__(problem, seed)
        self.criteria, self.thresholds = criteria, problem.thresholds

    def ask(self) -> Policy:
        """The next policy."""
        turn, which = divmod(len(self.history.points) + self.history.asked, len(self.criteria))
        projector = self.history.problem.projector
        for power in range(turn, turn + FURTHER):
            point = self.point(self.criteria[which], projector.tightened(TIGHTER**power) if power else projector)
            if not self.history.seen(point):
                break
        return self.history.propose(point, self.history.rng())

    def point(self, criterion: str, projector: Projector) -> IntArray:
        """The levels at the lowest threshold that meets the budget."""
        space, cuts = projector.space, self.thresholds(criterion)
        start = space.largest
        for i, axis in enumerate(space.axes):
            if axis.field == "criterion" and criterion in axis.values:
                start[i] = axis.level(criterion)

        def levels(threshold: float) -> IntArray:
            ranked = [np.isfinite(c).any() for c in cuts]
            fallen = np.array([(c > threshold).sum() for c in cuts])
            return np.where(ranked, np.minimum(fallen, space.largest), start)

        found = np.unique(np.concatenate([[-np.inf], *cuts]))
        low, high = 0, len(found) - 1  # beyond `high` nothing more can leave
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if projector.feasible(levels(found[middle])) else (middle + 1, high)
        return projector.project(levels(found[low]), fill=True)


def global_magnitude(problem: Problem, seed: int) -> GlobalSearcher:
    """The searcher registered as `global_magnitude`."""
    return GlobalSearcher(problem, seed, criteria=("l1",))


def global_ranking(problem: Problem, seed: int) -> GlobalSearcher:
    """The searcher registered as `global`: every criterion the space opens, or magnitude where it opens none."""
    opened = dict.fromkeys(str(v) for a in problem.space.axes if a.field == "criterion" for v in a.values)
    return GlobalSearcher(problem, seed, criteria=tuple(opened) or ("l1",))
