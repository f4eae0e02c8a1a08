"""The search space: which decisions are open, at which group or layer, with which values.

A point is a vector of levels, one integer an axis. The values of an ordered axis ascend from the cheapest to the
dense one, so level 0 everywhere is the smallest model and the top level everywhere is the dense one; criteria
cost nothing and have no order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from automc.errors import PolicyError
from automc.graph.facts import ModelFacts
from automc.policy import BlockDecision, GroupDecision, LayerDecision, Policy, Recipe

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Value = float | int | str
Field = Literal[
    "keep", "criterion", "weight_bits", "activation_bits", "sparsity", "pattern", "codebook", "rank", "factorization"
]


@dataclass(frozen=True, slots=True)
class Axis:
    """One open decision."""

    place: str
    """Name of the group, layer or block."""
    kind: Literal["group", "layer", "block"]
    field: Field
    values: tuple[Value, ...]

    @property
    def key(self) -> str:
        """A name unique in the space, used as the Optuna parameter's name."""
        return f"{self.kind}:{self.place}:{self.field}"

    @property
    def ordered(self) -> bool:
        """Whether cost never falls from one level to the next."""
        return self.field not in ("criterion", "pattern", "factorization")

    def level(self, value: Value) -> int:
        """The level of `value`, the nearest one for numbers; an unknown word raises PolicyError."""
        if value in self.values:
            return self.values.index(value)
        if isinstance(value, str) or isinstance(self.values[0], str):
            raise PolicyError(f"{self.key} must be one of {self.values}; it is {value!r}: choose one of them.")
        numbers = np.array(self.values, dtype=np.float64)
        return int(np.abs(numbers - float(value)).argmin())


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """The open decisions of one model, in forward order of the layers they belong to."""

    facts: ModelFacts
    axes: tuple[Axis, ...]
    recipe: Recipe = field(default_factory=Recipe)

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
        """Index of the layer every axis belongs to (A,): a group's first producer, or reader where it has none."""
        order = {x.name: i for i, x in enumerate(self.facts.layers)}
        groups = {g.name: min(order[n] for n in (g.producers or g.consumers)) for g in self.facts.groups}
        blocks = {b.name: order[b.layers[0]] for b in self.facts.blocks}
        places = {"layer": order, "group": groups, "block": blocks}
        return np.array([places[a.kind][a.place] for a in self.axes], dtype=np.int64)

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
        groups: dict[str, GroupDecision] = {}
        layers: dict[str, LayerDecision] = {}
        blocks: dict[str, BlockDecision] = {}
        for axis, level in zip(self.axes, levels, strict=True):
            change = {axis.field: axis.values[int(level)]}
            if axis.kind == "group":
                groups[axis.place] = replace(groups.get(axis.place, GroupDecision()), **change)  # type: ignore[arg-type]
            elif axis.kind == "block":
                blocks[axis.place] = replace(blocks.get(axis.place, BlockDecision()), **change)  # type: ignore[arg-type]
            else:
                layers[axis.place] = replace(layers.get(axis.place, LayerDecision()), **change)  # type: ignore[arg-type]
        decided = tuple(groups.items()), tuple(layers.items())
        return Policy(self.facts.fingerprint, *decided, self.recipe, tuple(blocks.items()))

    def encode(self, policy: Policy) -> IntArray:
        """The point nearest to a policy; a policy of another model or with unknown places raises PolicyError."""
        check_policy(policy, self.facts)
        decisions = {"group": policy.group, "layer": policy.layer, "block": policy.block}
        return np.array([a.level(getattr(decisions[a.kind](a.place), a.field)) for a in self.axes], dtype=np.int64)

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


SpaceBuilder = Callable[[ModelFacts], tuple[Axis, ...]]
"""What a search space registers: the axes it opens for a model."""


def kept_units(keep: NDArray[np.float64], units: int) -> FloatArray:
    """Whole units kept for a share: rounded, at least one."""
    return np.clip(np.round(keep * units), 1, units)


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
