"""The searchers every result is compared with: uniform, and random at the budget.

Random search that spends the budget and scores well is a strong baseline: EagleEye (Li et al. 2020) beats AMC with it.
"""

from functools import cached_property

import numpy as np

from automc.policy import Policy
from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers.history import FromHistory
from automc.searchers.relaxation import additive
from automc.space import FloatArray, IntArray

TIGHTER = 0.95
"""How much less than the one before a later uniform policy may cost."""
MOST, HALVINGS = 12.0, 24
"""Of the rate's inverse hyperbolic sine, and how often its range is halved."""
_SHARES = np.linspace(0.0, 1.0, 257)
DRAWS = 256
"""How many points are drawn for one that spends the budget."""
AT_ONCE = 32
"""Of these are looked at together: the first few mostly hold one."""
SPENT = 0.97
"""Share of a limit that a random policy spends, if one in so many draws does."""


class RandomSearcher(FromHistory):
    """Points drawn uniformly from those that spend the budget.

    EagleEye draws uniformly and rejects what misses the budget; of a large space that leaves next to nothing. Here a
    level's probability falls exponentially with its cost, at the rate at which half of the draws fit, and the first
    draw is taken that spends the budget. Among points of equal cost all are as likely as before, so this is the same
    distribution, reached sooner. Axes without an order are uniform. The cost that counts is the sum of the shares of
    the limits, made additive around the uniform point. What is left of the budget is filled.
    """

    proposer = "random"

    def ask(self) -> Policy:
        """A random feasible policy that spends the budget."""
        rng, projector = self.history.rng(), self.history.problem.projector
        return self.history.propose(projector.project(self.draw(rng), fill=True), rng)

    def draw(self, rng: np.random.Generator) -> IntArray:
        """The first of many draws that spends the budget; the dearest feasible one where none does, the first where
        none is feasible."""
        problem, limits = self.history.problem, self.history.problem.projector.limits
        points = rng.integers(0, problem.space.sizes, (DRAWS, len(problem.space.axes)))
        drawn = rng.random((DRAWS, self._costs.shape[0], 1))
        best, most = points[0], -np.inf
        for start in range(0, DRAWS, AT_ONCE):
            some = slice(start, start + AT_ONCE)
            points[some, problem.space.ordered] = _levels(self._distribution, drawn[some])
            costs = problem.projector.costing.batch(points[some], tuple(limits)) / list(limits.values())
            spent = np.where((costs <= 1.0).all(axis=1), np.minimum(costs.max(axis=1), SPENT), -1.0)
            if spent.max() > most:
                best, most = points[start + spent.argmax()], spent.max()
            if most == SPENT:
                break
        return np.asarray(best)

    @cached_property
    def _costs(self) -> FloatArray:
        """Cost of each level of each ordered axis (O, V), 1 for the dearest, infinite beyond an axis's top."""
        problem = self.history.problem
        table = additive(problem, uniform_point(problem, problem.projector))
        limits = np.array(list(problem.projector.limits.values()))
        cost = (table.costs / limits[:, None, None]).sum(axis=0)
        return np.asarray(cost / max(cost[table.known].max(initial=0.0), 1e-12))

    @cached_property
    def _distribution(self) -> FloatArray:
        """Cumulated probabilities of levels (O, V) at the least rate at which half of some draws fit."""
        space, projector = self.history.problem.space, self.history.problem.projector
        drawn = np.random.default_rng(0).random((DRAWS, self._costs.shape[0], 1))
        points = np.repeat(space.smallest[None], DRAWS, axis=0)
        low, high = -MOST, MOST
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            points[:, space.ordered] = _levels(_cumulated(self._costs, np.sinh(middle)), drawn)
            low, high = (low, middle) if projector.fits(points).mean() >= 0.5 else (middle, high)
        return _cumulated(self._costs, np.sinh(high))


def _cumulated(costs: FloatArray, rate: float) -> FloatArray:
    """Of levels (O, V) with probabilities that fall with the cost."""
    logits = np.where(np.isfinite(costs), -rate * np.where(np.isfinite(costs), costs, 0.0), -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf)).cumsum(axis=1)
    return np.asarray(weights / weights[:, -1:])


def _levels(cumulated: FloatArray, drawn: FloatArray) -> IntArray:
    """The levels (B, O) at which probabilities cumulated (O, V) reach what was drawn (B, O, 1)."""
    return np.asarray((cumulated[:, :-1] < drawn).sum(axis=2))


class UniformSearcher(FromHistory):
    """The same share of every decision everywhere: at the budget first, then at ever tighter ones."""

    proposer = "uniform"

    def ask(self) -> Policy:
        """The largest uniform policy not proposed before, at a tighter budget each time."""
        done = len(self.history.points) + self.history.asked
        projector, rng = self.history.problem.projector, self.history.rng()
        new = [p for p in uniform_points(self.history.problem, projector) if not self.history.seen(p)]
        if not new:
            return self.history.propose(uniform_point(self.history.problem, projector), rng)
        tight = projector.tightened(TIGHTER**done).fits(np.array(new)) if done else np.ones(len(new), dtype=np.bool_)
        return self.history.propose(new[int(tight.argmax()) if tight.any() else -1], rng)


def uniform_points(problem: Problem, projector: Projector) -> list[IntArray]:
    """The feasible points with the same share of each ordered axis's levels, largest first; criteria at their first
    value.

    A residual block, which has two levels, would be gone at any share below 1; points that keep all blocks come first.
    """
    space = problem.space
    points = np.unique(np.floor(_SHARES[:, None] * space.largest).astype(np.int64), axis=0)[::-1]
    blocks = np.array([a.kind == "block" for a in space.axes], dtype=np.bool_)
    if blocks.any():
        points = np.concatenate([np.where(blocks, space.largest, points), points])
    return list(points[projector.fits(points)])


def uniform_point(problem: Problem, projector: Projector) -> IntArray:
    """The largest of the uniform points."""
    return uniform_points(problem, projector)[0]


def random_searcher(problem: Problem, seed: int) -> RandomSearcher:
    """The searcher registered as `random`."""
    return RandomSearcher(problem, seed)


def uniform_searcher(problem: Problem, seed: int) -> UniformSearcher:
    """The searcher registered as `uniform`."""
    return UniformSearcher(problem, seed)
