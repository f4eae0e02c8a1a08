"""The compressed model's structure, without its weights' values: what search, apply and load build alike."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from automc.compression.lowrank import build as factored
from automc.compression.quantize import QuantizedLayer
from automc.graph.facts import LayerFacts, Member, ModelFacts
from automc.graph.model_graph import ModelGraph
from automc.graph.shrink import shrink
from automc.policy import FULL_BITS, Codebooks

IntArray = NDArray[np.int64]
Bits: TypeAlias = tuple[int, int, Codebooks]
"""Of weights, of activations, and how the weights' levels are chosen."""
Factors: TypeAlias = tuple[str, tuple[int, ...]]
"""Method and ranks."""


@dataclass(frozen=True, eq=False, slots=True)
class Structure:
    """Which units of each group stay, and which layers are quantized to how many bits."""

    kept: Mapping[str, IntArray]
    """Sorted units per group; a group that is missing keeps all."""
    bits: Mapping[str, Bits]
    """Per quantized layer."""
    factors: Mapping[str, Factors] = field(default_factory=dict)
    """Per factored layer."""
    without: tuple[str, ...] = ()
    """Residual blocks left out."""


def build(graph: ModelGraph, model: nn.Module, structure: Structure) -> nn.Module:
    """A copy of `model` with the channels removed and quantized layers in place, values still unfitted."""
    small = shrink(graph, model, structure.kept, structure.without)
    for name in {**structure.bits, **structure.factors}:
        form = opened(small.get_submodule(name), structure.bits.get(name), structure.factors.get(name))
        replace_module(small, name, form)
    return small


def opened(layer: nn.Module, bits: Bits | None, factors: Factors | None) -> nn.Module:
    """A layer in the form its decision asks for, values still unfitted; of a factored one every factor is quantized."""
    if factors is not None:
        made = factored(layer, *factors)
        for number, part in enumerate(made.parts):
            made.parts[number] = opened(part, bits, None)
        return made
    return layer if bits is None or min(bits[:2]) == FULL_BITS else QuantizedLayer(layer, *bits)


def interpretable(graph: ModelGraph, small: nn.Module) -> fx.GraphModule:
    """A built module as a GraphModule that shares its layers and has the nodes of the traced dense model."""
    if isinstance(small, fx.GraphModule):
        return small
    assert graph.graph is not None  # callers treat untraced models apart
    return fx.GraphModule(small, graph.graph)


@dataclass(frozen=True, eq=False, slots=True)
class Sides:
    """Channels of the dense layer that a shrunk layer still has."""

    inputs: IntArray
    outputs: IntArray

    @classmethod
    def whole(cls, facts: LayerFacts) -> "Sides":
        """All of them."""
        return cls(np.arange(facts.in_channels), np.arange(facts.out_channels))

    @property
    def counts(self) -> tuple[int, int]:
        """How many are left."""
        return len(self.inputs), len(self.outputs)


def kept_channels(facts: ModelFacts, kept: Mapping[str, IntArray]) -> dict[str, Sides]:
    """Every layer's kept channels on both sides, as sorted positions in the dense layer."""
    inputs = {x.name: np.ones(x.in_channels, dtype=np.bool_) for x in facts.layers}
    outputs = {x.name: np.ones(x.out_channels, dtype=np.bool_) for x in facts.layers}
    for member, lost in _lost(facts, kept):
        if member.kind == "layer":
            side = outputs if member.axis == "out" else inputs
            side[member.target][lost] = False
    return {name: Sides(np.flatnonzero(inputs[name]), np.flatnonzero(outputs[name])) for name in inputs}


def kept_of_norms(facts: ModelFacts, kept: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """Every batch norm's kept channels, as sorted positions in the dense one."""
    present = {x.name: np.ones(x.channels, dtype=np.bool_) for x in facts.norms}
    for member, lost in _lost(facts, kept):
        if member.kind == "norm":
            present[member.target][lost] = False
    return {name: np.flatnonzero(flags) for name, flags in present.items()}


def _lost(facts: ModelFacts, kept: Mapping[str, IntArray]) -> Iterator[tuple[Member, IntArray]]:
    """Every member of a pruned group, and the positions it loses."""
    for name, units in kept.items():
        group = facts.group(name)
        lost = np.setdiff1d(np.arange(group.units), units)
        for member in group.members:
            yield member, member.index[lost].ravel()


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module at a path, and wherever else the same one stood, in the root's mode."""
    before = root.get_submodule(path)
    paths = [name for name, found in root.named_modules(remove_duplicate=False) if found is before]
    module.train(root.training)
    for name in paths:
        parent, _, child = name.rpartition(".")
        setattr(root.get_submodule(parent), child, module)
