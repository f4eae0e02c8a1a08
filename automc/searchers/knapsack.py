"""Dynamic programming on the layers' own errors, and a search over how to weigh them.

SPDY (Frantar and Alistarh 2022, section 3): each layer's error at each level is additive by assumption, a
multiple-choice knapsack picks levels within the budget, and what is searched is one error coefficient a layer, scored
by the real model. Deviations: errors are measured on calibration data instead of assumed quadratic in the level;
costs that are no sum over decisions (bits times channels) are made additive around the last solution, twice; the
projection guarantees all limits, however many; some solutions aim below the budget to populate the front.
"""

from typing import Any

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers.baselines import uniform_point
from automc.searchers.history import History
from automc.space import FloatArray, IntArray

BUCKETS = 1000
SPREAD = 0.5
"""Deviation of the logarithm of a mutated coefficient."""
FRONT_EVERY = 6
"""One in so many proposals aims at a tighter budget."""


class KnapsackSearcher:
    """Proposes knapsack solutions under mutated error coefficients."""

    proposer = "knapsack"

    def __init__(self, problem: Problem, seed: int) -> None:
        self.history = History(problem, seed)
        self._errors: list[FloatArray] | None = None
        self._coefficients: dict[str, FloatArray] = {}
        self._best = np.ones(len(problem.space.axes)), -np.inf
        self.proposals = 0

    def ask(self) -> Policy:
        """The plain solution first, then mutations of the best coefficients."""
        coefficients, policy = self._draw()
        self._coefficients[policy.digest] = coefficients
        return policy

    def tell(self, evaluation: Evaluation) -> None:
        """Keeps the coefficients whose solution scored best; on resume they are drawn again as they were."""
        digest = evaluation.policy.digest
        if digest not in self._coefficients and evaluation.proposer == self.proposer:
            coefficients, policy = self._draw()
            self._coefficients[policy.digest] = coefficients
        self.history.tell(evaluation)
        known = self._coefficients.pop(digest, None)
        if known is not None and self.history.scores[-1] > self._best[1]:
            self._best = known, self.history.scores[-1]

    def _draw(self) -> tuple[FloatArray, Policy]:
        """Coefficients and their solution: a function of the seed, of what was told and of earlier draws."""
        rng, problem = self.history.rng(), self.history.problem
        coefficients = self._mutated(rng) if self.proposals else self._best[0]
        projector = problem.projector
        if self.proposals and self.proposals % FRONT_EVERY == 0:
            projector = projector.tightened(float(rng.uniform(0.6, 0.95)))
        self.proposals += 1
        return coefficients, self.history.propose(solve(problem, projector, self.errors(), coefficients), rng)

    def state_dict(self) -> dict[str, Any]:
        """The best coefficients."""
        return {"coefficients": self._best[0].tolist(), "told": len(self.history.points)}

    def errors(self) -> list[FloatArray]:
        """Error per axis and level, never rising with the level; a fallback of the lost share where none are known."""
        if self._errors is None:
            space = self.history.problem.space
            known = self.history.problem.errors
            raw = known() if known is not None else tuple(np.linspace(1.0, 0.0, n) ** 2 for n in space.sizes)
            self._errors = [
                np.minimum.accumulate(e) if o else np.zeros(len(e)) for e, o in zip(raw, space.ordered, strict=True)
            ]
        return self._errors

    def _mutated(self, rng: np.random.Generator) -> FloatArray:
        """A random tenth to all of the best coefficients moved (SPDY's shrinking neighbourhoods, drawn at random)."""
        best = self._best[0]
        share = rng.choice((0.1, 0.3, 1.0))
        moved = rng.random(len(best)) < max(share, 1.0 / len(best))
        return np.asarray(best * np.exp(SPREAD * rng.standard_normal(len(best)) * moved))


def solve(problem: Problem, projector: Projector, errors: list[FloatArray], coefficients: FloatArray) -> IntArray:
    """The feasible point with about the least weighted error sum; criteria at their first value."""
    weighted = [c * e for c, e in zip(coefficients, errors, strict=True)]
    best: tuple[float, IntArray] | None = None
    for metric in projector.limits:
        point = uniform_point(problem, projector)
        for _ in range(2):
            point = _additive(problem, projector, metric, weighted, point)
            point = projector.project(point, fill=True)
            error = sum(float(e[level]) for e, level in zip(weighted, point, strict=True))
            if best is None or error < best[0]:
                best = error, point
    assert best is not None  # a budget has at least one limit
    return best[1]


def _additive(
    problem: Problem, projector: Projector, metric: str, errors: list[FloatArray], around: IntArray
) -> IntArray:
    """The knapsack whose costs are those of moving one axis at a time away from `around`."""
    axes = np.flatnonzero(problem.space.ordered)
    points = np.repeat(around[None], int(problem.space.sizes[axes].sum()), axis=0)
    owner = np.repeat(axes, problem.space.sizes[axes])
    points[np.arange(len(points)), owner] = np.concatenate([np.arange(n) for n in problem.space.sizes[axes]])
    cost = projector.costing.batch(points, (metric,))[:, 0]
    base = float(projector.costing.batch(around[None], (metric,))[0, 0])
    each = [cost[owner == axis] for axis in axes]
    lowest = np.array([c[0] for c in each])
    spare = (
        projector.limits[metric] - base - float((lowest - base).sum())
    )  # what lies above every axis's cheapest level
    levels = knapsack_levels([errors[a] for a in axes], [c - c[0] for c in each], spare)
    point = around.copy()
    point[axes] = levels
    return point


def knapsack_levels(
    errors: list[FloatArray], costs: list[FloatArray], capacity: float, buckets: int = BUCKETS
) -> IntArray:
    """One level an item with the least error sum and a cost sum within capacity, by dynamic programming.

    Costs start at 0 at level 0 and are rounded up to capacity / buckets, so the true sum never exceeds capacity.
    """
    if capacity <= 0:
        return np.zeros(len(errors), dtype=np.int64)
    best = np.zeros(buckets + 1)
    choices = []
    for error, cost in zip(errors, costs, strict=True):
        weight = np.ceil(cost / capacity * buckets - 1e-9).astype(np.int64)
        fits = np.flatnonzero(weight <= buckets)
        table = np.full((len(fits), buckets + 1), np.inf)
        for row, level in enumerate(fits):
            table[row, weight[level] :] = best[: buckets + 1 - weight[level]] + error[level]
        pick = table.argmin(axis=0)
        best = table[pick, np.arange(buckets + 1)]
        choices.append((fits[pick], weight))
    levels = np.zeros(len(errors), dtype=np.int64)
    left = buckets
    for item in reversed(range(len(errors))):
        chosen, weight = choices[item]
        levels[item] = chosen[left]
        left -= int(weight[levels[item]])
    return levels


def knapsack(problem: Problem, seed: int) -> KnapsackSearcher:
    """The searcher registered as `knapsack`."""
    return KnapsackSearcher(problem, seed)
