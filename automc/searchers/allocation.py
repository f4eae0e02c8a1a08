"""The budget shared out among the layers: the multiple-choice knapsack over their calibrated errors.

An axis takes exactly one level; the sum of weighted errors is minimised within every limit. One limit is solved by
dynamic programming, exactly up to the width of a bucket (SPDY, Frantar and Alistarh 2022, section 3), several by prices
(`relaxation`). Deviations from SPDY:
* Errors are measured on calibration data instead of assumed quadratic in the level.
* Costs are rounded up to buckets, never down, so that a solution keeps the budget; what rounding leaves is spent.
* Costs that are no sum over decisions (a layer's depends on the channels of two groups, or on channels and bits) are
  made additive around a point, then around the solution, until the error sum falls no further; the projection
  guarantees every limit.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from automc.projection import Projector
from automc.searcher import Problem
from automc.searchers.baselines import uniform_point
from automc.searchers.coefficients import Regression, errors_of, implied
from automc.searchers.relaxation import Additive, additive, padded, prices, relaxed, spend
from automc.space import FloatArray, IntArray

BUCKETS = 10_000
"""As in SPDY's code."""
TABLES = 8
"""Of additive costs that are kept."""
ROUNDS = 5
"""How often costs are made additive around the latest solution, at most."""


class Allocation:
    """The knapsack of one problem, to be solved under many weightings of its errors."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._tables: dict[bytes, Additive] = {}
        """The latest few, by the point they were made around."""

    @cached_property
    def errors(self) -> list[FloatArray]:
        """Of every axis at every level."""
        return errors_of(self.problem)

    def plain(self) -> IntArray:
        """The solution for errors as they are."""
        start = uniform_point(self.problem, self.problem.projector)
        return self.solve(np.ones(len(start)), start)

    def solve(
        self, coefficients: FloatArray, around: IntArray, projector: Projector | None = None, *, thorough: bool = True
    ) -> IntArray:
        """A feasible point with about the least sum of errors times coefficients (A,); axes without an order stay as
        in `around`, where costs are made additive first. Not `thorough`: by prices alone, in two rounds."""
        projector = projector or self.problem.projector
        weighted = [c * e for c, e in zip(coefficients, self.errors, strict=True)]
        best, least = around, np.inf
        for _ in range(ROUNDS if thorough else 2):
            table = self._additive(best)
            point = relaxed(projector, table, padded(table, weighted))
            if total(weighted, point) >= least:
                break
            best, least = point, total(weighted, point)
        if len(projector.limits) > 1 or not thorough:
            return best
        exact = _exact(projector, self._additive(best), weighted)
        return exact if total(weighted, exact) < least else best

    def fresh(
        self,
        draw: Callable[[], tuple[FloatArray, IntArray]],
        seen: Callable[[IntArray], bool],
        tries: int,
        projector: Projector | None = None,
        *,
        thorough: bool = True,
    ) -> IntArray:
        """The first solution not `seen` before under drawn coefficients around a drawn point; the last of `tries`."""
        for _ in range(tries):
            point = self.solve(*draw(), projector, thorough=thorough)
            if not seen(point):
                break
        return point

    def likely(
        self,
        points: Sequence[IntArray],
        scores: Sequence[float],
        around: IntArray,
        projector: Projector,
        rng: np.random.Generator,
        *,
        thorough: bool = True,
    ) -> IntArray:
        """The solution under one draw of what the scores of some points leave likely: coefficients, and the levels of
        axes without an order (Thompson sampling, see `coefficients`); otherwise as `solve`."""
        space = self.problem.space
        coefficients, levels = Regression.of(space, self.errors, points, scores).draw(rng)
        return self.solve(coefficients, np.where(space.ordered, around, levels), projector, thorough=thorough)

    def implied(self, point: IntArray, projector: Projector | None = None) -> FloatArray:
        """Coefficients (A,) under which a point, whoever proposed it, is about the solution; 1 without an order."""
        table = self._additive(point)
        rows = padded(table, self.errors)
        coefficients = np.ones(len(point))
        price = prices(table, rows, table.spare(projector or self.problem.projector))
        coefficients[table.axes] = implied(table, rows, price, point[table.axes])
        return coefficients

    def _additive(self, point: IntArray) -> Additive:
        """Costs made additive around a point; what is drawn around one point reads them many times."""
        key = point.tobytes()
        if key not in self._tables:
            if len(self._tables) >= TABLES:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = additive(self.problem, point)
        return self._tables[key]


def total(errors: list[FloatArray], point: IntArray) -> float:
    """The error sum of a point."""
    return sum(float(e[level]) for e, level in zip(errors, point, strict=True))


def knapsack_levels(
    errors: list[FloatArray], costs: list[FloatArray], capacity: float, buckets: int = BUCKETS
) -> IntArray:
    """One level an item with the least error sum and a cost sum within capacity, by dynamic programming.

    Costs start at 0 at level 0 and are rounded up to capacity / buckets, so the true sum never exceeds capacity. Levels
    that cost nothing are free at any capacity; of equal levels the lowest is taken.
    """
    best = np.zeros(buckets + 1)  # the least error sum of the items so far, by capacity
    picks, weights = [], []
    for error, cost in zip(errors, costs, strict=True):
        weight = _in_buckets(cost, capacity, buckets)
        found, pick = best + error[0], np.zeros(buckets + 1, dtype=np.int64)
        for level in np.flatnonzero(weight[1:] <= buckets) + 1:
            raised = best[: buckets + 1 - weight[level]] + error[level]
            better = raised < found[weight[level] :]
            np.copyto(found[weight[level] :], raised, where=better)
            np.copyto(pick[weight[level] :], level, where=better)
        best = found
        picks.append(pick)
        weights.append(weight)
    levels = np.zeros(len(errors), dtype=np.int64)
    left = buckets
    for item in reversed(range(len(errors))):
        levels[item] = picks[item][left]
        left -= int(weights[item][levels[item]])
    return levels


def _in_buckets(cost: FloatArray, capacity: float, buckets: int) -> IntArray:
    """Costs in buckets, rounded up; one more than there are for what does not fit."""
    share = np.divide(cost, capacity, out=np.where(cost > 0, np.inf, 0.0), where=capacity > 0)
    return np.ceil(np.minimum(share * buckets - 1e-9, buckets + 1)).astype(np.int64)


def _exact(projector: Projector, table: Additive, errors: list[FloatArray]) -> IntArray:
    """The dynamic program's point for a single limit, what rounding left over spent."""
    point, spare = table.around.copy(), table.spare(projector)
    costs = [c[known] for c, known in zip(table.costs[0], table.known, strict=True)]
    levels = knapsack_levels([errors[a] for a in table.axes], costs, float(spare[0]))
    point[table.axes] = spend(table, padded(table, errors), levels, spare)
    return projector.project(point, fill=True)
