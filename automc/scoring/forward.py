"""Forward passes over one set of samples, as fast as the machine allows.

Batch norms are folded. A model whose every operation has a compiled step (`lowering`) runs on tiles of samples, without
Python between its layers; any other runs in torch, channels last, in chunks that stay in cache. A traced model may
begin at a cut of its graph, with the values another model with the same decisions up to there has left (`prefix`).
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from automc.compression.compress import channels_last, in_channels_last
from automc.compression.lowering import Lowering, lowered, run_tiles
from automc.compression.prefix import PassMemory, Snapshot
from automc.graph.runs import copies
from automc.kernels.steps import Shape, shape_of
from automc.kernels.tiles import Program, lanes, to_tiles
from automc.scoring.folding import behind, folded, traced
from automc.task import Batch

CHUNK = 100
"""Samples that go through torch at once."""


@dataclass(frozen=True, eq=False, slots=True)
class Prefix:
    """What a traced model shares with others."""

    cuts: Mapping[str, str]
    """By name of a node in the model's graph, in its order: a digest of everything decided up to it."""
    memory: PassMemory


class Samples:
    """Inputs and targets, prepared once for many models."""

    def __init__(self, batches: Sequence[Batch], name: str = "") -> None:
        self._batches, self.name = batches, name
        """The name tells samples apart that share a memory of prefixes."""
        self.known_tiles: Tensor | None = None
        """`tiles`, once somebody has asked for them."""

    @cached_property
    def targets(self) -> tuple[Tensor, ...]:
        """Chunk by chunk."""
        return tuple(chunk for _, targets in self._batches for chunk in targets.split(CHUNK))  # type: ignore[no-untyped-call]

    @property
    def shape(self) -> Shape | None:
        """Height, width and channels, where all samples are one float image or vector of the same shape, and each has a
        target; None where nothing runs on tiles."""
        return self._shape if lanes() else None

    @cached_property
    def _shape(self) -> Shape | None:
        if any(len(inputs) != 1 or len(inputs[0]) != len(targets) for inputs, targets in self._batches):
            return None
        shapes = {shape_of(x) for (x,), _ in self._batches}
        return shapes.pop() if len(shapes) == 1 else None

    @property
    def tiles(self) -> Tensor:
        """Inputs as tiles."""
        known = self.known_tiles
        if known is None or known.shape[-1] != lanes():  # made where vectors are longer or shorter
            known = self.known_tiles = to_tiles(torch.cat([x for (x,), _ in self._batches]))
        return known

    @cached_property
    def chunks(self) -> tuple[tuple[Tensor, ...], ...]:
        """Inputs, channels last."""
        return tuple(tuple(channels_last(x) for x in chunk) for chunk in self.plain)

    @cached_property
    def plain(self) -> tuple[tuple[Tensor, ...], ...]:
        """Inputs as they came."""
        columns = [[x.split(CHUNK) for x in inputs] for inputs, _ in self._batches]  # type: ignore[no-untyped-call]
        return tuple(chunk for column in columns for chunk in zip(*column, strict=True))


@dataclass(frozen=True, eq=False)
class Forward:
    """A model made ready once, for any samples; it is not changed."""

    module: nn.Module
    graph: nn.Module
    """The same model as a graph of its layers, or itself where it has none."""
    prefix: Prefix | None = None
    """Only for a graph whose nodes it names."""
    opaque: bool = False
    """Whether no trace says what the module computes; it runs as it is."""
    last: bool = True
    """Whether it runs on images that lie channels last."""
    _programs: dict[Shape, Lowering[Program] | None] = field(init=False, repr=False, default_factory=dict)

    @torch.no_grad()
    def outputs(self, samples: Samples) -> list[Any]:
        """What the model gives, chunk by chunk."""
        program = None if samples.shape is None else self._program(samples.shape)
        run: _Run = _Torch(self._prepared, samples, last=self.last) if program is None else _Compiled(program, samples)
        if self.prefix is None:
            return run.outputs(run.values(None, ())[-1])
        memory, kind = self.prefix.memory, f"{run.kind} {samples.name}"
        digests = {name: digest for name, digest in self.prefix.cuts.items() if run.holds(name)}
        found = memory.deepest(kind, digests)
        given = None if found is None else (found[0], found[1].values)
        wanted = _fitting(memory.wanted(kind, digests), run, memory.limit)
        del found  # which may have to go
        memory.make_room(sum(wanted.values()))
        values = run.values(given, list(wanted))
        del given
        for name, left in zip(wanted, values, strict=False):
            memory.put(kind, digests[name], Snapshot(tuple(left), {}, frozenset()))
        return run.outputs(values[-1])

    def _program(self, shape: Shape) -> Lowering[Program] | None:
        if shape not in self._programs:
            self._programs[shape] = None if self.opaque else lowered(traced(self.graph), shape, Program())
        return self._programs[shape]

    @cached_property
    def _prepared(self) -> nn.Module:
        made = copy.deepcopy(self.graph).eval() if self.opaque else folded(self.graph)
        return in_channels_last(made) if self.last else made


def _fitting(names: Sequence[str], run: "_Run", limit: int) -> dict[str, int]:
    """The deepest of some nodes whose values go into so much memory together, in order, and how much each takes."""
    chosen: dict[str, int] = {}
    for name, size in reversed(run.sizes(names).items()):
        if sum(chosen.values()) + size > limit:
            break
        chosen[name] = size
    return dict(reversed(chosen.items()))


class _Run(Protocol):
    """One model on one set of samples."""

    kind: str

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Bytes of some nodes' values."""
        ...

    def holds(self, name: str) -> bool:
        """Whether a node's own value can be kept or begun with."""
        ...

    def values(self, begin: tuple[str, Sequence[Tensor]] | None, keep: Sequence[str]) -> list[list[Any]]:
        """The values of some nodes and at last the output, from a node whose value is given or from the inputs."""
        ...

    def outputs(self, value: list[Any]) -> list[Any]:
        """The last of them, chunk by chunk."""
        ...


class _Compiled:
    """By compiled steps."""

    kind = "tiles"

    def __init__(self, program: Lowering[Program], samples: Samples) -> None:
        self.program, self.samples = program, samples
        self._nodes = {node.name: node for node in program.module.graph.nodes}

    def holds(self, name: str) -> bool:
        return name in self._nodes and self.program.holds(self._nodes[name])

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        each = 4 * len(self.samples.tiles) * lanes()
        return {name: each * math.prod(self.program.shape(self._nodes[name])) for name in names}

    def values(self, begin: tuple[str, Sequence[Tensor]] | None, keep: Sequence[str]) -> list[list[Tensor]]:
        assert self.program.output is not None
        given = (self.program.inputs[0], self.samples.tiles) if begin is None else (self._nodes[begin[0]], begin[1][0])
        found = run_tiles(self.program, dict([given]), [*(self._nodes[name] for name in keep), self.program.output])
        return [[x] for x in found]

    def outputs(self, value: list[Tensor]) -> list[Tensor]:
        assert self.program.output is not None
        sizes = [len(x) for x in self.samples.targets]
        return list(self.program.samples(self.program.output, value[0], sum(sizes)).split(sizes))  # type: ignore[no-untyped-call]


class _Torch:
    """By torch, on chunks of inputs, channels last where the model runs on that."""

    kind = "chunks"

    def __init__(self, module: nn.Module, samples: Samples, *, last: bool) -> None:
        self.module, self.samples = module, samples
        self.chunks = samples.chunks if last else samples.plain

    def holds(self, name: str) -> bool:
        return isinstance(self.module, fx.GraphModule) and any(n.name == name for n in self.module.graph.nodes)

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        if not names:
            return {}
        assert isinstance(self.module, fx.GraphModule)  # it holds no node otherwise
        first = behind(self.module, None, names)(*copies(tuple(x[:1] for x in self.chunks[0])))
        count = sum(len(x) for x in self.samples.targets)
        return {name: int(value.nbytes) * count for name, value in zip(names, first, strict=False)}

    def values(self, begin: tuple[str, Sequence[Tensor]] | None, keep: Sequence[str]) -> list[list[Any]]:
        if begin is None and not keep:
            return [[self.module(*inputs) for inputs in self._copies()]]
        assert isinstance(self.module, fx.GraphModule)  # it holds no node otherwise
        part = behind(self.module, None if begin is None else begin[0], keep)
        inputs = self._copies() if begin is None else ((x,) for x in begin[1])
        return [list(column) for column in zip(*(part(*chunk) for chunk in inputs), strict=True)]

    def outputs(self, value: list[Any]) -> list[Any]:
        return value

    def _copies(self) -> Iterator[tuple[Tensor, ...]]:
        """The inputs, chunk by chunk; a model may change them."""
        return map(copies, self.chunks)
