"""Linear layers of 8 bits that leave out zero blocks (see `csrc/sparse8.c`): what they read is rounded on the way in.

Weights are integer codes with a scale for each output, activations levels of one step for all, as in
`automc.compression.quantize`. Sums of products are exact integers, so outputs are those of the rounded layer in torch
up to what torch itself loses by adding up floats; that is at most (inputs + 4) * 2^-24 of the sum of the products'
magnitudes. `automc::sparse8_linear` is an operator of torch's, which torch.export and torch.compile know.
"""

import ctypes
import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from automc.errors import PolicyError
from automc.kernels.build import compiled
from automc.kernels.tiles import threads, together

PATTERNS = {16: "16x4", 4: "4x1"}
"""Patterns by the outputs of a block."""
LARGEST = (2**31 - 1) // 255
"""What the magnitudes of an output's codes may sum up to, so that 32 bits hold its sum of products."""
SHARE = 64
"""Tokens are dealt out to threads in so many at a time."""
TILED = 32
"""Tokens from which on AMX is used where it is."""
TROUBLES = {1: "its memory was not granted", 2: "they are not"}


class _Layer(ctypes.Structure):
    """As in sparse8.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("inputs", "outputs", "rows", "blocks", "tiles")),
        *((name, ctypes.c_float) for name in ("low", "high")),
        *((name, ctypes.c_void_p) for name in ("levels", "starts", "places", "codes", "offset", "scale", "bias")),
    ]


class Activations(Protocol):
    """What rounds activations."""

    def levels(self) -> tuple[float, float, float]:
        """The distance of two levels, the level of 0.0, and the last one."""


class Quantized(Protocol):
    """A layer with integer codes and rounded input, as `automc.compression.quantize.QuantizedLayer` is one."""

    layer: nn.Module
    weight_scale: Tensor | None

    @property
    def codes(self) -> Tensor | None:
        """The weight as integers."""


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """A matrix of codes (outputs, inputs) without its zero blocks."""

    rows: int
    """Outputs of a block: 16, with 4 consecutive inputs, or 4, with one input."""
    outputs: int
    inputs: int
    codes: Tensor
    """int8 (blocks, rows, 4); with 4 rows, four blocks of one input each make one."""
    places: Tensor
    """int32: which group of 4 inputs (blocks,); with 4 rows, which inputs (blocks, 4)."""
    starts: Tensor
    """int32 (sets + 1,): the first block of each set of rows."""

    @classmethod
    def of(cls, codes: Tensor, rows: int = 16) -> "Blocks":
        """The blocks of integer codes (outputs, inputs) in [-127, 127]; PolicyError for others, or too large ones."""
        outputs, inputs = codes.shape
        _check(codes, rows)
        if rows == 16:
            laid = _padded(codes, rows, 4).to(torch.int8).reshape(-1, rows, -(-inputs // 4), 4).transpose(1, 2)
            present = laid.flatten(2).any(dim=2)  # (sets, groups)
            kept, places = laid[present], present.nonzero()[:, 1]
            counts = present.sum(dim=1)
        else:
            laid = _padded(codes, rows, 1).to(torch.int8).reshape(-1, rows, inputs).transpose(1, 2)
            kept, places, counts = _fours(laid)
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return cls(rows, outputs, inputs, kept.contiguous(), places.int().contiguous(), starts.int())

    def dense(self) -> Tensor:
        """All codes, int8 (outputs, inputs)."""
        return _dense(self.codes, self.places, self.starts, self.outputs, self.inputs, self.rows)


def _check(codes: Tensor, rows: int) -> None:
    """PolicyError unless the kernel can multiply with these codes (outputs, inputs)."""
    if rows not in PATTERNS:
        raise PolicyError(f"Blocks must have 16 or 4 rows; {rows} were given: choose the pattern 16x4 or 4x1.")
    magnitudes = codes.to(torch.int64).abs()
    most = int(magnitudes.max()) if codes.numel() else 0
    if most > 127:
        raise PolicyError(f"Codes must lie within [-127, 127]; one of {most} was given: choose at most 8 bits.")
    total = int(magnitudes.sum(dim=1).max()) if codes.numel() else 0
    if total > LARGEST:
        raise PolicyError(
            f"The magnitudes of an output's codes must sum up to {LARGEST:,} at most, so that 32 bits hold its sums; "
            f"those of a layer with {codes.shape[1]:,} inputs make {total:,}: split its inputs."
        )


def _padded(codes: Tensor, rows: int, columns: int) -> Tensor:
    """Codes filled up with zeros to whole blocks."""
    short = (-codes.shape[0] % rows, -codes.shape[1] % columns)
    return nn.functional.pad(codes, (0, short[1], 0, short[0]))


def _fours(laid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of columns (sets, inputs, rows) those that are not zero, four at a time, zeros last.

    Codes (blocks, rows, 4), inputs (blocks, 4), blocks of each set (sets,).
    """
    sets, _, rows = laid.shape
    present = laid.any(dim=2)
    filled = present.sum(dim=1)
    counts = (filled + 3) // 4
    begins = 4 * (counts.cumsum(0) - counts)
    which, places = present.nonzero().T
    order = torch.arange(len(which)) - (filled.cumsum(0) - filled)[which] + begins[which]
    total = 4 * int(counts.sum())
    codes, inputs = laid.new_zeros(total, rows), torch.zeros(total, dtype=torch.int64)
    codes[order], inputs[order] = laid[which, places], places
    return codes.reshape(-1, 4, rows).transpose(1, 2), inputs.reshape(-1, 4), counts


def _dense(codes: Tensor, places: Tensor, starts: Tensor, outputs: int, inputs: int, rows: int) -> Tensor:
    """int8 (outputs, inputs)"""
    sets = len(starts) - 1
    which = torch.repeat_interleave(torch.arange(sets), starts.diff().long())
    blocks = codes.reshape(-1, rows, 4)
    columns = places.long().reshape(-1, 4) if rows == 4 else 4 * places.long()[:, None] + torch.arange(4)
    found = codes.new_zeros(sets, -(-inputs // 4) * 4, rows)
    # what fills up the last four is zero, and must not erase its column
    found.index_put_((which[:, None], columns), blocks.transpose(1, 2), accumulate=True)
    return found.transpose(1, 2).reshape(sets * rows, -1)[:outputs, :inputs]


@cache
def level() -> int:
    """What multiplies: 2 AMX tiles, 1 instructions for sums of four products, 0 neither, -1 torch alone."""
    found = compiled("sparse8")
    if found is None or found.sparse8_layer_bytes() != ctypes.sizeof(_Layer):
        return -1
    return int(found.sparse8_level())


def _linear(
    x: Tensor,
    codes: Tensor,
    places: Tensor,
    starts: Tensor,
    offset: Tensor,
    scale: Tensor,
    bias: Tensor,
    levels: Tensor,
    outputs: int,
    rows: int,
    low: float,
    high: float,
) -> Tensor:
    if level() < 0:
        return _in_torch(x, codes, places, starts, offset, scale, bias, levels, outputs, rows, low, high)
    inputs = x.shape[-1]
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], outputs))
    tokens = y.numel() // outputs if outputs else 0
    if not tokens:
        return y
    held = (levels, starts, places, codes, offset, scale, bias)
    layer = _Layer(inputs, outputs, rows, len(codes), tokens >= TILED, low, high, *(t.data_ptr() for t in held))
    _run(layer, x.data_ptr(), y.data_ptr(), tokens)
    return y


def _run(layer: _Layer, x: int, y: int, tokens: int) -> None:
    """All tokens, dealt out to threads."""
    found = compiled("sparse8")
    assert found is not None
    step = 4 * layer.inputs, 4 * layer.outputs

    def some(part: tuple[int, int]) -> int:
        begin, end = part
        at = ctypes.c_void_p(x + begin * step[0]), ctypes.c_void_p(y + begin * step[1])
        return int(found.sparse8_linear(ctypes.byref(layer), at[0], ctypes.c_ssize_t(end - begin), at[1]))

    troubles = max(together(some, _parts(tokens, threads())))
    if troubles:
        raise RuntimeError(f"A layer's blocks must lie inside it and its memory be had; {TROUBLES[troubles]}.")


def _parts(tokens: int, workers: int) -> list[tuple[int, int]]:
    """Tokens in as many parts as there are workers, each of a multiple of SHARE."""
    if workers == 1 or tokens <= SHARE:
        return [(0, tokens)]
    bounds = np.linspace(0, -(-tokens // SHARE), workers + 1).astype(int) * SHARE
    parts = [(int(a), min(int(b), tokens)) for a, b in zip(bounds, bounds[1:], strict=False)]
    return [(a, b) for a, b in parts if a < b]


def _in_torch(
    x: Tensor,
    codes: Tensor,
    places: Tensor,
    starts: Tensor,
    offset: Tensor,
    scale: Tensor,
    bias: Tensor,
    levels: Tensor,
    outputs: int,
    rows: int,
    low: float,
    high: float,
) -> Tensor:
    """The same without a compiled library; float64 holds the sums exactly."""
    step, zero, top = levels.unbind()
    level = ((x / step).round().clamp(-zero, top - zero) + zero).double()
    dense = _dense(codes, places, starts, outputs, x.shape[-1], rows).double()
    sums = (level @ dense.T + offset[:outputs]).float()
    return (sums * scale[:outputs] + bias[:outputs]).clamp(low, high)


_library = torch.library.Library("automc", "FRAGMENT")
_library.define(
    "sparse8_linear(Tensor x, Tensor codes, Tensor places, Tensor starts, Tensor offset, Tensor scale, Tensor bias, "
    "Tensor levels, int outputs, int rows, float low, float high) -> Tensor"
)
_library.impl("sparse8_linear", _linear, "CPU")


@torch.library.register_fake("automc::sparse8_linear", lib=_library)
def _fake(x: Tensor, *tensors: object) -> Tensor:
    outputs = tensors[7]
    assert isinstance(outputs, int)
    return x.new_empty((*x.shape[:-1], outputs))


class SparseInt8Linear(nn.Module):
    """act(x W^T + b) where W has few blocks, x is rounded to 8 bits, and act clamps to two limits."""

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        levels: tuple[float, float, float],
        *,
        rows: int = 16,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> None:
        """Integer codes (outputs, inputs) in [-127, 127], scale and bias (outputs,), levels: step, zero and top.

        rows: 16 for blocks of 16x4, 4 for blocks of 4x1; low, high: what the output is clamped to, 0 and inf for ReLU.
        PolicyError for codes the kernel cannot multiply with.
        """
        super().__init__()
        blocks = Blocks.of(codes, rows)
        step, zero, top = levels
        if not (step > 0 and 0 <= zero <= top <= 255):
            raise PolicyError(f"Levels must be 0 to 255 at most, {levels} were given: choose at most 8 bits.")
        self.outputs, self.inputs, self.rows = blocks.outputs, blocks.inputs, rows
        self.low, self.high = low, high
        self.register_buffer("codes", blocks.codes)
        self.register_buffer("places", blocks.places)
        self.register_buffer("starts", blocks.starts)
        self.register_buffer("offset", _whole(-int(zero) * codes.sum(dim=1), torch.int32))
        self.register_buffer("scale", _whole(scale * step, torch.float32))
        self.register_buffer("bias", _whole(torch.zeros(len(codes)) if bias is None else bias, torch.float32))
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32))

    codes: Tensor
    places: Tensor
    starts: Tensor
    offset: Tensor
    """Added to sums of products: what the level of 0.0 makes too much."""
    scale: Tensor
    """What one in a sum of products is worth."""
    bias: Tensor
    levels: Tensor

    @classmethod
    def of(cls, quantized: Quantized, *, rows: int = 16, low: float = -math.inf, high: float = math.inf) -> "SparseInt8Linear":
        """The same layer as one with integer codes and rounded input that holds an nn.Linear.

        PolicyError for one without codes of its own scale, or that does not round what it reads.
        """
        layer, rounding = quantized.layer, getattr(quantized, "input", None)
        if not isinstance(layer, nn.Linear):
            raise PolicyError(f"The layer must be an nn.Linear; it is a {type(layer).__name__}: leave it in torch.")
        if quantized.codes is None or quantized.weight_scale is None or rounding is None:
            raise PolicyError("Weights and activations must be rounded to evenly spaced levels; choose 8 bits for both.")
        bias = None if layer.bias is None else layer.bias.detach()
        levels: tuple[float, float, float] = rounding.levels()
        return cls(quantized.codes, quantized.weight_scale, bias, levels, rows=rows, low=low, high=high)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) float32 gives (..., outputs); not a number where an input of the same row is none."""
        found: Tensor = torch.ops.automc.sparse8_linear(
            x,
            self.codes,
            self.places,
            self.starts,
            self.offset,
            self.scale,
            self.bias,
            self.levels,
            self.outputs,
            self.rows,
            self.low,
            self.high,
        )
        return found


def _whole(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values (outputs,) filled up with zeros to a multiple of 16, which the kernel reads at a time."""
    return nn.functional.pad(values.detach().to(dtype), (0, -len(values) % 16))
