"""Dynamic programming on the layers' own errors, and what told scores say about how to weigh them.

SPDY (Frantar and Alistarh 2022, section 3): each layer's error at each level is additive by assumption, a
multiple-choice knapsack picks levels within the budget, and what is searched is one error coefficient a layer, scored
by the real model. Deviations:
* Errors are measured on calibration data instead of assumed quadratic in the level.
* Coefficients come from the told scores by regression and Thompson sampling (see `coefficients`) once there are
  enough of them, and from random mutations of the best point's before.
* Several limits are met by prices (see `relaxation`); with a single one the dynamic program is exact for additive
  costs. Others are made additive around the best point, and the projection guarantees every limit.
* Some solutions aim below the budget to populate the front.
"""

from typing import Any

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers.baselines import uniform_point
from automc.searchers.coefficients import Regression, implied
from automc.searchers.history import History
from automc.searchers.relaxation import Additive, additive, padded, prices, relaxed
from automc.space import FloatArray, IntArray

BUCKETS = 1000
SPREAD = 0.5
"""Deviation of the logarithm of a mutated coefficient."""
ENOUGH = 8
"""Scored points before the regression is asked."""
FRONT_EVERY = 10
"""One in so many proposals aims at a tighter budget."""


class KnapsackSearcher:
    """Proposes knapsack solutions under coefficients that the told scores make likely."""

    proposer = "knapsack"

    def __init__(self, problem: Problem, seed: int) -> None:
        self.history = History(problem, seed)
        self._errors: list[FloatArray] | None = None
        self._table = additive(problem, uniform_point(problem, problem.projector))

    def ask(self) -> Policy:
        """The plain solution where nothing is told; then one under drawn coefficients."""
        rng, problem = self.history.rng(), self.history.problem
        best = self.history.ranked()
        if not best:
            return self.history.propose(plain_solution(problem, self.errors()), rng)
        projector = problem.projector
        if rng.random() < 1.0 / FRONT_EVERY:
            projector = projector.tightened(float(rng.uniform(0.6, 0.95)))
        table = self._additive_around(self.history.points[best[0]])
        if len(best) >= ENOUGH:
            coefficients, criteria = self._regressed(best, rng)
        else:
            coefficients, criteria = self._mutated(table, rng), table.around
        weighted = [c * e for c, e in zip(coefficients, self.errors(), strict=True)]
        return self.history.propose(solve(problem, projector, table.with_criteria(criteria), weighted), rng)

    def tell(self, evaluation: Evaluation) -> None:
        """Takes note of a score, whoever proposed the policy."""
        self.history.tell(evaluation)

    def state_dict(self) -> dict[str, Any]:
        """How much was told."""
        return {"told": len(self.history.points)}

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

    def _additive_around(self, point: IntArray) -> Additive:
        """Additive costs around a point; the best point changes less often than it is asked for."""
        if not np.array_equal(self._table.around, point):
            self._table = additive(self.history.problem, point)
        return self._table

    def _mutated(self, table: Additive, rng: np.random.Generator) -> FloatArray:
        """Coefficients that make the table's point a solution, a tenth to all of them moved."""
        rows = padded(table, self.errors())
        price = prices(table, rows, table.spare(self.history.problem.projector))
        coefficients = np.ones(len(table.around))
        coefficients[table.axes] = implied(table, rows, price, table.around[table.axes])
        moved = rng.random(len(coefficients)) < max(float(rng.choice((0.1, 0.3, 1.0))), 1.0 / len(coefficients))
        return np.asarray(coefficients * np.exp(SPREAD * rng.standard_normal(len(coefficients)) * moved))

    def _regressed(self, best: list[int], rng: np.random.Generator) -> tuple[FloatArray, IntArray]:
        """Coefficients and criteria drawn from what the told scores leave likely."""
        points = [self.history.points[i] for i in best]
        scores = [self.history.scores[i] for i in best]
        return Regression.of(self.history.problem.space, self.errors(), points, scores).draw(rng)


def plain_solution(problem: Problem, errors: list[FloatArray]) -> IntArray:
    """The feasible point with about the least error sum: costs made additive around the uniform policy, then around
    the first solution."""
    point = uniform_point(problem, problem.projector)
    for _ in range(2):
        point = solve(problem, problem.projector, additive(problem, point), errors)
    return point


def solve(problem: Problem, projector: Projector, table: Additive, errors: list[FloatArray]) -> IntArray:
    """The feasible point with about the least error sum for additive costs; axes without an order as in the table."""
    found = [relaxed(problem, projector, table, padded(table, errors))]
    if len(projector.limits) == 1:
        found.append(_exact(projector, table, errors))
    return min(found, key=lambda point: sum(float(e[level]) for e, level in zip(errors, point, strict=True)))


def _exact(projector: Projector, table: Additive, errors: list[FloatArray]) -> IntArray:
    """The dynamic program's point for a single limit."""
    point = table.around.copy()
    costs = [c[known] for c, known in zip(table.costs[0], table.known, strict=True)]
    point[table.axes] = knapsack_levels([errors[a] for a in table.axes], costs, float(table.spare(projector)[0]))
    return projector.project(point, fill=True)


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
