"""The one place where a policy becomes feasible.

AMC clips an action to what the rest of the budget allows (He et al. 2018, section 3.2 and algorithm 1); HAQ lowers
bits until the model fits (Wang et al. 2019, section 3.3). Both are the same projection onto a monotone set, done here
on levels, after rounding and coupling, for several limits at once. Deviations: the lower bound never wins over the
budget (a budget the lower bounds cannot meet is refused at the start), and rounding can never exceed a limit because
costs are evaluated at whole channels and whole bits.
"""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from automc import wider
from automc.budget import Budget
from automc.costs.latency import Latency, LatencyTable
from automc.costs.table import Candidates, Cost, CostTable, FloatArray, total
from automc.errors import BudgetError
from automc.graph.ranks import METHODS, find
from automc.policy import Policy
from automc.registry import COSTS
from automc.space import Axis, IntArray, SearchSpace, Value, check_policy, kept_units

_LINE = np.linspace(0.0, 1.0, 65)


class Costing:
    """Costs of points and policies of one space: every registered cost, in batches, and latency where it is known."""

    def __init__(self, space: SearchSpace, latency: LatencyTable | None = None) -> None:
        self.space = space
        self.table = CostTable(space.facts)
        self.costs: dict[str, Cost] = {name: COSTS.load(name) for name in COSTS}
        self.latency = latency
        if latency is not None:
            latency.check(space.facts)
            self.costs[Latency.name] = Latency(latency)
        self._columns = self._locate_axes()

    def dense(self) -> dict[str, float]:
        """Every cost of the dense model."""
        return {name: cost.dense(self.table) for name, cost in self.costs.items()}

    def batch(self, levels: IntArray, names: tuple[str, ...]) -> FloatArray:
        """The named costs (B, N) of points given as levels (B, A)."""
        shapes = self.table.shapes(self.candidates(levels))
        return np.stack([total(self.costs[name], self.table, shapes) for name in names], axis=1)

    def of(self, levels: IntArray) -> dict[str, float]:
        """Every cost of one point."""
        names = tuple(self.costs)
        return dict(zip(names, self.batch(levels[None], names)[0].tolist(), strict=True))

    def of_policy(self, policy: Policy) -> dict[str, float]:
        """Every cost of one policy, whether or not its values lie on the space's levels."""
        check_policy(policy, self.space.facts)
        shapes = self.table.shapes(_policy_candidates(policy, self.table))
        return {name: float(total(cost, self.table, shapes)[0]) for name, cost in self.costs.items()}

    def by_layer(self, levels: IntArray, name: str) -> FloatArray:
        """One cost of one point, split by layer (L,)."""
        parts: FloatArray = self.costs[name].layers(self.table, self.table.shapes(self.candidates(levels[None])))[0]
        return parts

    def candidates(self, levels: IntArray) -> Candidates:
        """Points (B, A) as the cost table wants them."""
        batch, dense = len(levels), self.table.dense
        arrays = {}
        for name, attribute in zip(_FIELDS, _ATTRIBUTES, strict=True):
            whole: FloatArray = getattr(dense, attribute)
            arrays[name] = np.repeat(whole, batch, axis=0)  # cheaper than a view, at these sizes
            if name in self._columns:
                axes, columns, values = self._columns[name]
                arrays[name][:, columns] = values[np.arange(len(axes)), levels[:, axes]]
        return Candidates(*arrays.values())

    def _locate_axes(self) -> dict[str, tuple[IntArray, IntArray, FloatArray]]:
        """Per field: its axes, once a place, the columns they set, and a padded table of values by level."""
        facts = self.space.facts
        columns = {("group", g.name): i for i, g in enumerate(facts.groups)}
        columns |= {("layer", x.name): i for i, x in enumerate(facts.layers)}
        columns |= {("block", b.name): i for i, b in enumerate(facts.blocks)}
        units = {g.name: g.units for g in facts.groups}
        located = {}
        for name in _FIELDS:
            chosen = [(i, a, place) for i, a in enumerate(self.space.axes) if _sets(a) == name for place in a.places]
            if not chosen:
                continue
            values = np.zeros((len(chosen), max(len(a.values) for _, a, _ in chosen)))
            for row, (_, axis, place) in enumerate(chosen):
                numbers = np.array([_number(name, v, self.table) for v in axis.values], dtype=np.float64)
                values[row, : len(numbers)] = kept_units(numbers, units[place]) if name == "keep" else numbers
            axes = np.array([i for i, _, _ in chosen], dtype=np.int64)
            located[name] = (axes, np.array([columns[a.kind, p] for _, a, p in chosen], dtype=np.int64), values)
        return located


class Projector:
    """Makes points feasible; every searcher goes through the same one."""

    def __init__(self, space: SearchSpace, budget: Budget, latency: LatencyTable | None = None) -> None:
        self.space = space
        self.costing = Costing(space, latency)
        self.budget = budget
        self.limits = budget.resolve(self.costing.dense(), 1 if latency is None else latency.batch)
        self._names = tuple(self.limits)
        self._least = self.costing.batch(space.smallest[None], self._names)[0]
        """Of each limited cost the smallest that can be reached."""
        off = None if latency is None else latency.error
        room = np.array([1.0 + (off or 0.0) if name == Latency.name else 1.0 for name in self._names])
        self._bounds = np.maximum(np.array(list(self.limits.values())) / room, self._least)
        """What points are made to meet: of seconds as much less than the limit as predictions of the table are off."""
        patterns = np.array([a.field == "pattern" for a in space.axes], dtype=np.bool_)
        self._patterns = patterns if Latency.name in self.limits and patterns.any() else None
        """Axes without an order that a limit depends on; their first value costs least."""
        self._refuse_unreachable()

    def feasible(self, levels: IntArray) -> bool:
        """Whether a point meets every limit."""
        return bool(self.fits(levels[None])[0])

    def fits(self, levels: IntArray) -> NDArray[np.bool_]:
        """Which of several points (B, A) meet every limit (B,)."""
        costs = self.costing.batch(levels, self._names)
        return np.asarray((costs <= self._bounds).all(axis=1))

    def weigh(self, levels: IntArray, metric: str) -> tuple[FloatArray, bool]:
        """Each layer's part of one cost (L,) of a point, and whether the point meets every limit."""
        costing = self.costing
        shapes = costing.table.shapes(costing.candidates(levels[None]))
        costs = np.array([total(costing.costs[name], costing.table, shapes)[0] for name in self._names])
        parts: FloatArray = costing.costs[metric].layers(costing.table, shapes)[0]
        return parts, bool((costs <= self._bounds).all())

    def project(self, levels: IntArray, *, fill: bool = False) -> IntArray:
        """The feasible point nearest below `levels` on the line to the smallest one, its slack then spent.

        A feasible point stays as it is. `fill` spends what is left of the budget by rising towards the dense model.
        Criteria are never changed; patterns, which latency depends on, only where even the smallest point with these is
        too slow.
        """
        floor = np.where(self.space.ordered, 0, levels)
        if self._patterns is not None and not self.feasible(floor):
            levels = np.where(self._patterns, 0, levels)
            floor = np.where(self.space.ordered, 0, levels)
        point = levels.copy() if self.feasible(levels) else self._rise(floor, levels)
        return self._rise(point, np.where(self.space.ordered, self.space.largest, levels)) if fill else point

    def highest(self, levels: IntArray, axis: int) -> int:
        """The highest feasible level of one axis while all others stay; `levels` must be feasible at its level 0."""
        points = np.repeat(levels[None], int(self.space.sizes[axis]), axis=0)
        points[:, axis] = np.arange(len(points))
        return max(int(self.fits(points).sum()) - 1, 0)

    def tightened(self, factor: float) -> "Projector":
        """The same projection for every limit times `factor`, but never below the smallest reachable value."""
        return self._bounded(self._bounds * factor)

    def limited(self, metric: str, bound: float) -> "Projector":
        """The same projection with another bound on one metric, but never below the smallest reachable value."""
        return self._bounded(np.where([name == metric for name in self._names], bound, self._bounds))

    def _bounded(self, bounds: FloatArray) -> "Projector":
        """The same projection under other bounds, each raised to what can be reached."""
        other = object.__new__(Projector)
        other.__dict__.update(self.__dict__)
        other._bounds = np.maximum(bounds, self._least)
        other.limits = dict(zip(self._names, other._bounds.tolist(), strict=True))
        return other

    def _rise(self, start: IntArray, goal: IntArray) -> IntArray:
        """From a feasible `start` as far towards `goal` as fits: along the line first, then axis by axis."""
        line = start + np.floor(_LINE[:, None] * (goal - start)).astype(np.int64)
        point: IntArray = line[int(self.fits(line).sum()) - 1]
        gaps = np.arange(len(point))
        while True:
            gaps = gaps[goal[gaps] > point[gaps]]
            if gaps.size:
                single = np.repeat(point[None], gaps.size, axis=0)
                single[np.arange(gaps.size), gaps] += 1
                gaps = gaps[self.fits(single)]  # costs never fall on the way up: what does not fit now never will
            if not gaps.size:
                return point
            order = gaps[np.argsort(-(goal - point)[gaps] / self.space.sizes[gaps], kind="stable")]
            steps = np.zeros((len(order), len(point)), dtype=np.int64)
            steps[np.arange(len(order)), order] = 1
            together = point + np.cumsum(steps, axis=0)
            point = together[int(self.fits(together).sum()) - 1]

    def _refuse_unreachable(self) -> None:
        smallest = dict(zip(self._names, self._least.tolist(), strict=True))
        dense = self.costing.dense()
        for name, bound in self.limits.items():
            if smallest[name] > bound:
                raise BudgetError(
                    f"{name} must be at most {_amount(name, bound)}, but the smallest reachable value is "
                    f"{_amount(name, smallest[name])} ({100 * smallest[name] / dense[name]:.2f}% of dense), bound by "
                    f"{', '.join(self._binding(name))}: {self._remedy(name)}."
                )

    def _binding(self, name: str, most: int = 3) -> list[str]:
        """What takes most of the smallest cost, and which share of it."""
        point, table = self.space.smallest, self.costing.table
        parts = dict(zip((x.name for x in self.space.facts.layers), self.costing.by_layer(point, name), strict=True))
        whole = self.costing.of(point)[name]
        parts["what lies outside layers"] = whole - sum(parts.values())
        if name == "size":
            parts["what lies outside layers"] -= table.header_bytes
            parts["the file's header"] = table.header_bytes
        largest = sorted(parts, key=lambda part: -parts[part])[:most]
        return [f"{part} ({100 * parts[part] / whole:.0f}%)" for part in largest if parts[part] > 0]

    def _remedy(self, name: str) -> str:
        """What to do about a limit that cannot be met: which registered spaces meet it, with all others."""
        found = wider.spaces(self.space.facts)
        latency = self.costing.latency
        costs = {space: Costing(other, latency).of(other.smallest) for space, other in found.items()}
        enough = [space for space in wider.nearest(self.space, found) if within(costs[space], self.limits)]
        if enough:
            return f"raise the limit, or choose a space that reaches it: {wider.listed(enough)}"
        if any(cost[name] <= self.limits[name] for cost in costs.values()):
            return "raise the limits; no registered space meets all of them"
        best = min(costs, key=lambda space: costs[space][name], default=None)
        if best is None or costs[best][name] >= self.costing.of(self.space.smallest)[name]:
            return "raise the limit; no registered space does better"
        amount = _amount(name, costs[best][name])
        return f"raise the limit; no registered space reaches it, {best} comes nearest with {amount}"


_FIELDS = (
    "keep",
    "weight_bits",
    "activation_bits",
    "sparsity",
    "pattern",
    "codebook",
    "rank",
    "factorization",
    "blocks",
)
"""What axes set, in the order of `Candidates`."""
_ATTRIBUTES = tuple(f.name for f in fields(Candidates))


def _sets(axis: Axis) -> str:
    """What of a candidate an axis sets."""
    return "blocks" if axis.kind == "block" else axis.field


def _number(name: str, value: Value, table: CostTable) -> float:
    """A value as candidates hold it."""
    if name == "pattern":
        return table.code(str(value))
    if name == "codebook":
        return float(value == "kmeans")
    if name == "factorization":
        find(str(value))
        return float(list(METHODS).index(str(value)))
    return float(value)


def _policy_candidates(policy: Policy, table: CostTable) -> Candidates:
    facts = table.facts
    groups, layers = dict(policy.groups), dict(policy.layers)
    dense = table.dense
    keep = np.array([groups[g.name].keep if g.name in groups else 1.0 for g in facts.groups])
    units, bits = kept_units(keep, dense.units), dense.weight_bits.copy()
    activations, sparsity, shared = dense.activation_bits.copy(), dense.sparsity.copy(), dense.shared.copy()
    rank, method, pattern = dense.rank.copy(), dense.method.copy(), dense.pattern.copy()
    blocks = np.array([[policy.block(b.name).keep for b in facts.blocks]], dtype=np.float64).reshape(1, -1)
    for i, layer in enumerate(facts.layers):
        if layer.name in layers:
            decision = layers[layer.name]
            bits[0, i], activations[0, i] = decision.weight_bits, decision.activation_bits
            sparsity[0, i], pattern[0, i] = decision.sparsity, table.code(decision.pattern)
            shared[0, i] = _number("codebook", decision.codebook, table)
            rank[0, i], method[0, i] = decision.rank, _number("factorization", decision.factorization, table)
    return Candidates(units, bits, activations, sparsity, pattern, shared, rank, method, blocks)


def within(costs: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether costs meet every limit."""
    return all(costs[name] <= bound for name, bound in limits.items())


def _amount(metric: str, value: float) -> str:
    """A number as budgets write it."""
    if metric == Latency.name:
        return f"{1e3 * value:.4g}ms"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.4g}"
