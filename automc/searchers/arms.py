"""What the joint search proposes by: each arm makes a point for an aim, from what was told near it.

All arms read one history; the agent learns besides. Where one arm consists of two deciders, one conditions the other.
"""

from typing import Protocol

import numpy as np

from automc.searchers.aims import Aim
from automc.searchers.allocation import Allocation
from automc.searchers.coefficients import most_redrawn, redrawn
from automc.searchers.evolution import Offspring
from automc.searchers.history import History
from automc.searchers.rl import AgentSearcher
from automc.searchers.sampled import Trials
from automc.space import FloatArray, IntArray

REDRAWS = 4
"""How often coefficients are drawn for a solution not proposed before."""
NEIGHBOURS = 20
"""Told points that a sampler conditioned on the agent's decisions is fitted to, at most half of all."""


class Arm(Protocol):
    """Makes a point for an aim that has scored points; the joint search makes it feasible."""

    def point(self, aim: Aim, rng: np.random.Generator) -> IntArray:
        """The next proposal's levels."""
        ...


class Programming:
    """Dynamic programming under coefficients drawn from what the scores leave likely (see `coefficients`)."""

    def __init__(self, allocation: Allocation) -> None:
        self._allocation = allocation

    def point(self, aim: Aim, rng: np.random.Generator) -> IntArray:
        """The knapsack's solution under one draw, criteria as drawn."""
        return self._allocation.likely(aim.points, aim.scores, aim.best, aim.projector, rng, thorough=False)


class Weighing:
    """SPDY's local search: the solution under some coefficients drawn anew of those that the aim's best point implies.

    How many are drawn anew is chance, where `dp` goes from a tenth of them down to a single one: aims change, and with
    them whose failures would count.
    """

    def __init__(self, allocation: Allocation, history: History) -> None:
        self._allocation, self._history = allocation, history

    def point(self, aim: Aim, rng: np.random.Generator) -> IntArray:
        """The first solution not proposed before, of a few."""
        space, implied = self._history.problem.space, self._allocation.implied(aim.best, aim.projector)
        most = most_redrawn(len(aim.best))

        def draw() -> tuple[FloatArray, IntArray]:
            return redrawn(space, implied, aim.best, int(rng.integers(1, most + 1)), rng)

        return self._allocation.fresh(draw, self._history.seen, REDRAWS, aim.projector, thorough=False)


class Switching:
    """Evolution: of many children of the best point the one that a model of the scores near the aim prefers."""

    def __init__(self, allocation: Allocation, history: History) -> None:
        self._offspring = Offspring(allocation, history)

    def point(self, aim: Aim, rng: np.random.Generator) -> IntArray:
        """A child (see `evolution`)."""
        parent = aim.projector.project(aim.best)
        return self._offspring.child(parent, aim.projector, aim.points, aim.scores, rng)


class Sampling:
    """TPE, fitted to the aim's points."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials

    def point(self, aim: Aim, rng: np.random.Generator) -> IntArray:
        """All decisions at once."""
        return self._trials.suggest(aim.near, int(rng.integers(2**31)))


class Walking:
    """The agent walks the layers and decides shares; TPE decides criteria and bits. In turn, one conditions the other.

    Either the sampler goes first and the agent sees its choice in every state, or the agent goes first and the sampler
    is fitted to the told points nearest to the agent's shares.
    """

    def __init__(self, agent: AgentSearcher, trials: Trials) -> None:
        self._agent, self._trials = agent, trials
        self._owned = agent.walk.owned_axes

    def point(self, aim: Aim, rng: np.random.Generator) -> IntArray:
        """One episode under the aim's budget, and the sampler's decisions before or after it."""
        walk, seed = self._agent.walk.under(self._agent.walk.reach[1] * aim.tightness), int(rng.integers(2**31))
        if self._owned.all():
            return self._agent.episode(aim.best, rng, walk)
        if rng.random() < 0.5:
            given = aim.projector.project(self._trials.suggest(aim.near, seed))  # else its bits would take all channels
            return self._agent.episode(given, rng, walk)
        point = self._agent.episode(aim.best, rng, walk)
        return np.where(self._owned, point, self._trials.suggest(self._nearest(point, aim), seed))

    def _nearest(self, point: IntArray, aim: Aim) -> list[int]:
        """Those of the aim's points that are nearest to the agent's decisions."""
        tops = np.maximum(self._agent.walk.space.sizes - 1, 1)[self._owned]
        gaps = np.abs((np.array(aim.points)[:, self._owned] - point[self._owned]) / tops).sum(axis=1)
        order = np.argsort(gaps, kind="stable")[: min(NEIGHBOURS, max(len(gaps) // 2, 2))]
        return [aim.near[i] for i in order]
