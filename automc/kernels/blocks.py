"""Linear layers on a GPU whose weight is stored in blocks, those of zeros left out: block sparse rows, by Triton.

Sums and bias are floats, whatever the type of weights and inputs; nothing of float32 passes through TF32. An input that
is no number spoils the outputs that read it, and none whose blocks it is left out of. Without Triton, and on a
processor, the same is computed by torch: right, and slowly.

automc::blocks(x, start, column, value, bias, inputs, outputs)   the layer as an operation of torch
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import PolicyError, TaskError

Size: TypeAlias = tuple[int, int]
"""Consecutive outputs and consecutive inputs of a block."""
SIDES = (16, 32, 64)
"""Of a block: what tensor cores multiply at once, or several times that."""
SIZES = [(rows, columns) for rows in SIDES for columns in SIDES]
TYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 2**30
"""Weights of a layer: the places of these, filled up to whole blocks, are counted in 32 bits."""


@cache
def has_triton() -> bool:
    """Whether there is Triton, which torch for CUDA brings."""
    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """A weight as block sparse rows; outputs and inputs are filled up with zeros to whole blocks."""

    start: Tensor
    """Where the blocks of each row of blocks begin, and where the last ones end (rows of blocks + 1,), int32."""
    column: Tensor
    """Which run of inputs each block reads (kept,), int32; ascending within a row."""
    value: Tensor
    """(kept, rows, columns)"""

    @classmethod
    def of(cls, weight: Tensor, size: Size) -> "Blocks":
        """weight (out, in); every block stays that holds more than zeros."""
        cut = _cut(weight, size)
        present = (cut != 0).any(3).any(2)
        row, column = present.nonzero(as_tuple=True)
        start = F.pad(present.sum(1).cumsum(0), (1, 0))
        return cls(start.int(), column.int(), cut[row, column].contiguous())

    def dense(self, outputs: int, inputs: int) -> Tensor:
        """The weight (out, in)."""
        rows, columns = self.value.shape[1:]
        cut = self.value.new_zeros(len(self.start) - 1, -(-inputs // columns), rows, columns)
        cut[_owners(self.start, self.column), self.column.long()] = self.value
        return cut.transpose(1, 2).flatten(2).flatten(0, 1)[:outputs, :inputs]


def sizes(weight: Tensor, most: float) -> list[Size]:
    """Blocks that cover a weight (out, in) with at most so many entries, the fewest first.

    A size that a larger one covers with as few entries is left out: larger blocks are read and multiplied faster.
    """
    cover = {size: count for size, count in _entries(weight) if count <= most}
    best = [s for s in cover if not any(_area(o) > _area(s) and cover[o] <= cover[s] for o in cover)]
    return sorted(best, key=lambda s: (cover[s], s))


def _entries(weight: Tensor) -> Iterator[tuple[Size, int]]:
    """Of every size: what the blocks hold that are kept."""
    least = (_cut(weight, SIZES[0]) != 0).any(3).any(2)  # all sizes are multiples of the smallest one
    for size in SIZES:
        kept = _cut(least, (size[0] // SIZES[0][0], size[1] // SIZES[0][1])).any(3).any(2)
        yield size, int(kept.sum()) * _area(size)


def _cut(weight: Tensor, size: Size) -> Tensor:
    """(out, in) as (rows of blocks, blocks in a row, *size)"""
    rows, columns = size
    whole = F.pad(weight, (0, -weight.shape[1] % columns, 0, -len(weight) % rows))
    return whole.reshape(len(whole) // rows, rows, whole.shape[1] // columns, columns).transpose(1, 2)


def _area(size: Size) -> int:
    return size[0] * size[1]


def _owners(start: Tensor, column: Tensor) -> Tensor:
    """The row of blocks that each block stands in."""
    rows = torch.arange(len(start) - 1, device=start.device)
    return rows.repeat_interleave(start.diff().long(), output_size=len(column))


class BlockLinear(nn.Module):
    """x W^T + b, the weight in blocks; inputs of another type than the weight's are made its, outputs are theirs."""

    start: Tensor
    column: Tensor
    value: Tensor
    bias: Tensor | None

    def __init__(self, blocks: Blocks, bias: Tensor | None, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("start", blocks.start)
        self.register_buffer("column", blocks.column)
        self.register_buffer("value", blocks.value)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear, size: Size, dtype: torch.dtype | None = None) -> "BlockLinear":
        """dtype: what weights and inputs are rounded to, by default nothing.

        PolicyError for a weight of a type that has no kernel, or too large a one.
        """
        weight = layer.weight.detach().to(dtype or layer.weight.dtype)
        if weight.dtype not in TYPES:
            raise PolicyError(
                f"A weight must be float32, float16 or bfloat16 to run in blocks; it is {weight.dtype}: convert it."
            )
        if weight.numel() >= MOST:
            raise PolicyError(f"A weight must have fewer than 2^30 entries; it has {weight.numel()}: leave it dense.")
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(Blocks.of(weight, size), bias, layer.in_features, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in); (..., out)"""
        given = (self.start, self.column, self.value, self.bias, self.in_features, self.out_features)
        found: Tensor = torch.ops.automc.blocks(x.to(self.value.dtype), *given)
        return found.to(x.dtype)

    def extra_repr(self) -> str:
        """As torch's own layer has it, and the blocks."""
        kept, rows, columns = self.value.shape
        return f"in_features={self.in_features}, out_features={self.out_features}, blocks={kept} of {rows}x{columns}"


LIBRARY = torch.library.Library("automc", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define(  # type: ignore[no-untyped-call]
    "blocks(Tensor x, Tensor start, Tensor column, Tensor value, Tensor? bias, SymInt inputs, SymInt outputs) -> Tensor"
)


@torch.library.impl(LIBRARY, "blocks", "CPU")
def _blocks(
    x: Tensor, start: Tensor, column: Tensor, value: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    made = _by_torch(_rows(x, value, inputs), Blocks(start, column, value), bias, outputs)
    return made.reshape(*x.shape[:-1], outputs)


@torch.library.impl(LIBRARY, "blocks", "CUDA")
def _blocks_on_gpu(
    x: Tensor, start: Tensor, column: Tensor, value: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    if not has_triton():
        return _blocks(x, start, column, value, bias, inputs, outputs)
    from automc.kernels.blocks_triton import run

    made = run(_rows(x, value, inputs), start, column, value, bias, outputs)
    return made.reshape(*x.shape[:-1], outputs)


@torch.library.register_fake("automc::blocks", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_blocks(
    x: Tensor, start: Tensor, column: Tensor, value: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


def _rows(x: Tensor, value: Tensor, inputs: int) -> Tensor:
    """x as contiguous rows; TaskError for one of another width, or of another type than the blocks."""
    if x.shape[-1] != inputs:
        raise TaskError(f"Inputs must have {inputs} features, as the layer in blocks; one has {x.shape[-1]}: mend it.")
    if x.dtype != value.dtype:
        raise TaskError(f"Inputs must be {value.dtype}, as the layer in blocks; one is {x.dtype}: convert it.")
    return x.reshape(x.shape[:-1].numel(), inputs).contiguous()


def _by_torch(x: Tensor, blocks: Blocks, bias: Tensor | None, outputs: int) -> Tensor:
    """x (tokens, in); (tokens, out)"""
    rows, columns = blocks.value.shape[1:]
    cut = _cut(x.float(), (1, columns))[:, :, 0].transpose(0, 1)  # (runs of inputs, tokens, columns)
    parts = cut[blocks.column.long()] @ blocks.value.float().transpose(1, 2)  # (kept, tokens, rows)
    sums = parts.new_zeros(len(blocks.start) - 1, len(x), rows)
    sums.index_add_(0, _owners(blocks.start, blocks.column), parts)
    found = sums.transpose(0, 1).flatten(1)[:, :outputs]
    return (found if bias is None else found + bias.float()).to(x.dtype)
