"""Linear layers of 8 bits that leave out zero blocks (see `csrc/sparse8.c`): what they read is rounded on the way in.

Weights are integer codes with a scale for each output, activations levels of one step for all, as in
`automc.compression.quantize`. Sums of products are exact integers, so outputs are those of the rounded layer in torch
up to what torch itself loses by adding up floats; that is at most (inputs + 8) * 2^-24 of the sum of the products'
magnitudes. `automc::sparse8_linear` is an operator of torch's, which torch.export and torch.compile know.
"""

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from automc.errors import PolicyError
from automc.kernels.build import compiled
from automc.kernels.integers import Levels, Quantized, check_codes, check_levels, leveled, rounded
from automc.kernels.plan import plain
from automc.kernels.threads import dealt, threads

PATTERNS = {16: "16x4", 4: "4x1"}
"""Patterns by the outputs of a block."""
SHARE = 64
"""Tokens are dealt out to threads in so many at a time."""
TILED, BUSY = 16, 28
"""Tokens, and blocks of a set of 16 outputs, from which on AMX is used where it is."""
NO_TILES = [0, 0, 0]
"""Addresses of what a layer without tiles has."""
TROUBLES = {1: "its memory was not granted", 2: "they are not"}


LAYER = struct.Struct("@5i2f10P")
"""As in sparse8.c: inputs, outputs, rows, blocks, tiles; low, high; and the addresses of all tensors."""
_TILES = ("tile_codes", "tile_places", "tile_starts")
_DTYPES = (torch.int8, torch.int32, torch.int32, torch.int32, torch.float32, torch.float32, torch.float32)
"""Of codes, places, starts, offset, scale, bias and levels."""


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

    def tiles(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same for AMX, 16 blocks of a set at a time, filled up with zeros; every set has one tile at least.

        Codes int8 (tiles, 16, 64): output, block and input; places int32 (tiles, 16); starts int32 (sets + 1,).
        """
        counts = self.starts.diff().long()
        each = ((counts + 15) // 16).clamp_min(1)
        starts = torch.cat((each.new_zeros(1), each.cumsum(0)))
        which = torch.repeat_interleave(torch.arange(len(counts)), counts)
        order = torch.arange(len(which)) - self.starts.long()[which] + 16 * starts[which]
        codes = self.codes.new_zeros(16 * int(starts[-1]), 16, 4)
        places = self.places.new_zeros(16 * int(starts[-1]))
        codes[order], places[order] = self.codes, self.places
        turned = codes.reshape(-1, 16, 16, 4).transpose(1, 2).reshape(-1, 16, 64)
        return turned.contiguous(), places.reshape(-1, 16), starts.int()

    def dense(self) -> Tensor:
        """All codes, int8 (outputs, inputs)."""
        return dense_codes(self.codes, self.places, self.starts, self.outputs, self.inputs, self.rows)


def _check(codes: Tensor, rows: int) -> None:
    """PolicyError unless the kernel can multiply with these codes (outputs, inputs)."""
    if rows not in PATTERNS:
        raise PolicyError(f"Blocks must have 16 or 4 rows; {rows} were given: choose the pattern 16x4 or 4x1.")
    check_codes(codes)


def _padded(codes: Tensor, rows: int, columns: int) -> Tensor:
    """Codes filled up with zeros to whole blocks."""
    short = (-codes.shape[0] % rows, -codes.shape[1] % columns)
    return nn.functional.pad(codes, (0, short[1], 0, short[0]))


def _fours(laid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of columns (sets, inputs, rows) those that are not zero, four at a time, zeros last.

    Codes (blocks, rows, 4), inputs (blocks, 4), blocks of each set (sets,).
    """
    rows = laid.shape[2]
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


def dense_codes(codes: Tensor, places: Tensor, starts: Tensor, outputs: int, inputs: int, rows: int) -> Tensor:
    """All codes of blocks, int8 (outputs, inputs)."""
    sets = len(starts) - 1
    which = torch.repeat_interleave(torch.arange(sets), starts.diff().long())
    blocks = codes.reshape(-1, rows, 4)
    columns = places.long().reshape(-1, 4) if rows == 4 else 4 * places.long()[:, None] + torch.arange(4)
    found = codes.new_zeros(sets, -(-inputs // 4) * 4, rows)
    # what fills up the last four is zero, and must not erase its column
    found.index_put_((which[:, None], columns), blocks.transpose(1, 2), accumulate=True)
    return found.transpose(1, 2).reshape(sets * rows, -1)[:outputs, :inputs]


@cache
def _function() -> Callable[[bytes, int, int, int], int] | None:
    """`sparse8_linear` of the compiled library; None where there is none."""
    found = compiled("sparse8")
    if found is None or found.sparse8_layer_bytes() != LAYER.size:
        return None
    found.sparse8_linear.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_void_p)
    return found.sparse8_linear


def level() -> int:
    """What multiplies: 2 AMX tiles, 1 instructions for sums of four products, 0 neither, -1 torch alone."""
    found = compiled("sparse8")
    return -1 if found is None or _function() is None else int(found.sparse8_level())


def _linear(x: Tensor, *given: Any) -> Tensor:
    """`automc::sparse8_linear` on a processor."""
    check_call(x, given[:7], *given[9:11])
    _check_tiles(given[7], -(-given[9] // 16))
    return _multiplied(x, *given)


def _multiplied(x: Tensor, *given: Any) -> Tensor:
    codes, places, starts, offset, scale, bias, levels, tiles, inputs, outputs, rows, low, high = given
    _check_width(x, inputs)
    function = _function()
    if function is None:
        return _in_torch(x, given)
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], outputs))
    tokens, blocks = y.numel() // outputs, codes.numel() // (4 * rows)
    if not tokens:
        return y
    pointers = (levels, starts, places, codes, offset, scale, bias)
    held = [t.data_ptr() for t in pointers]
    tiled: Sequence[Tensor] = tiles if tokens >= TILED else []
    held += [t.data_ptr() for t in tiled] or NO_TILES
    layer = LAYER.pack(inputs, outputs, rows, blocks, tiled[0].shape[0] if tiled else 0, low, high, *held)
    run(function, layer, (x.data_ptr(), 4 * inputs), (y.data_ptr(), 4 * outputs), tokens, SHARE)
    return y


def _check_width(x: Tensor, inputs: int) -> None:
    """RuntimeError for rows that are no inputs of the layer."""
    if not x.dim() or x.shape[-1] != inputs:
        raise RuntimeError(f"The last side of x must be {inputs}; x is {tuple(x.shape)}: check what the layer reads.")


def check_call(x: Tensor, held: tuple[Tensor, ...], outputs: int, rows: int) -> None:
    """RuntimeError for what the compiled function would misread; that blocks lie inside is checked there."""
    codes, places, starts, *vectors, levels = held
    sets, blocks, whole = -(-outputs // rows), codes.numel() // (4 * rows), -(-outputs // 16) * 16
    if (
        x.dtype is not torch.float32
        or not x.is_cpu
        or outputs < 1
        or not all(t.dtype is d and t.is_cpu and t.is_contiguous() for t, d in zip(held, _DTYPES, strict=True))
        or codes.numel() != 4 * rows * blocks
        or places.numel() != blocks * (4 if rows == 4 else 1)
        or starts.numel() != sets + 1
        or not all(v.numel() == whole for v in vectors)
        or levels.numel() != 3
    ):
        given = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in (x, *held))
        raise RuntimeError(
            f"A sparse layer of 8 bits must be given float32 x and what its module holds, on the processor; it was "
            f"given {given}: use the module."
        )


def _check_tiles(tiles: Sequence[Tensor], sets: int) -> None:
    """RuntimeError for tiles that are none; that they lie inside is checked where they are used."""
    if not tiles:
        return
    codes, places, starts = tiles
    dtypes = (torch.int8, torch.int32, torch.int32)
    right = all(t.dtype is d and t.is_cpu and t.is_contiguous() for t, d in zip(tiles, dtypes, strict=True))
    if not right or codes.shape[1:] != (16, 64) or places.shape != (len(codes), 16) or starts.numel() != sets + 1:
        raise RuntimeError("Tiles must be those of the module, or none; they are others: use the module.")


def run(
    function: Callable[[bytes, int, int, int], int],
    layer: bytes,
    x: tuple[int, int],
    y: tuple[int, int],
    count: int,
    share: int,
) -> None:
    """All tokens, dealt out to threads, `share` at a time; x and y: address, and bytes of a token.

    RuntimeError where blocks lie outside the layer, or there is no memory.
    """

    def some(begin: int, end: int) -> int:
        return function(layer, x[0] + begin * x[1], end - begin, y[0] + begin * y[1])

    trouble = max(dealt(some, count, threads(), share))
    if trouble:
        raise RuntimeError(f"A layer's blocks must lie inside it and its memory be had; {TROUBLES[trouble]}.")


def _in_torch(x: Tensor, given: Sequence[Any]) -> Tensor:
    """The same without a compiled library; float64 holds the sums exactly."""
    codes, places, starts, offset, scale, bias, levels, _, inputs, outputs, rows, low, high = given
    level = leveled(x, levels) + levels[1]  # the first one is 0
    dense = dense_codes(codes, places, starts, outputs, inputs, rows).double()
    sums = (level @ dense.T + offset[:outputs]).float()
    found: Tensor = (sums * scale[:outputs] + bias[:outputs]).clamp(low, high)
    return found


library = torch.library.Library("automc", "FRAGMENT")  # type: ignore[no-untyped-call]
library.define(  # type: ignore[no-untyped-call]
    "sparse8_linear(Tensor x, Tensor codes, Tensor places, Tensor starts, Tensor offset, Tensor scale, Tensor bias, "
    "Tensor levels, Tensor[] tiles, int inputs, int outputs, int rows, float low, float high) -> Tensor"
)
library.impl("sparse8_linear", _linear, "CPU")  # type: ignore[no-untyped-call]


def _shaped(x: Tensor, *given: Any) -> Tensor:
    """What `_linear` gives, without the numbers."""
    _check_width(x, given[8])
    return x.new_empty((*x.shape[:-1], given[9]))


torch.library.register_fake("automc::sparse8_linear", _shaped, lib=library)


class Sparse8(nn.Module):
    """What sparse layers of 8 bits hold; the order of its buffers is that of the operators' arguments."""

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        levels: Levels,
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
        check_levels(levels)
        step, zero, _ = levels
        self.outputs, self.inputs, self.rows = blocks.outputs, blocks.inputs, rows
        self.low, self.high = low, high
        self.register_buffer("codes", blocks.codes)
        self.register_buffer("places", blocks.places)
        self.register_buffer("starts", blocks.starts)
        self.register_buffer("offset", _whole(-int(zero) * codes.sum(dim=1), torch.int32))
        self.register_buffer("scale", _whole(scale * step, torch.float32))
        self.register_buffer("bias", _whole(torch.zeros(len(codes)) if bias is None else bias, torch.float32))
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32))

    def blocks(self) -> Blocks:
        """What the weight is made of."""
        return Blocks(self.rows, self.outputs, self.inputs, self.codes, self.places, self.starts)

    codes: Tensor
    places: Tensor
    starts: Tensor
    offset: Tensor
    """Added to sums of products: what the level of 0.0 makes too much."""
    scale: Tensor
    """What one in a sum of products is worth."""
    bias: Tensor
    levels: Tensor

    def held(self) -> tuple[Any, ...]:
        """All buffers; looked up at once, since a module takes its time over each."""
        held: dict[str, Any] = self._buffers
        return (
            *(held["codes"], held["places"], held["starts"], held["offset"], held["scale"], held["bias"]),
            held["levels"],
        )


class SparseInt8Linear(Sparse8):
    """act(x W^T + b) where W has few blocks, x is rounded to 8 bits, and act clamps to two limits.

    Where there is AMX, and blocks enough, it holds them once more in the order of its tiles; that is not saved.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.tiled = self.rows == 16 and level() == 2 and len(self.codes) >= BUSY * (len(self.starts) - 1)
        if self.tiled:
            for name, buffer in zip(_TILES, self.blocks().tiles(), strict=True):
                self.register_buffer(name, buffer, persistent=False)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.tiled:
            for name, buffer in zip(_TILES, self.blocks().tiles(), strict=True):
                setattr(self, name, buffer)

    @classmethod
    def of(
        cls, quantized: Quantized, *, rows: int = 16, low: float = -math.inf, high: float = math.inf
    ) -> "SparseInt8Linear":
        """The same layer as one with integer codes and rounded input that holds an nn.Linear.

        PolicyError for one without codes of its own scale, or that does not round what it reads.
        """
        layer = quantized.layer
        if not isinstance(layer, nn.Linear):
            raise PolicyError(f"The layer must be an nn.Linear; it is a {type(layer).__name__}: leave it in torch.")
        codes, scale, levels = rounded(quantized)
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(codes, scale, bias, levels, rows=rows, low=low, high=high)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) float32 gives (..., outputs); not a number where an input of the same row is none."""
        buffers: dict[str, Any] = self._buffers
        tiles = [buffers[name] for name in _TILES] if self.tiled else []
        given = (*self.held(), tiles, self.inputs, self.outputs, self.rows, self.low, self.high)
        # torch takes longer to find the way to an operator than a few tokens do
        if plain(x) and plain(given[4]):
            return _multiplied(x, *given)
        return torch.ops.automc.sparse8_linear.default(x, *given)  # type: ignore[no-any-return]


def _whole(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values (outputs,) filled up with zeros to a multiple of 16, which the kernel reads at a time."""
    return nn.functional.pad(values.detach().to(dtype), (0, -len(values) % 16))
