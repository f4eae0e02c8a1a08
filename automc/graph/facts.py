"""Facts about the user's model, as plain data: layers, norms, groups of coupled channels, refusals."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from automc.errors import GraphError

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A convolution or linear layer."""

    name: str
    """Module path; the first one of a shared module."""
    kind: Literal["conv", "linear"]
    in_channels: int
    """Of the whole layer, not of one conv-group."""
    out_channels: int
    kernel: tuple[int, ...]
    """Empty for linear."""
    stride: tuple[int, ...]
    groups: int
    positions: int
    """Output positions per sample (height x width, tokens), summed over the calls of a shared module; of a transposed
    convolution input positions, at each of which it multiplies with its whole kernel."""
    input_size: tuple[int, ...]
    """Spatial size of the input per sample; empty for plain linear."""
    has_bias: bool
    norm: str | None
    """The batch norm that alone consumes this layer's output, if there is one."""
    tied: tuple[str, ...] = ()
    """Other parameters that are this layer's weight, of other layers; such a layer decides nothing by itself."""
    output_size: tuple[int, ...] = ()
    """Spatial size of the output per sample; empty for plain linear."""
    reads: str = ""
    """The tensor it reads, named after the first layer that does; empty for a shared module, which reads several."""
    calls: int = 1
    """How often it runs in a forward pass."""
    transposed: bool = False
    """Whether it is a transposed convolution: its channels can be pruned, and nothing else of it."""

    @property
    def weight_numel(self) -> int:
        """Entries of the weight tensor."""
        return self.out_channels * (self.in_channels // self.groups) * prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return self.positions * self.weight_numel

    @property
    def normable(self) -> bool:
        """Whether a batch norm behind it is about its channels; of (batch, tokens, features) it is about the tokens."""
        return self.kind == "conv" or not self.output_size

    @property
    def passive(self) -> bool:
        """Whether it takes no decision of its own: its weight serves another layer, too, or it is transposed."""
        return bool(self.tied) or self.transposed

    @property
    def depthwise(self) -> bool:
        """Whether every input channel has a conv-group of its own."""
        return self.groups > 1 and self.groups == self.in_channels


@dataclass(frozen=True, slots=True)
class NormFacts:
    """A batch norm."""

    name: str
    channels: int
    affine: bool
    track_stats: bool


@dataclass(frozen=True, slots=True)
class ParameterFacts:
    """A parameter outside layers and norms that some group prunes."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Entries."""
        return prod(self.shape)

    def per_channel(self, axis: int | str) -> int:
        """Entries that go with one position of `axis`."""
        return self.numel // self.shape[int(axis)]


@dataclass(frozen=True, eq=False, slots=True)
class Member:
    """One side of one tensor holder that loses channels with its group."""

    target: str
    """Module path of a layer or norm, or the path of a parameter."""
    kind: Literal["layer", "norm", "parameter"]
    axis: Literal["out", "in"] | int
    """Side of a layer, "out" for a norm, the dimension of a parameter."""
    index: IntArray
    """(units, k): positions along that axis that belong to each unit."""


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Channels of several layers that must change together: one decision."""

    name: str
    """The first producing layer in forward order, made unique where it has several groups."""
    units: int
    """Channels decided on: one unit is all positions that leave together."""
    members: tuple[Member, ...]
    gates: tuple[str, ...] = ()
    """Layers that make a factor for each of these channels, one for all positions, as in squeeze and excitation."""

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers whose output channels the group prunes."""
        return tuple(m.target for m in self.members if m.kind == "layer" and m.axis == "out")

    @property
    def consumers(self) -> tuple[str, ...]:
        """Layers whose input channels the group prunes."""
        return tuple(m.target for m in self.members if m.kind == "layer" and m.axis == "in")

    @property
    def coupled(self) -> bool:
        """Whether several layers make these channels, as along a residual stream; depthwise layers do not count, nor do
        gates."""
        return len(set(self.producers) - set(self.consumers) - set(self.gates)) > 1


@dataclass(frozen=True, slots=True)
class Block:
    """A residual branch the model can do without: one decision."""

    name: str
    """Path its layers share."""
    at: str
    """Node of the addition."""
    side: int
    """Which operand of the addition is the branch."""
    layers: tuple[str, ...]
    """In forward order; they serve nothing else."""
    norms: tuple[str, ...]
    others: int
    """Parameters of the branch outside layers and batch norms."""
    other_macs: float
    """Multiply-accumulates per sample of the branch outside layers."""
    nodes: frozenset[str]
    """Everything of the branch, in the traced forward."""
    parameters: tuple[str, ...] = ()
    """Those counted in `others`; groups may prune some of them."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What automc does not prune, and why."""

    where: str
    operation: str
    reason: str


@dataclass(frozen=True, eq=False, slots=True)
class ModelFacts:
    """Everything the search needs to know of a model; no tensors."""

    fingerprint: str
    """SHA-256 of the class name and of every state tensor's name, type, shape and bytes."""
    layers: tuple[LayerFacts, ...]
    """In forward order."""
    norms: tuple[NormFacts, ...]
    groups: tuple[Group, ...]
    """In forward order of their first producers; empty for a model that cannot be traced."""
    refused: tuple[Refusal, ...]
    traceable: bool
    params: int
    """Entries of all parameters, tied ones once."""
    buffer_bytes: int
    """Bytes of all persistent buffers."""
    item_bytes: int = 4
    """Of a float parameter: 4, or 8 where any is of double precision."""
    parameters: tuple[ParameterFacts, ...] = ()
    """Parameters outside layers and norms that groups prune."""
    other_tensors: tuple[str, ...] = ()
    """State tensors that belong to no layer: norms, bare parameters, buffers."""
    blocks: tuple[Block, ...] = ()
    """Residual branches, in forward order; empty for a model that cannot be traced."""
    other_macs: float = 0.0
    """Multiply-accumulates per sample outside layers: products of two activations, as in attention, and the like."""

    @property
    def macs(self) -> float:
        """Multiply-accumulates per sample of the whole model."""
        return sum(x.macs for x in self.layers) + self.other_macs

    @property
    def fused(self) -> tuple[tuple[str, ...], ...]:
        """Linear layers that read the same tensor, such as query, key and value: one matrix where a model is served."""
        readers: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.kind == "linear" and layer.reads:
                readers.setdefault(layer.reads, []).append(layer.name)
        return tuple(tuple(names) for names in readers.values() if len(names) > 1)

    @property
    def weighed(self) -> tuple[LayerFacts, ...]:
        """Layers that take decisions of their own."""
        return tuple(x for x in self.layers if not x.passive)

    def layer(self, name: str) -> LayerFacts:
        """One layer by name; GraphError for an unknown one."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise GraphError(
            f"A layer must be one of the model's {len(self.layers)}; {name!r} is none: see `automc inspect`."
        )

    def block(self, name: str) -> Block:
        """One residual block by name; GraphError for an unknown one."""
        for block in self.blocks:
            if block.name == name:
                return block
        raise GraphError(
            f"A block must be one of the model's {len(self.blocks)}; {name!r} is none: see `automc inspect`."
        )

    def group(self, name: str) -> Group:
        """One group by name; GraphError for an unknown one."""
        for group in self.groups:
            if group.name == name:
                return group
        raise GraphError(
            f"A group must be one of the model's {len(self.groups)}; {name!r} is none: see `automc inspect`."
        )
