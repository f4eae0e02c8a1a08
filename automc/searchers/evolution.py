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

from typing import Any

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.scoring.screen import ENOUGH, MOST, SPREADS
from automc.scoring.surrogate import AdditiveModel
from automc.searcher import Problem
from automc.searchers.baselines import uniform_point
from automc.searchers.coefficients import errors_of
from automc.searchers.history import History
from automc.space import FloatArray, IntArray

OFFSPRING = 64
"""Children drawn for one that is asked; EvoPress's for sparsity."""
SWITCHES = 3
"""Most places that give up levels."""
STEPS = 5
"""A step is at most one in so many of an axis's levels."""
RISES = 16
"""Most places that may rise before the rest of the budget is filled."""


class EvolutionSearcher:
    """Children of the best point."""

    proposer = "evolution"

    def __init__(self, problem: Problem, seed: int, *, offspring: int = OFFSPRING) -> None:
        self.history = History(problem, seed)
        self._offspring = offspring
        self._errors: list[FloatArray] | None = None
        space = problem.space
        self._open = np.flatnonzero(space.sizes > 1)
        self._ordered = np.flatnonzero(space.ordered & (space.sizes > 1))

    def ask(self) -> Policy:
        """The uniform point where nothing was scored; then the most promising child of the best."""
        rng, problem = self.history.rng(), self.history.problem
        scored = self.history.ranked()
        if not scored:
            return self.history.propose(uniform_point(problem, problem.projector), rng)
        knows = len(scored) >= ENOUGH and len(self._ordered) > 0
        children = self._children(self.history.points[scored[0]], self._offspring if knows else 1, rng)
        child = children[self._most_promising(children, sorted(scored)[-MOST:])] if knows else children[0]
        return self.history.propose(problem.projector.project(child, fill=True), rng)

    def tell(self, evaluation: Evaluation) -> None:
        """Adds a possible parent."""
        self.history.tell(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """The parent's score, None where nothing was scored."""
        return {"parent": next((self.history.scores[i] for i in self.history.ranked()), None)}

    def _children(self, parent: IntArray, count: int, rng: np.random.Generator) -> IntArray:
        """Feasible points (count, A): some places lower than in the parent, others higher."""
        space, projector = self.history.problem.space, self.history.problem.projector
        children = np.repeat(parent[None], count, axis=0)
        movable = self._open[~space.ordered[self._open] | (parent[self._open] > 0)]
        for child in children:
            places = min(int(n) for n in rng.integers(1, SWITCHES + 1, size=2))
            for axis in rng.choice(movable, size=min(places, len(movable)), replace=False):
                redrawn = rng.integers(0, space.sizes[axis])
                child[axis] = child[axis] - self._step(axis, rng) if space.ordered[axis] else redrawn
        children = np.maximum(children, 0)
        lowered, rows = children < parent, np.arange(count)
        order = rng.permuted(np.repeat(self._ordered[None], count, axis=0), axis=1)
        for axes in order.T[:RISES]:
            risen = children.copy()
            risen[rows, axes] = np.minimum(risen[rows, axes] + self._step(axes, rng), space.sizes[axes] - 1)
            rises = projector.fits(risen) & ~lowered[rows, axes]
            children[rises] = risen[rises]
        return children

    def _step(self, axes: IntArray, rng: np.random.Generator) -> IntArray:
        """How many levels places move."""
        return rng.integers(1, np.maximum(self.history.problem.space.sizes[axes] // STEPS, 1) + 1)

    def _most_promising(self, children: IntArray, known: list[int]) -> int:
        """Which child not proposed before will score best, by what the known scores say of the layers' errors."""
        if self._errors is None:
            self._errors = errors_of(self.history.problem)
        points, scores = [self.history.points[i] for i in known], [self.history.scores[i] for i in known]
        model = AdditiveModel.of(self.history.problem.space, self._errors, points, scores, SPREADS)
        means, _ = model.predict(list(children))
        seen = [self.history.seen(child) for child in children]
        return int(np.where(seen, -np.inf, means).argmax())


def evolution(problem: Problem, seed: int) -> EvolutionSearcher:
    """The searcher registered as `evolution`."""
    return EvolutionSearcher(problem, seed)
