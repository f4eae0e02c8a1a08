"""Shapes of compressed layers, for many candidates at once, without building a single module.

Costs are counted on the physically shrunk layers: a layer loses its own output channels *and* the input channels
its predecessors lost. Everything is linear in the kept units of each group, so a batch of candidates is two
matrix products.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from automc.graph.facts import LayerFacts, ModelFacts
from automc.graph.ranks import METHODS, Shape, factor_bound, parameters
from automc.graph.ranks import macs as macs_of
from automc.graph.ranks import ranks as ranks_of
from automc.pattern import family

FloatArray = NDArray[np.float64]
_METHODS = tuple(METHODS)
_Factored = tuple[int, float, float, float, float]  # layer, channels in and out, method, share
_KNOWN = 1 << 18  # counts of factors that are kept
_ENTRY_BYTES = 96  # one tensor's header entry, its name aside
_HEADER_BYTES = 1024  # the fixed part of the header, padding included


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """A batch of B candidates over G groups and L layers, in the order of the facts."""

    units: FloatArray
    """Units kept per group (B, G)."""
    weight_bits: FloatArray
    """(B, L)"""
    activation_bits: FloatArray
    """(B, L)"""
    sparsity: FloatArray
    """Share of the kept weights that is zero (B, L)."""
    pattern: FloatArray
    """How zeros lie, by position in `CostTable.patterns` (B, L)."""
    shared: FloatArray
    """1 for layers whose levels are a codebook, 0 for evenly spaced ones (B, L)."""
    rank: FloatArray
    """Share of the layer that its factors may take (B, L); 1 where it is whole."""
    method: FloatArray
    """How layers are factored, by position in `automc.graph.ranks.METHODS` (B, L)."""
    blocks: FloatArray
    """1 for residual blocks that stay, 0 for those left out (B, K)."""


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """Sizes of the shrunk layers of B candidates."""

    inputs: FloatArray
    """Input channels (B, L)."""
    out: FloatArray
    """Output channels (B, L)."""
    rows: FloatArray
    """Output channels of all factors of a layer together (B, L); of a whole one its own."""
    weights: FloatArray
    """Entries of the weight tensors, zeros included (B, L)."""
    macs: FloatArray
    """Multiply-accumulates per sample (B, L)."""
    norm: FloatArray
    """Channels of each batch norm (B, N)."""
    parameters: FloatArray
    """Entries of each other pruned parameter (B, P)."""
    dropped: FloatArray
    """Parameters that no group prunes, outside layers and batch norms, that left with their blocks (B,)."""
    other_macs: FloatArray
    """Multiply-accumulates per sample outside layers (B,)."""
    candidates: Candidates

    @property
    def nonzeros(self) -> FloatArray:
        """Entries of the weight tensors that are not zero (B, L)."""
        found: FloatArray = self.weights - np.floor(self.weights * self.candidates.sparsity)
        return found


class CostTable:
    """The constant part of every cost: which layer loses how many channels per unit of which group."""

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.patterns = ["element"]
        """Families of patterns that candidates were made with; a layer nobody decides about has the first."""
        self.positions = np.array([x.positions for x in facts.layers], dtype=np.float64)
        self.area = np.array([np.prod(x.kernel, dtype=np.float64) for x in facts.layers])
        self.has_bias = np.array([x.has_bias for x in facts.layers], dtype=np.float64)
        self.owns_weight = _owners(facts.layers)
        self._whole = [Shape.of(x) for x in facts.layers]
        self._known: dict[_Factored, tuple[int, int, int]] = {}
        self.columns = {x.name: i for i, x in enumerate(facts.layers)}
        """Where each layer stands in (B, L)."""
        self._norms = {x.name: i for i, x in enumerate(facts.norms)}
        self._fill_slopes()
        self._place_blocks()
        self._count_the_rest()

    @cached_property
    def dense(self) -> Candidates:
        """The dense model as a batch of one."""
        layers = len(self.facts.layers)
        full = np.full((1, layers), 32.0)
        units = np.array([[g.units for g in self.facts.groups]], dtype=np.float64)
        blocks = np.ones((1, len(self.facts.blocks)))
        none = np.zeros((1, layers))
        whole = np.ones((1, layers))
        return Candidates(units.reshape(1, -1), full, full, none, none, none, whole, none, blocks)

    def code(self, pattern: str) -> float:
        """What stands for a pattern in candidates."""
        name = family(pattern)
        if name not in self.patterns:
            self.patterns.append(name)
        return float(self.patterns.index(name))

    def shapes(self, candidates: Candidates) -> Shapes:
        """The shrunk sizes of every candidate."""
        lost = self._units - candidates.units  # (B, G)
        gone = 1.0 - candidates.blocks  # (B, K)
        there = 1.0 - gone @ self._in_block
        out = there * (self._out - lost @ self._out_slope)
        fan_in = self._in - lost @ self._in_slope
        per_group = np.where(self._depthwise, 1.0, fan_in / self._conv_groups)
        weights = out * per_group * self.area
        macs = weights * self.positions
        rows = out.copy()
        self._factor(candidates, fan_in, out, rows, weights, macs)
        return Shapes(
            inputs=fan_in,
            out=out,
            rows=rows,
            weights=weights,
            macs=macs,
            norm=(1.0 - gone @ self._norm_in_block) * (self._norm - lost @ self._norm_slope),
            parameters=(1.0 - gone @ self._parameter_in_block) * (self._parameter - lost @ self._parameter_slope),
            dropped=gone @ self._block_others,
            other_macs=self.facts.other_macs - gone @ self._block_macs,
            candidates=candidates,
        )

    def _factor(
        self,
        candidates: Candidates,
        fan_in: FloatArray,
        out: FloatArray,
        rows: FloatArray,
        weights: FloatArray,
        macs: FloatArray,
    ) -> None:
        """Puts in the factors' outputs, entries and multiply-accumulates where layers are factored (B, L)."""
        places = np.nonzero((candidates.rank < 1) & (out > 0))
        if not len(places[0]):
            return
        asked = (places[1], *(a[places] for a in (fan_in, out, candidates.method, candidates.rank)))
        counted = np.array([self._counted(key) for key in zip(*(a.tolist() for a in asked), strict=True)])
        rows[places] += counted[:, 0]
        weights[places], macs[places] = counted[:, 1], counted[:, 2]

    def _counted(self, key: _Factored) -> tuple[int, int, int]:
        """Outputs, entries and multiply-accumulates of a layer's factors, counted once."""
        found = self._known.get(key)
        if found is None:
            layer, inputs, outputs, method, share = key
            shape, name = self._whole[layer].narrowed(int(inputs), int(outputs)), _METHODS[int(method)]
            ranks = ranks_of(shape, name, share)
            found = sum(ranks), parameters(shape, name, ranks), macs_of(shape, name, ranks)
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[key] = found
        return found

    def _fill_slopes(self) -> None:
        """Units lost times slope = channels lost, per layer side, norm and bare parameter."""
        facts = self.facts
        self._units = np.array([g.units for g in facts.groups], dtype=np.float64)
        self._out = np.array([x.out_channels for x in facts.layers], dtype=np.float64)
        self._in = np.array([x.in_channels for x in facts.layers], dtype=np.float64)
        self._conv_groups = np.array([x.groups for x in facts.layers], dtype=np.float64)
        self._depthwise = np.array([x.depthwise for x in facts.layers])
        self._norm = np.array([x.channels for x in facts.norms], dtype=np.float64)
        names = {m.name: i for i, m in enumerate(facts.parameters)}
        self._parameter = np.array([m.numel for m in facts.parameters], dtype=np.float64)
        shape = len(facts.groups)
        self._out_slope = np.zeros((shape, len(facts.layers)))
        self._in_slope = np.zeros((shape, len(facts.layers)))
        self._norm_slope = np.zeros((shape, len(facts.norms)))
        self._parameter_slope = np.zeros((shape, len(facts.parameters)))
        for row, group in enumerate(facts.groups):
            for member in group.members:
                per_unit = member.index.shape[1]
                if member.kind == "norm":
                    self._norm_slope[row, self._norms[member.target]] += per_unit
                elif member.kind == "parameter":
                    column = names[member.target]
                    self._parameter_slope[row, column] += per_unit * facts.parameters[column].per_channel(member.axis)
                else:
                    slope = self._out_slope if member.axis == "out" else self._in_slope
                    slope[row, self.columns[member.target]] += per_unit

    def _place_blocks(self) -> None:
        """Which layer, batch norm and pruned parameter belongs to which residual block; none to two."""
        blocks = self.facts.blocks
        self._in_block = np.zeros((len(blocks), len(self.facts.layers)))
        self._norm_in_block = np.zeros((len(blocks), len(self.facts.norms)))
        for row, block in enumerate(blocks):
            self._in_block[row, [self.columns[name] for name in block.layers]] = 1.0
            self._norm_in_block[row, [self._norms[name] for name in block.norms]] = 1.0
        inside = [[float(x.name in b.parameters) for x in self.facts.parameters] for b in blocks]
        self._parameter_in_block = np.array(inside).reshape(len(blocks), len(self.facts.parameters))
        self._block_others = np.array([float(b.others) for b in blocks]) - self._parameter_in_block @ self._parameter
        self._block_macs = np.array([b.other_macs for b in blocks], dtype=np.float64)

    def _count_the_rest(self) -> None:
        """Norms per channel, and what no decision changes."""
        facts = self.facts
        self.norm_parameters = np.array([2.0 * x.affine for x in facts.norms])
        self.norm_buffers = np.array([2.0 * x.track_stats for x in facts.norms])
        weights = sum(x.weight_numel for x, owns in zip(facts.layers, self.owns_weight, strict=True) if owns)
        biases = float(self._out @ self.has_bias)
        counted = weights + biases + self._norm @ self.norm_parameters + self._parameter.sum()
        self.constant_parameters = facts.params - float(counted)
        self.constant_bytes = float(facts.buffer_bytes - facts.item_bytes * self._norm @ self.norm_buffers)
        self.header_bytes = header_bound(facts)
        self.factor_bytes = np.array([factor_bound(x.name) for x in facts.layers])


class Cost(Protocol):
    """What a cost must offer; it may never rise when a candidate keeps less."""

    @property
    def name(self) -> str:
        """Registered name."""
        ...

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        """Each layer's part (B, L)."""
        ...

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        """What belongs to no layer (B,)."""
        ...

    def dense(self, table: CostTable) -> float:
        """The dense model's cost: what 100 % means."""
        ...


def total(cost: Cost, table: CostTable, shapes: Shapes) -> FloatArray:
    """A cost of every candidate (B,)."""
    costs: FloatArray = cost.layers(table, shapes).sum(axis=1) + cost.rest(table, shapes)
    return costs


def dense_costs(costs: Mapping[str, Cost], table: CostTable) -> dict[str, float]:
    """Every named cost of the dense model."""
    return {name: cost.dense(table) for name, cost in costs.items()}


def header_bound(facts: ModelFacts) -> float:
    """Bytes the header of a saved model takes at most: each state tensor's entry, each group's kept units."""
    # Codes, scale, bias and activation range; how codes are stored, and how many bits, name the layer once more each.
    layers = sum(6 * len(x.name) + 4 * _ENTRY_BYTES for x in facts.layers)
    others = sum(len(name) + _ENTRY_BYTES for name in facts.other_tensors)
    groups = sum(len(g.name) + 12 + g.units // 4 for g in facts.groups)
    return float(_HEADER_BYTES + layers + others + groups)


def _owners(layers: tuple[LayerFacts, ...]) -> FloatArray:
    """1 for the first layer of each set of tied weights, 0 for the others, which store nothing of their own."""
    seen: set[str] = set()
    owners = []
    for layer in layers:
        owners.append(0.0 if layer.name in seen or f"{layer.name}.weight" in seen else 1.0)
        seen.update(layer.tied)
    return np.array(owners)
