"""EvoPress: children of the best point, made by moving budget from one place to another.

Sieberling et al. (2024), (1+lambda) and elitist: the parent is the best feasible point told so far, whoever proposed
it, the uniform one at first; a child gives up levels in min(U{1..3}, U{1..3}) places and takes others elsewhere. Their
selection is staged, many offspring on few tokens and the survivors on more. Here, too: of many offspring the one is
asked whose score the additive model of the layers' errors predicts best (`scoring.surrogate`, once it knows enough;
one child before), and what is asked is raced on nested subsets of the validation samples by the loop. Every ask until
the next better score has the same parent, so lambda is as large as it takes. Deviations:
* A level costs more in one place than in another, so one level down does not pay for one level up: after the steps
  down, places rise in random order while the budget allows, and the projection fills what is left.
* Steps are of up to a fifth of an axis's levels, which are finer here than there.
* Axes without an order take a random level instead.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from automc.policy import Policy
from automc.projection import Projector
from automc.scoring.screen import ENOUGH, MOST, SPREADS
from automc.scoring.surrogate import AdditiveModel
from automc.searcher import Problem
from automc.searchers.allocation import Allocation
from automc.searchers.baselines import uniform_point
from automc.searchers.history import FromHistory, History
from automc.space import IntArray, SearchSpace

OFFSPRING = 64
"""Children drawn for one that is asked; EvoPress's for sparsity."""
SWITCHES = 3
"""Most places that give up levels."""
STEPS = 5
"""A step is at most one in so many of an axis's levels."""
FILLS = 8
"""Most children that are filled to find one not proposed yet."""
RISES = 16
"""Most places that may rise before the rest of the budget is filled."""


class EvolutionSearcher(FromHistory):
    """Children of the best point."""

    proposer = "evolution"

    def __init__(self, problem: Problem, seed: int, *, offspring: int = OFFSPRING) -> None:
        super().__init__(problem, seed)
        self._offspring = Offspring(Allocation(problem), self.history, offspring)

    def ask(self) -> Policy:
        """The uniform point where nothing was scored; then the most promising child of the best."""
        rng, problem = self.history.rng(), self.history.problem
        scored = self.history.ranked()
        if not scored:
            return self.history.propose(uniform_point(problem, problem.projector), rng)
        parent, known = self.history.points[scored[0]], self.history.told(sorted(scored)[-MOST:])
        return self.history.propose(self._offspring.child(parent, problem.projector, *known, rng), rng)

    def state_dict(self) -> dict[str, Any]:
        """The parent's score, None where nothing was scored."""
        return {"parent": next((self.history.scores[i] for i in self.history.ranked()), None)}


class Offspring:
    """Children of a point, and which of them will score best by what told scores say of the layers' errors."""

    def __init__(self, allocation: Allocation, history: History, count: int = OFFSPRING) -> None:
        self._allocation, self._history, self._count = allocation, history, count

    def child(
        self,
        parent: IntArray,
        projector: Projector,
        points: Sequence[IntArray],
        scores: Sequence[float],
        rng: np.random.Generator,
    ) -> IntArray:
        """The most promising of many children, filled up to the limits; any, where too few points are scored to
        tell."""
        space = self._history.problem.space
        if len(points) < ENOUGH or not space.ordered.any():
            return projector.project(children(space, projector, parent, 1, rng).ravel(), fill=True)
        model = AdditiveModel.of(space, self._allocation.errors, points, scores, SPREADS)
        means, _ = model.predict(list(found := children(space, projector, parent, self._count, rng)))
        return self._new(found[np.argsort(-means, kind="stable")], projector)

    def _new(self, found: IntArray, projector: Projector) -> IntArray:
        """The first point (A,) of some (N, A) that is not proposed yet when it is filled; the first where none is."""
        filled = [projector.project(found[0], fill=True)]
        while self._history.seen(filled[-1]) and len(filled) < min(FILLS, len(found)):
            filled.append(projector.project(found[len(filled)], fill=True))
        return filled[0] if self._history.seen(filled[-1]) else filled[-1]


def children(
    space: SearchSpace, projector: Projector, parent: IntArray, count: int, rng: np.random.Generator
) -> IntArray:
    """Points (count, A), feasible where the parent is: some places lower than in it, others higher."""
    ordered = np.flatnonzero(space.ordered & (space.sizes > 1))
    giving = np.flatnonzero((space.sizes > 1) & (~space.ordered | (parent > 0)))
    found = np.repeat(parent[None], count, axis=0)
    for child in found:
        places = min(int(n) for n in rng.integers(1, SWITCHES + 1, size=2))
        for axis in rng.choice(giving, size=min(places, len(giving)), replace=False):
            redrawn = rng.integers(0, space.sizes[axis])
            child[axis] = child[axis] - _step(space, axis, rng) if space.ordered[axis] else redrawn
    found = np.maximum(found, 0)
    lowered, rows = found < parent, np.arange(count)
    order = rng.permuted(np.repeat(ordered[None], count, axis=0), axis=1)
    for axes in order.T[:RISES]:
        risen = found.copy()
        risen[rows, axes] = np.minimum(risen[rows, axes] + _step(space, axes, rng), space.sizes[axes] - 1)
        rises = projector.fits(risen) & ~lowered[rows, axes]
        found[rises] = risen[rises]
    return found


def _step(space: SearchSpace, axes: IntArray, rng: np.random.Generator) -> IntArray:
    """How many levels places move."""
    return rng.integers(1, np.maximum(space.sizes[axes] // STEPS, 1) + 1)


def evolution(problem: Problem, seed: int) -> EvolutionSearcher:
    """The searcher registered as `evolution`."""
    return EvolutionSearcher(problem, seed)
