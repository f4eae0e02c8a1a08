"""Dense linear layers of 8 bits by oneDNN: what they read is rounded to unsigned levels, sums of products are integers.

Rounding is compiled (`csrc/dense8.c`), where there is a compiler; torch takes five passes for it.
`automc::dense8_linear` is an operator of torch's, which torch.export and torch.compile know: what oneDNN makes of a
weight (`packed`) cannot be part of a graph, and to make it takes longer than most products.

Processors without instructions that add up four products add two of them in 16 bits, where two large ones do not fit.
oneDNN lets them be cut off there. So it is tried once whether it sums exactly; where it does not, codes and levels must
be small enough, or torch computes what an operator is asked for.
"""

import ctypes
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from automc.errors import PolicyError
from automc.kernels.build import compiled
from automc.kernels.integers import Levels, Quantized, check_codes, check_levels, leveled, rounded
from automc.kernels.packed import Packed, packed
from automc.kernels.plan import WORTH, plain
from automc.kernels.sparse8 import library
from automc.kernels.threads import dealt, threads

CUT = 2**15 - 1
"""What the sum of two products may be where they are added in 16 bits."""
FLOATS = 16 * WORTH
"""Numbers to round that are worth another thread."""
ONEDNN = "oneDNN, 8 bits"
"""What kept weights are known by."""
WINDOWS = struct.Struct("@17i")
"""As in dense8.c: of images channels, height, width and whether channels come last, rows above and columns before, rows
and columns that are read; groups; kernel, stride, dilation; height and width of the output."""


@dataclass(frozen=True, eq=False, slots=True)
class Laid(Packed):
    """A weight as oneDNN has it, and what it wants besides."""

    zero: int
    """The level of 0.0."""
    zeros: Tensor
    """The same of every output's codes (outputs of a group,)."""


@cache
def functions() -> ctypes.CDLL | None:
    """The compiled functions, told what they take; None where there are none."""
    found = compiled("dense8")
    if found is None or found.dense8_windows_bytes() != WINDOWS.size:
        return None
    address, size = ctypes.c_void_p, ctypes.c_ssize_t
    found.dense8_round.argtypes = [address, address, size, address]
    found.dense8_windows.argtypes = [address, ctypes.c_char_p, address, size, address, size]
    return found


@cache
def sums_exactly(largest: int) -> bool:
    """Whether oneDNN is there and loses nothing of products of codes up to so large a one with levels up to 255."""
    codes, levels = torch.full((32, 32), largest), torch.full((20, 32), 255)
    codes[::3, ::2] *= -1
    zeros, ones = torch.zeros(32), torch.ones(32)
    try:
        weight = torch.ops.onednn.qlinear_prepack(codes.to(torch.int8), [20, 32])
        made = Laid((weight,), 3, zeros.long())
        found = [product(x.to(torch.uint8), made, 0, ones, zeros) for x in (levels, levels[:1])]
    except (AttributeError, RuntimeError):  # torch was built without it, or it has no such operation here
        return False
    wanted = (levels - 3.0).double() @ codes.T.double()
    return all(torch.equal(y.double(), wanted[: len(y)]) for y in found)


def trusted(codes: Tensor, top: float) -> bool:
    """Whether oneDNN sums products of these codes with levels up to `top` exactly on this processor."""
    largest = int(codes.abs().max()) if codes.numel() else 0
    return sums_exactly(127) or (2 * largest * top <= CUT and sums_exactly(63))


def laid(codes: Tensor, levels: Tensor, rows: int, groups: int = 1) -> Laid:
    """Codes (outputs, inputs) of some groups, for about so many rows of levels."""
    _, zero, top = levels.tolist()
    parts = codes.chunk(groups) if trusted(codes, top) else ()
    weights = tuple(torch.ops.onednn.qlinear_prepack(part, [rows, codes.shape[1]]) for part in parts)
    return Laid(weights, int(zero), torch.zeros(len(codes) // groups, dtype=torch.int64))


def product(levels: Tensor, made: Laid, group: int, scale: Tensor, bias: Tensor) -> Tensor:
    """Levels (rows, inputs) of a group to outputs (rows, outputs)."""
    given: Any = (levels, 1.0, made.zero, made.weights[group], scale, made.zeros, bias)
    return torch.ops.onednn.qlinear_pointwise.default(*given, 1.0, 0, torch.float32, "none", [], "")  # type: ignore[no-any-return]


def _rounded(x: Tensor, levels: Tensor) -> tuple[Tensor, bool]:
    """Levels of x, which is contiguous; whether all of x are numbers."""
    found = functions()
    if found is None:
        return in_passes(x, levels)
    out = torch.empty(x.shape, dtype=torch.uint8)

    def some(begin: int, end: int) -> int:
        at = (x.data_ptr() + 4 * begin, end - begin, out.data_ptr() + begin)
        return int(found.dense8_round(levels.data_ptr(), *at))

    return out, all(dealt(some, x.numel(), min(threads(), 1 + x.numel() // FLOATS), 64))


def in_passes(x: Tensor, levels: Tensor) -> tuple[Tensor, bool]:
    """The same without a compiled library."""
    step, zero, top = levels.unbind()
    level = (x / step).round_().clamp_(-zero, top - zero).add_(zero)
    numbers = not bool(level.isnan().any())
    return (level if numbers else level.nan_to_num_(0.0)).to(torch.uint8), numbers


def _linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, levels: Tensor) -> Tensor:
    """`automc::dense8_linear` on a processor."""
    check_call(x, (codes, scale, bias, levels), (x.shape[-1],))
    return _multiplied(x, codes, scale, bias, levels)


def _multiplied(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, levels: Tensor) -> Tensor:
    outputs, inputs = codes.shape
    if not x.numel():
        return torch.empty((*x.shape[:-1], outputs))
    rows = x.reshape(-1, inputs).contiguous()

    made = packed(codes, ONEDNN, lambda: laid(codes, levels, len(rows)), levels)
    if not made.weights:
        return _in_torch(x, codes, scale, bias, levels)
    level, numbers = _rounded(rows, levels)
    y = product(level, made, 0, scale, bias)
    if not numbers:
        y[rows.isnan().any(dim=1)] = torch.nan  # as in torch
    return y.reshape(*x.shape[:-1], outputs)


def _in_torch(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, levels: Tensor) -> Tensor:
    """The same where oneDNN is not to be trusted; float64 holds the sums exactly."""
    level = leveled(x, levels)
    return (level @ codes.double().T).float() * scale + bias


def check_call(x: Tensor, held: tuple[Tensor, ...], inputs: tuple[int, ...]) -> None:
    """RuntimeError for what would be misread; inputs: the sides of an output's codes, as far as x tells them."""
    codes, *floats = held
    outputs = codes.shape[:1]
    if (
        codes.dtype is not torch.int8
        or codes.shape[1 : 1 + len(inputs)] != inputs
        or not all(t.dtype is torch.float32 and t.is_cpu for t in (x, *floats))
        or not all(t.is_cpu and t.is_contiguous() for t in held)
        or [t.shape for t in floats] != [outputs, outputs, (3,)]
    ):
        given = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in (x, *held))
        raise RuntimeError(
            f"A dense layer of 8 bits must be given float32 x and what its module holds, on the processor; it was "
            f"given {given}: use the module."
        )


library.define(  # type: ignore[no-untyped-call]
    "dense8_linear(Tensor x, Tensor codes, Tensor scale, Tensor bias, Tensor levels) -> Tensor"
)
library.impl("dense8_linear", _linear, "CPU")  # type: ignore[no-untyped-call]


def _shaped(x: Tensor, codes: Tensor, *_: Tensor) -> Tensor:
    """What `_linear` gives, without the numbers."""
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


torch.library.register_fake("automc::dense8_linear", _shaped, lib=library)


class Dense8(nn.Module):
    """What dense layers of 8 bits hold; the order of its buffers is that of the operators' arguments."""

    codes: Tensor
    """int8, of the weight's shape."""
    scale: Tensor
    """What one in a sum of products is worth (outputs,)."""
    bias: Tensor
    levels: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None, levels: Levels) -> None:
        """Integer codes (outputs, ...) in [-127, 127], scale and bias (outputs,), levels: step, zero and top.

        PolicyError for codes or levels of more bits, or where oneDNN does not sum their products exactly.
        """
        super().__init__()
        check_codes(codes.flatten(1))
        check_levels(levels)
        if not trusted(codes, levels[2]):
            raise PolicyError(
                "Sums of products must be exact; oneDNN cuts those of such codes off on this processor: choose 7 bits."
            )
        self.register_buffer("codes", codes.to(torch.int8).contiguous())
        self.register_buffer("scale", (scale.detach() * levels[0]).float())
        self.register_buffer("bias", torch.zeros(len(codes)) if bias is None else bias.detach().float().clone())
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32))

    def held(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All buffers; looked up at once, since a module takes its time over each."""
        held: Any = self._buffers
        return held["codes"], held["scale"], held["bias"], held["levels"]


class DenseInt8Linear(Dense8):
    """x W^T + b where x is rounded to 8 bits, and W has integer codes."""

    @classmethod
    def of(cls, quantized: Quantized) -> "DenseInt8Linear":
        """The same layer as one with integer codes and rounded input that holds an nn.Linear.

        PolicyError for one without codes of its own scale, that does not round what it reads, or whose sums oneDNN
        would cut off.
        """
        layer = quantized.layer
        if not isinstance(layer, nn.Linear):
            raise PolicyError(f"The layer must be an nn.Linear; it is a {type(layer).__name__}: leave it in torch.")
        codes, scale, levels = rounded(quantized)
        return cls(codes, scale, layer.bias, levels)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) float32 gives (..., outputs); not a number where an input of the same row is none."""
        held = self.held()
        inputs = held[0].shape[1]
        if x.shape[-1] != inputs:
            raise RuntimeError(f"The last side of x must be {inputs}; x is {tuple(x.shape)}: check what it reads.")
        if plain(x) and plain(held[1]):
            return _multiplied(x, *held)
        return torch.ops.automc.dense8_linear.default(x, *held)  # type: ignore[no-any-return]
