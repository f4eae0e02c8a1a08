"""The searchers every result is compared with: uniform, and random within the budget.

Random points are made feasible and then filled up to the budget, which makes random search a strong baseline (EagleEye,
Li et al. 2020, beats AMC with it).
"""

from typing import Any

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers.history import History
from automc.space import IntArray

_SHARES = np.linspace(0.0, 1.0, 257)


class RandomSearcher:
    """Uniform points, projected and filled."""

    proposer = "random"

    def __init__(self, problem: Problem, seed: int) -> None:
        self.history = History(problem, seed)

    def ask(self) -> Policy:
        """A random feasible policy that spends the budget."""
        rng, problem = self.history.rng(), self.history.problem
        point = problem.projector.project(problem.space.sample(rng), fill=True)
        return self.history.propose(point, rng)

    def tell(self, evaluation: Evaluation) -> None:
        """Notes what not to propose again."""
        self.history.tell(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """How much was told."""
        return {"told": len(self.history.points)}


class UniformSearcher:
    """The same share of every decision everywhere: at the budget first, then at ever tighter ones."""

    proposer = "uniform"

    def __init__(self, problem: Problem, seed: int) -> None:
        self.history = History(problem, seed)

    def ask(self) -> Policy:
        """The next uniform policy."""
        done = len(self.history.points) + self.history.asked
        projector = self.history.problem.projector.tightened(0.95**done) if done else self.history.problem.projector
        return self.history.propose(uniform_point(self.history.problem, projector), self.history.rng())

    def tell(self, evaluation: Evaluation) -> None:
        """Notes what not to propose again."""
        self.history.tell(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """How much was told."""
        return {"told": len(self.history.points)}


def uniform_point(problem: Problem, projector: Projector) -> IntArray:
    """The largest feasible point with the same share of each ordered axis's levels; criteria at their first value."""
    points = np.floor(_SHARES[:, None] * problem.space.largest).astype(np.int64)
    fitting = np.flatnonzero(projector.fits(points))
    return points[fitting[-1]] if len(fitting) else problem.space.smallest


def random_searcher(problem: Problem, seed: int) -> RandomSearcher:
    """The searcher registered as `random`."""
    return RandomSearcher(problem, seed)


def uniform_searcher(problem: Problem, seed: int) -> UniformSearcher:
    """The searcher registered as `uniform`."""
    return UniformSearcher(problem, seed)
