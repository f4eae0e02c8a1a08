"""One walk over the layers: what the agent sees, what it may do, what it did; nothing is evaluated here.

AMC (He et al. 2018, section 3.1 and 3.2): one step a layer, an eleven-entry state, an action clipped to what the rest
of the budget allows. HAQ (Wang et al. 2019): one decision a step, unclipped, and a repair at the end. Deviations:
* Several decisions at a layer: the action is a vector, one entry a field the agent owns; a field the layer does not
  offer is ignored and counts as 1.
* Decisions of others are part of the state, those at the step's own places, and on average those that no step is at:
  they are shown at the step before them. A block, a group and a layer are told apart.
* A group of coupled channels is decided at the first layer that makes them.
* reduced, rest and the layer's cost are of one metric, macs where limited, else the first limited one; the reference
  code mixes two.
* A layer with several groups or decisions of one kind takes one step for each.
* The clip keeps every limit after rounding (see `projection`), and what is remembered is the executed action.
* The budget may be part of the state, so that one agent serves many.
"""

import bisect
import copy
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from automc.agent import Transition
from automc.errors import PolicyError
from automc.files import sha256
from automc.repair import repaired
from automc.rewards import Dense
from automc.searcher import Problem
from automc.space import Axis, Field, FloatArray, IntArray

RATIOS: tuple[Field, ...] = ("keep", "sparsity", "rank")
"""Fields that say how much of a layer stays."""
BITS: tuple[Field, ...] = ("weight_bits", "activation_bits")
FIELDS = (*RATIOS, *BITS)
"""Fields of numbers, in the order they are decided at a layer."""
Act = Callable[[FloatArray], FloatArray]
"""From a state (S,) to an action (A,), entries in [0, 1]."""
STATIC_FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "cost")
DYNAMIC_FEATURES = ("reduced", "rest")


@dataclass(frozen=True, slots=True)
class WalkSettings:
    """What an agent decides, in which steps, and what it is shown."""

    owned: tuple[Field, ...] | None = None
    """Fields the agent decides, as far as the space opens them; None: all of `FIELDS`."""
    stepwise: bool = False
    """One decision a step instead of one layer a step; the state says which field it is."""
    clipped: bool = True
    """Each action is clipped to what the rest of the budget allows; otherwise the finished walk is repaired."""
    others: bool = True
    """Whether the state holds what others decided."""
    budgeted: bool = False
    """Whether the state holds the budget of the episode."""


@dataclass(frozen=True, slots=True)
class Step:
    """One layer, or one decision at a layer, at which the agent acts."""

    layer: int
    axes: dict[str, int]
    """Axis index by owned field."""
    others: dict[tuple[str, Field], list[int]]
    """Axis indices by kind and field of what somebody else decides."""


class Walk:
    """The steps and features of one problem for an agent that owns some fields; shared by all its episodes."""

    def __init__(self, problem: Problem, settings: WalkSettings | None = None) -> None:
        self.problem, self.space, self.projector = problem, problem.space, problem.projector
        self.settings = settings or WalkSettings()
        present = self.space.fields
        asked = self.settings.owned
        self.owned = tuple(f for f in FIELDS if f in present and (asked is None or f in asked))
        if not self.owned:
            raise PolicyError(
                f"An agent must own a field of the space; of {sorted(present)} it owns none: open keep or bits."
            )
        unowned = dict.fromkeys((a.kind, a.field) for a in self.space.axes if a.field not in self.owned)
        self.others = tuple(sorted(unowned)) if self.settings.others else ()
        """Kinds and fields of what somebody else decides and the state shows."""
        self.owned_axes = np.array([a.field in self.owned for a in self.space.axes])
        self.steps = self._find_steps()
        limits = self.projector.limits
        self.metric = "macs" if "macs" in limits else next(iter(limits))
        most = self.projector.costing.batch(self.space.largest[None], tuple(limits))[0]
        self.priced = max(zip(limits, most, strict=True), key=lambda item: float(item[1]) / limits[item[0]])[0]
        """The metric of a budgeted walk's budget: of the limited ones the one that the largest point exceeds most."""
        self.budget = 1.0
        """Budget of the episode in [0, 1] of `reach`; see `under`."""
        self._last: tuple[bytes, tuple[FloatArray, bool]] = (b"", (np.zeros(0), False))
        self._count()
        allowed = min(limits[self.priced] / self._priced_dense, self.share(self.space.largest))
        self.reach = self.share(self.space.smallest), allowed
        """The smallest reachable share of the dense cost, and the largest the problem's budget allows."""

    @property
    def action_size(self) -> int:
        """Entries of an action: one a field the agent owns, or one in all."""
        return 1 if self.settings.stepwise else len(self.owned)

    @property
    def state_size(self) -> int:
        """Entries of a state: eight static, two dynamic, the last executed action, the others' decisions, then which
        decision it is and the budget, where the walk shows them."""
        known = len(STATIC_FEATURES) + len(DYNAMIC_FEATURES) + self.action_size + len(self.others)
        return known + self.settings.stepwise + self.settings.budgeted

    @property
    def dense(self) -> Dense:
        """What rewards are measured against."""
        costing = self.projector.costing
        return Dense(self.problem.dense_score, self.metric, costing.costs[self.metric].dense(costing.table))

    @property
    def digest(self) -> str:
        """A hash of the model, the decisions and the form of states and actions: an agent fits walks of its own."""
        axes = [[a.key, a.values] for a in self.space.axes]
        form = [asdict(self.settings), self.owned, self.state_size, self.action_size, len(self.steps), self.metric]
        form += [self.priced, *self.reach] if self.settings.budgeted else []
        return sha256(json.dumps([self.space.facts.fingerprint, axes, form]).encode())

    def start(self, given: IntArray) -> IntArray:
        """The levels before the first step: the agent's axes at their lowest, the others as given, made feasible."""
        levels = np.where(self.owned_axes, 0, given)
        return self.projector.project(levels)

    def execute(self, levels: IntArray, step: Step, action: FloatArray) -> IntArray:
        """The levels after a step: the action's, as far as the budget allows with all undecided axes at their
        lowest; in an unclipped walk the action's own."""
        if action.shape != (self.action_size,) or not np.isfinite(action).all():
            raise PolicyError(
                f"An action must be {self.action_size} finite numbers in [0, 1]; {action} is not: mend it."
            )
        wanted = {
            axis: _level(self.space.axes[axis], float(value))
            for axis, value in zip(self._entries(step), action.clip(0.0, 1.0), strict=True)
            if axis >= 0
        }
        return self._decide(levels, wanted)

    def finish(self, levels: IntArray) -> IntArray:
        """The feasible levels at the end of an episode: repaired, last layer first, where nothing was clipped."""
        return levels if self.settings.clipped else repaired(self.projector, levels, self._last_first)

    def settle(self, levels: IntArray) -> IntArray:
        """Any levels as this walk would execute them; what the agent does not own stays, where a budget can be met."""
        point = self.start(levels)
        for step in self.steps:
            point = self._decide(point, {axis: int(levels[axis]) for axis in step.axes.values()})
        return self.finish(point)

    def executed(self, levels: IntArray, step: Step) -> FloatArray:
        """The action (A,) that the levels at a step amount to; 1 for fields the layer lacks."""
        return np.array([_action(self.space.axes[i], int(levels[i])) if i >= 0 else 1.0 for i in self._entries(step)])

    def states(self, levels: IntArray, first: int = 0, last: int | None = None) -> FloatArray:
        """States (steps, S) of steps `first` to `last` of an episode whose executed levels are these.

        What is undecided at a step matters to none of them: no layer's cost depends on decisions at later layers.
        """
        chosen = range(first, len(self.steps) if last is None else last)
        reduced = np.cumsum(self._dense_layers - self._weighed(levels)[0]) / self._dense_total
        states = np.ones((len(chosen), self.state_size))
        for row, index in enumerate(chosen):
            step = self.steps[index]
            saved = reduced[step.layer - 1] if step.layer else 0.0
            previous = self.executed(levels, self.steps[index - 1]) if index else np.ones(self.action_size)
            others = [self._shown(levels, step.others.get(n, [])) for n in self.others]
            states[row] = (*self._static[index], saved, self._rest[index], *previous, *others, *self._told(step))
        return np.clip(states, 0.0, 1.0)

    def share(self, levels: IntArray) -> float:
        """Cost of a point as a share of the dense model's, in the metric budgets are about."""
        return float(self.projector.costing.batch(levels[None], (self.priced,))[0, 0]) / self._priced_dense

    def under(self, share: float) -> "Walk":
        """This walk in an episode whose budget is that share of the dense cost, its other limits as they are.

        The share is cut to what is reachable, `reach`; a walk that does not show budgets stays as it is.
        """
        if not self.settings.budgeted:
            return self
        low, high = self.reach
        if not math.isfinite(share):
            raise PolicyError(
                f"A budget must be a share of the dense cost; {share} is none: give {low:.3g} to {high:.3g}."
            )
        share = min(max(share, low), high)
        other = copy.copy(self)
        given = self.problem.projector
        exact = share * self._priced_dense * (1.0 + 1e-12)  # so that a policy fits the budget it meets exactly
        other.projector = given.limited(self.priced, min(exact, given.limits[self.priced]))
        other._last = (b"", self._last[1])  # what fits is another matter there
        other.budget = (share - low) / (high - low) if high > low else 1.0
        return other

    def _shown(self, levels: IntArray, axes: list[int]) -> float:
        """Levels of some axes as a mean share of the highest; 1 of none."""
        return float(np.mean(levels[axes] / np.maximum(self.space.sizes[axes] - 1, 1))) if axes else 1.0

    def _told(self, step: Step) -> list[float]:
        """What the state says of the mode: which decision it is, and the budget."""
        told: list[float] = []
        if self.settings.stepwise:
            told.append(self.owned.index(next(iter(step.axes))) / max(len(self.owned) - 1, 1))
        return [*told, self.budget] if self.settings.budgeted else told

    def _entries(self, step: Step) -> list[int]:
        """Axis of each entry of an action, -1 for fields the layer lacks."""
        return list(step.axes.values()) if self.settings.stepwise else [step.axes.get(n, -1) for n in self.owned]

    def _decide(self, levels: IntArray, wanted: dict[int, int]) -> IntArray:
        """The levels with some axes, at their lowest so far, raised as wanted and allowed."""
        result = levels.copy()
        for axis, level in wanted.items():
            result[axis] = level
            if level and self.settings.clipped and not self._weighed(result)[1]:
                result[axis] = self.projector.highest(result, axis)
        return result

    def _weighed(self, levels: IntArray) -> tuple[FloatArray, bool]:
        """Layers' costs of a point, and whether it is feasible; what one step executes the next one's state is of."""
        key = levels.tobytes()
        if self._last[0] != key:
            self._last = (key, self.projector.weigh(levels, self.metric))
        return self._last[1]

    def _find_steps(self) -> tuple[Step, ...]:
        found: dict[tuple[int, int, int], Step] = {}
        seen: Counter[tuple[int, str]] = Counter()
        for index in np.flatnonzero(self.owned_axes).tolist():
            axis, layer = self.space.axes[index], int(self.space.layers[index])
            turn = seen[layer, axis.field]
            seen[layer, axis.field] += 1
            place = self.owned.index(axis.field) if self.settings.stepwise else 0
            found.setdefault((layer, turn, place), Step(layer, {}, {})).axes[axis.field] = index
        steps = tuple(found[key] for key in sorted(found))
        for index in np.flatnonzero(~self.owned_axes).tolist():
            axis = self.space.axes[index]
            for step in self._shown_at(steps, index):
                step.others.setdefault((axis.kind, axis.field), []).append(index)
        return steps

    def _shown_at(self, steps: tuple[Step, ...], index: int) -> list[Step]:
        """The steps whose states show somebody else's axis: at its place, else at the last layer up to its own."""
        axis, layer = self.space.axes[index], int(self.space.layers[index])
        before = max((s.layer for s in steps if s.layer <= layer), default=steps[0].layer)
        there = [s for s in steps if s.layer == before]
        places = [{(self.space.axes[i].kind, self.space.axes[i].place) for i in s.axes.values()} for s in there]
        return [s for s, of in zip(there, places, strict=True) if (axis.kind, axis.place) in of] or there

    def _count(self) -> None:
        """What no episode changes: in which order axes fall, and the dense model's costs and features."""
        falling = [step.axes[f] for step in self.steps for f in self.owned if f in step.axes]
        self._last_first = tuple(reversed(falling))
        costing = self.projector.costing
        shapes = costing.table.shapes(costing.table.dense)
        self._dense_layers: FloatArray = costing.costs[self.metric].layers(costing.table, shapes)[0]
        self._dense_total = float(self._dense_layers.sum())
        self._priced_dense = costing.costs[self.priced].dense(costing.table)
        self._rest = np.array([self._dense_layers[s.layer + 1 :].sum() for s in self.steps]) / self._dense_total
        self._static = self._scaled_static()

    def _scaled_static(self) -> FloatArray:
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
    return walk.finish(levels)


def transitions(walk: Walk, levels: IntArray, reward: float) -> list[Transition]:
    """Any policy as an episode: states, executed actions, the final reward on every step (AMC).

    In a budgeted walk the episode is one of the budget that the policy meets exactly, whatever it was made for: the
    goal it reached is taken for the goal it had (hindsight relabelling, Andrychowicz et al. 2017).
    """
    walk = walk.under(walk.share(levels)) if walk.settings.budgeted else walk
    states = walk.states(levels)
    actions = [walk.executed(levels, step) for step in walk.steps]
    last = len(actions) - 1
    return [
        Transition(states[i], actions[i], reward, states[min(i + 1, last)], done=i == last) for i in range(len(actions))
    ]


def _level(axis: Axis, action: float) -> int:
    """The level an action in [0, 1] asks for: the nearest share for keep, cells of equal width for the rest.

    HAQ's round((max - min + 1) * action + min - 0.5), without its rounding of halves to even numbers, which at the
    cells' edges, 0 and 1 among them, goes beyond the lowest or the highest bits.
    """
    if axis.field == "keep":
        above = min(bisect.bisect_left(axis.values, action), len(axis.values) - 1)
        below = max(above - 1, 0)
        return below if action - float(axis.values[below]) <= float(axis.values[above]) - action else above
    return min(int(action * len(axis.values)), len(axis.values) - 1)


def _action(axis: Axis, level: int) -> float:
    """The action in [0, 1] that stands for a level."""
    return float(axis.values[level]) if axis.field == "keep" else (level + 0.5) / len(axis.values)
