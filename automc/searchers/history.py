"""What every searcher keeps: the told evaluations as points and scores, its open asks, and its share of randomness."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.searcher import Problem
from automc.space import IntArray

TRIES = 20
"""How often a proposal already told is moved before it is proposed again."""
Settle = Callable[[IntArray, bool], IntArray]
"""From any levels, and whether to spend what is left of the budget, to feasible ones."""


@dataclass(eq=False)
class History:
    """Points told so far with their scores, estimates of pruned ones among them; NaN where
    there is no finite one.

    Points are `plain`, so that policies that make the same model count as one.
    """

    problem: Problem
    seed: int
    points: list[IntArray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    asked: int = 0
    """Asks not yet told."""
    _seen: set[bytes] = field(default_factory=set)
    _ranked: list[tuple[float, int]] = field(default_factory=list)
    """Negated scores and when they were told, in order."""

    def rng(self, stream: int = 0) -> np.random.Generator:
        """The generator of the next ask: a function of the seed, of how much was told and of how many asks are open.

        Other streams belong to tells and leave the open asks out: on resume a searcher is told all it was told before,
        with no ask open.
        """
        return np.random.default_rng((self.seed, stream, len(self.points), 0 if stream else self.asked))

    def tell(self, evaluation: Evaluation) -> IntArray:
        """Takes note of an evaluation; returns its point."""
        point = self.problem.space.plain(self.problem.space.encode(evaluation.policy))
        self.points.append(point)
        score = evaluation.score if evaluation.scored and evaluation.score is not None else np.nan
        self.scores.append(score if np.isfinite(score) else np.nan)
        if np.isfinite(score):
            bisect.insort(self._ranked, (-score, len(self.scores) - 1))
        self._seen.add(point.tobytes())
        self.asked = max(self.asked - 1, 0)
        return point

    def propose(self, point: IntArray, rng: np.random.Generator, settle: Settle | None = None) -> Policy:
        """The policy at a feasible point, or at a feasible neighbour where the point was told or asked already.

        `settle(levels, fill)` makes a neighbour feasible; by default the problem's projection.
        """
        settle = settle or (lambda levels, fill: self.problem.projector.project(levels, fill=fill))
        space = self.problem.space
        chosen = space.plain(point)
        for attempt in range(TRIES):
            if not self.seen(chosen):
                break
            near = attempt < TRIES * 3 // 4  # what is left in a small space may lie anywhere
            reach = 1 + attempt // 4
            moved = space.neighbours(point, rng, changes=reach, reach=reach) if near else space.sample(rng)
            # Where few points spend the whole budget, filling leads back to those already told.
            chosen = space.plain(settle(moved, attempt < TRIES // 2))
        self._seen.add(chosen.tobytes())
        self.asked += 1
        return space.decode(chosen)

    def reopen(self, policy: Policy) -> None:
        """Takes note of a proposal that was made earlier and is yet to be told."""
        self._seen.add(self.problem.space.plain(self.problem.space.encode(policy)).tobytes())
        self.asked += 1

    def seen(self, point: IntArray) -> bool:
        """Whether a point was told or proposed already."""
        return self.problem.space.plain(point).tobytes() in self._seen

    def told(self, which: Sequence[int]) -> tuple[list[IntArray], list[float]]:
        """Points and scores of some evaluations, by their order of telling."""
        return [self.points[i] for i in which], [self.scores[i] for i in which]

    def ranked(self) -> list[int]:
        """Indices of scored points, best first, earlier ones first among equals."""
        return [i for _, i in self._ranked]


class FromHistory:
    """What all searchers have in common whose asks follow from the seed and from the history, open asks among it."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.history = History(problem, seed)

    def tell(self, evaluation: Evaluation) -> None:
        """Takes note of a score, whoever proposed the policy."""
        self.history.tell(evaluation)

    def reopen(self, policy: Policy, proposer: str) -> None:
        """Takes note of an open ask."""
        self.history.reopen(policy)

    def state_dict(self) -> dict[str, Any]:
        """How much was told."""
        return {"told": len(self.history.points)}
