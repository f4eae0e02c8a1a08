"""One walk over the layers: what the agent sees, what it may do, what it did; nothing is evaluated here.

AMC (He et al. 2018, section 3.1 and 3.2): one step a layer, an eleven-entry state, an action clipped to what the rest
of the budget allows. Deviations:
* Several decisions at a layer: the action is a vector, one entry a field the agent owns; a field the layer does not
  offer is ignored and counts as 1. Decisions of others at the layer are part of the state.
* A group of coupled channels is decided at the first layer that makes them.
* reduced, rest and the layer's cost are of one metric, macs where limited, else the first limited one; the reference
  code mixes two.
* A layer with several groups or decisions of one kind takes one step for each.
* The clip keeps every limit after rounding (see `projection`), and what is remembered is the executed action.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from automc.errors import PolicyError
from automc.searcher import Problem
from automc.space import Axis, Field, FloatArray, IntArray

FIELDS: tuple[Field, ...] = ("keep", "sparsity", "rank", "weight_bits", "activation_bits")
"""Fields of numbers, in the order an action's entries are clipped."""
WORDS: tuple[Field, ...] = ("criterion", "pattern", "codebook", "factorization")
"""Fields an agent is shown and never owns."""
Act = Callable[[FloatArray], FloatArray]
"""From a state (S,) to an action (A,), entries in [0, 1]."""
STATIC_FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "cost")
DYNAMIC_FEATURES = ("reduced", "rest")


@dataclass(frozen=True, slots=True)
class Step:
    """One layer at which the agent decides something."""

    layer: int
    axes: dict[str, int]
    """Axis index by owned field."""
    others: dict[str, int]
    """Axis index by field somebody else decides."""


class Walk:
    """The steps and features of one problem for an agent that owns some fields; shared by all its episodes."""

    def __init__(self, problem: Problem, owned: Sequence[Field] | None = None) -> None:
        self.problem, self.space, self.projector = problem, problem.space, problem.projector
        present = {a.field for a in self.space.axes}
        self.owned = tuple(f for f in FIELDS if f in present and (owned is None or f in owned))
        if not self.owned:
            raise PolicyError(
                f"An agent must own a field of the space; of {sorted(present)} it owns none: open keep or bits."
            )
        self.other_fields = tuple(f for f in (*FIELDS, *WORDS) if f in present and f not in self.owned)
        self.owned_axes = np.array([a.field in self.owned for a in self.space.axes])
        self.steps = self._find_steps()
        limits = self.projector.limits
        self.metric = "macs" if "macs" in limits else next(iter(limits))

    @property
    def action_size(self) -> int:
        """Entries of an action: one a field the agent owns."""
        return len(self.owned)

    @property
    def state_size(self) -> int:
        """Entries of a state: eight static, two dynamic, the last executed action, the others' decisions."""
        return len(STATIC_FEATURES) + len(DYNAMIC_FEATURES) + len(self.owned) + len(self.other_fields)

    def start(self, given: IntArray) -> IntArray:
        """The levels before the first step: the agent's axes at their lowest, the others as given, made feasible."""
        levels = np.where(self.owned_axes, 0, given)
        return self.projector.project(levels)

    def execute(self, levels: IntArray, step: Step, action: FloatArray) -> IntArray:
        """The levels after a step: the action's, as far as the budget allows with all undecided axes at their
        lowest."""
        if action.shape != (self.action_size,) or not np.isfinite(action).all():
            raise PolicyError(
                f"An action must be {self.action_size} finite numbers in [0, 1]; {action} is not: mend it."
            )
        action, result = action.clip(0.0, 1.0), levels.copy()
        for entry, name in enumerate(self.owned):
            axis = step.axes.get(name)
            if axis is not None:
                wanted = _level(self.space.axes[axis], float(action[entry]))
                result[axis] = min(wanted, self.projector.highest(result, axis)) if wanted else 0
        return result

    def executed(self, levels: IntArray, step: Step) -> FloatArray:
        """The action (A,) that the levels at a step amount to; 1 for fields the layer lacks."""
        entries = [
            _action(self.space.axes[step.axes[n]], int(levels[step.axes[n]])) if n in step.axes else 1.0
            for n in self.owned
        ]
        return np.array(entries)

    def states(self, levels: IntArray, first: int = 0, last: int | None = None) -> FloatArray:
        """States (steps, S) of steps `first` to `last` of an episode whose executed levels are these."""
        chosen = range(first, len(self.steps) if last is None else last)
        partial = np.repeat(levels[None], len(chosen), axis=0)
        for row, index in enumerate(chosen):
            undecided = self._decided_at >= index
            partial[row, undecided] = self.space.largest[undecided]
        shapes = self.projector.costing.table.shapes(self.projector.costing.candidates(partial))
        costs = self.projector.costing.costs[self.metric].layers(self.projector.costing.table, shapes)  # (T, L)
        states = np.ones((len(chosen), self.state_size))
        for row, index in enumerate(chosen):
            step = self.steps[index]
            saved = (self._dense_layers[: step.layer] - costs[row, : step.layer]).sum() / self._dense_total
            previous = self.executed(levels, self.steps[index - 1]) if index else np.ones(len(self.owned))
            others = [self._share(levels, step.others[n]) if n in step.others else 1.0 for n in self.other_fields]
            states[row] = (*self._static[index], saved, self._rest[index], *previous, *others)
        return np.clip(states, 0.0, 1.0)

    def _share(self, levels: IntArray, axis: int) -> float:
        return float(levels[axis]) / max(int(self.space.sizes[axis]) - 1, 1)

    def _find_steps(self) -> tuple[Step, ...]:
        steps: dict[tuple[int, int], Step] = {}
        seen: Counter[tuple[int, str]] = Counter()
        others: dict[int, dict[str, int]] = {}
        for index, axis in enumerate(self.space.axes):
            layer = int(self.space.layers[index])
            if self.owned_axes[index]:
                turn = seen[layer, axis.field]
                seen[layer, axis.field] += 1
                step = steps.setdefault((layer, turn), Step(layer, {}, others.setdefault(layer, {})))
                step.axes[axis.field] = index
            else:
                others.setdefault(layer, {}).setdefault(axis.field, index)
        return tuple(steps[key] for key in sorted(steps))

    @cached_property
    def _decided_at(self) -> IntArray:
        """The step at which each axis is decided; -1 for others' axes, which stand from the start (A,)."""
        decided = np.full(len(self.space.axes), -1, dtype=np.int64)
        for index, step in enumerate(self.steps):
            decided[list(step.axes.values())] = index
        return decided

    @cached_property
    def _dense_layers(self) -> FloatArray:
        costing = self.projector.costing
        shapes = costing.table.shapes(costing.table.dense)
        parts: FloatArray = costing.costs[self.metric].layers(costing.table, shapes)[0]
        return parts

    @cached_property
    def _dense_total(self) -> float:
        return float(self._dense_layers.sum())

    @cached_property
    def _rest(self) -> FloatArray:
        """Share of the dense cost in layers behind each step's (T,)."""
        return np.array([self._dense_layers[s.layer + 1 :].sum() for s in self.steps]) / self._dense_total

    @cached_property
    def _static(self) -> FloatArray:
        """The static features, each scaled to [0, 1] over the steps (T, 8)."""
        rows = []
        for index, step in enumerate(self.steps):
            layer = self.space.facts.layers[step.layer]
            size = (*layer.input_size, 1, 1)
            kernel, stride = (layer.kernel or (1,))[0], (layer.stride or (0,))[0]
            cost = self._dense_layers[step.layer]
            rows.append((index, layer.out_channels, layer.in_channels, size[0], size[1], stride, kernel, cost))
        table = np.array(rows, dtype=np.float64)
        low, high = table.min(axis=0), table.max(axis=0)
        scaled: FloatArray = (table - low) / np.where(high > low, high - low, 1.0)
        return scaled


def run_episode(walk: Walk, given: IntArray, act: Act) -> IntArray:
    """Walks all layers with a policy `act(state) -> action`; returns the executed, feasible levels."""
    levels = walk.start(given)
    for index, step in enumerate(walk.steps):
        state = walk.states(levels, index, index + 1)[0]
        levels = walk.execute(levels, step, act(state))
    return levels


def _level(axis: Axis, action: float) -> int:
    """The level an action in [0, 1] asks for: the nearest share for keep, bins of equal width for the rest (HAQ)."""
    if axis.field == "keep":
        return axis.level(action)
    return min(int(action * len(axis.values)), len(axis.values) - 1)


def _action(axis: Axis, level: int) -> float:
    """The action in [0, 1] that stands for a level."""
    return float(axis.values[level]) if axis.field == "keep" else (level + 0.5) / len(axis.values)
