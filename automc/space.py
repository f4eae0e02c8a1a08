"""The search space: which decisions are open, at which group or layer, with which values.

A point is a vector of levels, one integer an axis. The values of an ordered axis ascend from the cheapest to the
dense one, so level 0 everywhere is the smallest model and the top level everywhere is the dense one; criteria
cost nothing and have no order.

An axis may decide the same of several places: one level for all of them. What hardware runs as one matrix (the query,
key and value of an attention) has one precision, so this is a limit of the space, not a repair of its points.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from automc.errors import PolicyError, SpaceError
from automc.graph.facts import ModelFacts
from automc.pattern import family, member
from automc.policy import FULL_BITS, BlockDecision, Codebooks, GroupDecision, LayerDecision, Policy, Recipe

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Value = float | int | str
Field = Literal[
    "keep", "criterion", "weight_bits", "activation_bits", "sparsity", "pattern", "codebook", "rank", "factorization"
]


GOVERNORS: Mapping[str, tuple[Field, ...]] = {
    "criterion": ("keep", "sparsity"),
    "pattern": ("sparsity",),
    "factorization": ("rank",),
    "codebook": ("weight_bits",),
}
"""Of a field, those at the same place whose dense value leaves it nothing to say."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One open decision."""

    place: str
    """Name of the group, layer or block; of several the first in forward order."""
    kind: Literal["group", "layer", "block"]
    field: Field
    values: tuple[Value, ...]
    also: tuple[str, ...] = ()
    """Further places of the same kind that this decides, too."""

    @property
    def places(self) -> tuple[str, ...]:
        """Everything it decides."""
        return (self.place, *self.also)

    @property
    def key(self) -> str:
        """A name unique in the space, used as the Optuna parameter's name."""
        return f"{self.kind}:{self.place}:{self.field}"

    @property
    def ordered(self) -> bool:
        """Whether cost never falls from one level to the next."""
        return self.field not in ("criterion", "pattern", "factorization")

    def level(self, value: Value) -> int:
        """The level of `value`, the nearest one for numbers, the family for a pattern; an unknown word raises
        PolicyError."""
        if value not in self.values and self.field == "pattern":
            value = family(str(value))
        if value in self.values:
            return self.values.index(value)
        if isinstance(value, str) or isinstance(self.values[0], str):
            raise PolicyError(f"{self.key} must be one of {self.values}; it is {value!r}: choose one of them.")
        numbers = np.array(self.values, dtype=np.float64)
        return int(np.abs(numbers - float(value)).argmin())


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """The open decisions of one model, in forward order of the layers they belong to.

    SpaceError for an axis of a place the model does not have, or for two axes that decide the same.
    """

    facts: ModelFacts
    axes: tuple[Axis, ...]
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        _check_axes(self.axes, self.facts)

    @property
    def fields(self) -> frozenset[Field]:
        """What is decided anywhere."""
        return frozenset(a.field for a in self.axes)

    @cached_property
    def sizes(self) -> IntArray:
        """Number of levels of every axis (A,)."""
        return np.array([len(a.values) for a in self.axes], dtype=np.int64)

    @cached_property
    def ordered(self) -> NDArray[np.bool_]:
        """Which axes have an order (A,)."""
        return np.array([a.ordered for a in self.axes], dtype=np.bool_)

    @cached_property
    def layers(self) -> IntArray:
        """Index of the first layer every axis belongs to (A,)."""
        first = first_layers(self.facts)
        return np.array([first[a.kind][a.place] for a in self.axes], dtype=np.int64)

    @property
    def smallest(self) -> IntArray:
        """The cheapest point; criteria at their first value."""
        return np.zeros(len(self.axes), dtype=np.int64)

    @property
    def largest(self) -> IntArray:
        """The dense point; criteria at their first value."""
        return np.where(self.ordered, self.sizes - 1, 0)

    def decode(self, levels: Sequence[int] | IntArray) -> Policy:
        """The policy at a point."""
        changes: dict[str, dict[str, dict[str, Any]]] = {"group": {}, "layer": {}, "block": {}}
        for axis, level in zip(self.axes, levels, strict=True):
            for place in axis.places:
                changes[axis.kind].setdefault(place, {})[axis.field] = axis.values[int(level)]
        facts, kinds = self.facts, changes
        return Policy(
            facts.fingerprint,
            tuple((g.name, GroupDecision(**kinds["group"][g.name])) for g in facts.groups if g.name in kinds["group"]),
            tuple((x.name, _layer(kinds["layer"][x.name])) for x in facts.layers if x.name in kinds["layer"]),
            self.recipe,
            tuple((b.name, BlockDecision(**kinds["block"][b.name])) for b in facts.blocks if b.name in kinds["block"]),
        )

    def encode(self, policy: Policy) -> IntArray:
        """The point nearest to a policy, of places decided together by the first one; a policy of another model or
        with unknown places raises PolicyError."""
        check_policy(policy, self.facts)
        decisions = {"group": policy.group, "layer": policy.layer, "block": policy.block}
        return np.array([a.level(getattr(decisions[a.kind](a.place), a.field)) for a in self.axes], dtype=np.int64)

    def plain(self, levels: IntArray) -> IntArray:
        """The point with decisions that change nothing at their first value: equal for equal models.

        What ranks units or weights all of which stay, how a whole layer would be factored, what float weights share,
        and everything inside residual blocks that are left out.
        """
        result = levels.copy()
        for axis, governors in self._governed:
            if (levels[governors] == self.sizes[governors] - 1).all():
                result[axis] = 0
        for axis, blocks in self._inside:
            if not levels[blocks].any():
                result[axis] = 0
        return result

    @cached_property
    def _governed(self) -> tuple[tuple[int, list[int]], ...]:
        """Axes that mean nothing where others, one for each of their places, are at their dense values."""
        at = {(a.kind, place, a.field): i for i, a in enumerate(self.axes) for place in a.places}
        found = (
            (i, [at.get((a.kind, place, f), -1) for place in a.places])
            for i, a in enumerate(self.axes)
            for f in GOVERNORS.get(a.field, ())
        )
        return tuple((axis, governors) for axis, governors in found if min(governors) >= 0)

    @cached_property
    def _inside(self) -> tuple[tuple[int, list[int]], ...]:
        """Axes all of whose places lie in residual blocks that may be left out, with the axes that say so."""
        of_block = {
            place: i for i, a in enumerate(self.axes) if a.kind == "block" and 0 in a.values for place in a.places
        }
        home = {layer: of_block[b.name] for b in self.facts.blocks if b.name in of_block for layer in b.layers}
        found = ((i, [home.get(n, -1) for n in _layers_of(a, self.facts)]) for i, a in enumerate(self.axes))
        return tuple((axis, blocks) for axis, blocks in found if blocks and min(blocks) >= 0)

    def sample(self, rng: np.random.Generator) -> IntArray:
        """A point drawn uniformly, each axis by itself."""
        return rng.integers(0, self.sizes)

    def neighbours(self, levels: IntArray, rng: np.random.Generator, changes: int = 1, reach: int = 1) -> IntArray:
        """A point near `levels`: `changes` random axes moved by up to `reach` levels, criteria redrawn."""
        result = levels.copy()
        for axis in rng.choice(len(self.axes), size=min(changes, len(self.axes)), replace=False):
            if self.ordered[axis]:
                step = int(rng.integers(1, reach + 1)) * int(rng.choice((-1, 1)))
                result[axis] = np.clip(result[axis] + step, 0, self.sizes[axis] - 1)
            else:
                result[axis] = rng.integers(0, self.sizes[axis])
        return result


def _layers_of(axis: Axis, facts: ModelFacts) -> list[str]:
    """Every layer that a decision about layers or groups touches; none of a decision about blocks."""
    if axis.kind == "layer":
        return list(axis.places)
    if axis.kind == "block":
        return []
    groups = [facts.group(place) for place in axis.places]
    return [name for group in groups for name in (*group.producers, *group.consumers)]


def first_layers(facts: ModelFacts) -> dict[str, dict[str, int]]:
    """By kind and name of a place the index of its first layer: a group's first producer, or reader where it has
    none."""
    order = {x.name: i for i, x in enumerate(facts.layers)}
    groups = {g.name: min((order[n] for n in (g.producers or g.consumers)), default=0) for g in facts.groups}
    return {"layer": order, "group": groups, "block": {b.name: order[b.layers[0]] for b in facts.blocks}}


def in_forward_order(axes: Iterable[Axis], facts: ModelFacts) -> tuple[Axis, ...]:
    """Axes by the first layer they belong to; those of one layer side by side, in the order given."""
    first = first_layers(facts)
    return tuple(sorted(axes, key=lambda a: first[a.kind][a.place]))


SpaceBuilder = Callable[[ModelFacts], tuple[Axis, ...]]
"""What a search space registers: the axes it opens for a model."""


def kept_units(keep: FloatArray, units: int | FloatArray) -> FloatArray:
    """Whole units kept for a share: rounded, at least one."""
    return np.clip(np.round(keep * units), 1, units)


def _layer(change: Mapping[str, Any]) -> LayerDecision:
    """A decision from its fields; a family of patterns is the member that the share of zeros asks for."""
    decision = LayerDecision(**change)
    return replace(decision, pattern=member(decision.pattern, decision.sparsity))


def _check_axes(axes: Sequence[Axis], facts: ModelFacts) -> None:
    known = first_layers(facts)
    decided: set[tuple[str, str, str]] = set()
    for axis in axes:
        for place in axis.places:
            if place not in known[axis.kind]:
                raise SpaceError(
                    f"A space must decide {axis.kind}s of the model; {place!r} is none: see `automc inspect`."
                )
            if (axis.kind, place, axis.field) in decided:
                raise SpaceError(
                    f"A decision must be opened once; {axis.field} of {axis.kind} {place!r} is opened twice: drop one."
                )
            decided.add((axis.kind, place, axis.field))
        _check_values(axis)


def _expense(field: Field, value: Value) -> float:
    """What orders the values of a field by their cost."""
    if isinstance(value, str):
        names: tuple[str, ...] = get_args(Codebooks)
        return names.index(value) if value in names else len(names)
    return -value if field == "sparsity" else value


def _check_values(axis: Axis) -> None:
    """SpaceError unless the values are there once each, the cheapest first, factored in one way."""
    if not axis.values or len(set(axis.values)) < len(axis.values):
        raise SpaceError(f"A decision must have values, each once; {axis.key} has {list(axis.values)}: mend the space.")
    if axis.field == "factorization" and len(axis.values) > 1:
        raise SpaceError(
            f"A layer must be factored in one way, since costs differ; {axis.key} has {list(axis.values)}: keep one."
        )
    if axis.ordered and list(axis.values) != sorted(axis.values, key=lambda value: _expense(axis.field, value)):
        raise SpaceError(f"Values must stand with the cheapest first; {axis.key} has {list(axis.values)}: sort them.")


def check_policy(policy: Policy, facts: ModelFacts) -> None:
    """Raises PolicyError unless every decision of `policy` belongs to this very model."""
    if policy.fingerprint != facts.fingerprint:
        raise PolicyError(
            f"A policy must be applied to the model it was made for; its fingerprint {policy.fingerprint[:12]} "
            f"differs from this model's {facts.fingerprint[:12]}: load the weights it was searched on."
        )
    known = {"group": {g.name for g in facts.groups}, "layer": {x.name for x in facts.layers}}
    known["block"] = {b.name for b in facts.blocks}
    for kind, names in (("group", policy.groups), ("layer", policy.layers), ("block", policy.blocks)):
        for name, _ in names:
            if name not in known[kind]:
                raise PolicyError(
                    f"Every decision must name a {kind} of the model; {name!r} is none: see `automc inspect`."
                )
    for name, decision in policy.layers:
        layer = facts.layer(name)
        if layer.tied and decision.effective != LayerDecision():
            raise PolicyError(
                f"A layer must own its weight to be decided on; that of {name!r} is also {layer.tied[0]!r}: leave it "
                "dense."
            )
        if layer.transposed and decision.effective != LayerDecision():
            raise PolicyError(
                f"A layer must be no transposed convolution to be decided on; {name!r} is one: leave it dense, and "
                "decide on the groups of its channels."
            )
        if layer.calls > 1 and decision.activation_bits < FULL_BITS:
            raise PolicyError(
                f"A layer must run once for its input to be rounded; {name!r} runs {layer.calls} times: leave its "
                "activation_bits at 32."
            )
