"""Forward passes over one set of samples, as fast as the machine allows.

Batch norms are folded (`folding`). A model whose every operation has a compiled step (`lowering`) runs on tiles of
samples, without Python between its layers; any other runs in torch, channels last, in chunks that stay in cache.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from automc.compression.lowering import lowered
from automc.kernels.tiles import Shape, lanes, to_tiles
from automc.scoring.folding import folded
from automc.task import Batch

CHUNK = 100
"""Samples that go through torch at once."""


class Samples:
    """Inputs and targets, prepared once for many models."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    @cached_property
    def targets(self) -> tuple[Tensor, ...]:
        """Chunk by chunk."""
        return tuple(chunk for _, targets in self._batches for chunk in targets.split(CHUNK))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def outputs(self, module: nn.Module) -> list[Any]:
        """A module's outputs, chunk by chunk; the module is not changed."""
        ready = folded(module)
        shape = self._shape
        program = lowered(ready, shape) if shape is not None else None
        if program is not None:
            assert program.output is not None
            whole = program.run({program.inputs[0]: self._tiles}, [program.output])[0]
            found = program.samples(program.output, whole, sum(len(x) for x in self.targets))
            return list(found.split([len(x) for x in self.targets]))  # type: ignore[no-untyped-call]
        channels_last(ready)
        return [ready(*inputs) for inputs in self._chunks]

    @property
    def _shape(self) -> Shape | None:
        """Height, width and channels, where all samples are one float image or vector of the same shape."""
        if not lanes() or any(len(inputs) != 1 for inputs, _ in self._batches):
            return None
        shapes = {(x.dtype, *x.shape[1:]) for (x,), _ in self._batches}
        dtype, *sizes = shapes.pop()
        if shapes or dtype != torch.float32 or len(sizes) not in (1, 3):
            return None
        return (sizes[1], sizes[2], sizes[0]) if len(sizes) == 3 else (1, 1, sizes[0])

    @cached_property
    def _tiles(self) -> Tensor:
        return to_tiles(torch.cat([x for (x,), _ in self._batches]))

    @cached_property
    def _chunks(self) -> tuple[tuple[Tensor, ...], ...]:
        """Inputs, channels last."""
        columns = [[_channels_last(x).split(CHUNK) for x in inputs] for inputs, _ in self._batches]  # type: ignore[no-untyped-call]
        return tuple(chunk for column in columns for chunk in zip(*column, strict=True))


def prepared(module: nn.Module) -> nn.Module:
    """A copy as torch runs it fastest: batch norms folded, channels last."""
    return channels_last(folded(module))


def channels_last(module: nn.Module) -> nn.Module:
    """The same module, its weights channels last."""
    return nn.Module.to(module, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
