"""The knapsack with prices for its limits: about the best levels for weighted errors, in a millisecond.

Everett's generalised Lagrange multipliers (1963): for given prices each axis chooses by itself, and raising one price
lowers every cost, so each price is found by bisection, one after the other. What rounding to levels leaves over is
spent greedily, by error saved per share of the slack. Costs that are no sum over decisions (bits times channels) are
made additive around a point; the caller projects the result.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from automc.projection import Projector
from automc.searcher import Problem
from automc.space import FloatArray, IntArray

HALVINGS = 24
ROUNDS = 2
"""How often every price is set anew given the others."""


@dataclass(frozen=True, eq=False)
class Additive:
    """Costs of moving one ordered axis at a time away from a point."""

    around: IntArray
    axes: IntArray
    """The ordered axes (O,)."""
    costs: FloatArray
    """Per limited metric, what each level costs above level 0 (M, O, V); infinite beyond an axis's top."""
    floor: FloatArray
    """Cost of all ordered axes at level 0, as far as costs are additive (M,)."""

    @cached_property
    def known(self) -> np.ndarray:
        """Which levels exist (O, V)."""
        return np.asarray(np.isfinite(self.costs[0]))

    def spare(self, projector: Projector) -> FloatArray:
        """What the limits leave above the cheapest levels (M,)."""
        return np.array(list(projector.limits.values())) - self.floor


def additive(problem: Problem, around: IntArray) -> Additive:
    """The costs of every limited metric, made additive around a point."""
    space, costing = problem.space, problem.projector.costing
    axes = np.flatnonzero(space.ordered)
    sizes = space.sizes[axes]
    rows = np.repeat(np.arange(len(axes)), sizes)
    levels = np.concatenate([np.arange(n) for n in sizes]) if len(axes) else np.zeros(0, dtype=np.int64)
    points = np.repeat(around[None], len(rows) + 1, axis=0)
    points[np.arange(len(rows)), axes[rows]] = levels
    cost = costing.batch(points, tuple(problem.projector.limits)).T  # (M, points + 1)
    table = np.full((len(cost), len(axes), int(sizes.max(initial=1))), np.inf)
    table[:, rows, levels] = cost[:, :-1]
    lowest = table[:, :, :1]
    floor = cost[:, -1] + (lowest[:, :, 0] - cost[:, -1:]).sum(axis=1)
    return Additive(around, axes, table - np.where(np.isfinite(lowest), lowest, 0.0), floor)


def padded(table: Additive, errors: list[FloatArray]) -> FloatArray:
    """Errors of the ordered axes (O, V), infinite beyond an axis's top."""
    result = np.full(table.known.shape, np.inf)
    for row, axis in enumerate(table.axes):
        result[row, : len(errors[axis])] = errors[axis]
    return result


def prices(table: Additive, errors: FloatArray, spare: FloatArray) -> FloatArray:
    """A price per metric (M,) at which the levels of least error plus priced cost meet every limit."""
    found = np.zeros(len(table.costs))
    finite = np.where(table.known, errors, 0.0)
    scale = max(float(finite.max(initial=0.0)), 1e-12) / np.maximum(np.abs(spare), 1e-12)
    for _ in range(ROUNDS if len(found) > 1 else 1):
        for metric in range(len(found)):
            found[metric] = _price(table, errors, spare, found, metric, float(scale[metric]))
    return found


def priced_levels(table: Additive, errors: FloatArray, price: FloatArray) -> IntArray:
    """Each axis's level of least error plus priced cost (O,); the cheapest one among equals."""
    total = errors + np.tensordot(price, np.where(table.known, table.costs, 0.0), axes=1)
    return np.asarray(total.argmin(axis=1))


def relaxed(projector: Projector, table: Additive, errors: FloatArray) -> IntArray:
    """A feasible point with about the least error sum; axes without an order stay as they are."""
    point = table.around.copy()
    if len(table.axes):
        spare = table.spare(projector)
        levels = priced_levels(table, errors, prices(table, errors, spare))
        point[table.axes] = spend(table, errors, levels, spare)
    return projector.project(point, fill=True)


def _price(
    table: Additive, errors: FloatArray, spare: FloatArray, others: FloatArray, metric: int, scale: float
) -> float:
    """The least price of one metric that meets its limit, given the others' prices."""
    costs = np.where(table.known, table.costs, 0.0)
    given = errors + np.tensordot(np.where(np.arange(len(others)) == metric, 0.0, others), costs, axes=1)
    rows = np.arange(len(errors))

    def fits(price: float) -> bool:
        chosen = (given + price * costs[metric]).argmin(axis=1)
        return bool(costs[metric, rows, chosen].sum() <= spare[metric])

    if fits(0.0):
        return 0.0
    high = scale
    for _ in range(60):
        if fits(high):
            break
        high *= 4.0
    low = high / 4.0 if high > scale else 0.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def spend(table: Additive, errors: FloatArray, levels: IntArray, spare: FloatArray) -> IntArray:
    """Raises levels while the slack lasts: the most error saved per share of the slack first."""
    levels, rows = levels.copy(), np.arange(len(levels))
    for _ in range(4 * len(levels)):
        here = table.costs[:, rows, levels]  # (M, O)
        slack = np.maximum(spare - here.sum(axis=1), 0.0)
        more = table.costs - here[:, :, None]
        need = (more / np.maximum(slack, 1e-12)[:, None, None]).max(axis=0)  # (O, V), share of the tightest slack
        saved = errors[rows, levels][:, None] - errors
        useful = table.known & (need <= 1.0) & (saved > 0.0)
        worth = np.divide(saved, np.maximum(need, 1e-9), out=np.full(saved.shape, -np.inf), where=useful)
        axis, level = np.unravel_index(int(worth.argmax()), worth.shape)
        if not np.isfinite(worth[axis, level]):
            break
        levels[axis] = level
    return levels
