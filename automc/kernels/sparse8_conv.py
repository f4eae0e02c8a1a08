"""Convolutions of 8 bits that leave out zero blocks of 16 outputs and 4 channels (see `csrc/sparse8.c`, `sparse8.py`).

An image is rounded once, to planes of four channels each with the level of 0.0 around them; what a block reads for
neighbouring outputs then lies a stride apart, for any kernel, and nothing need be gathered.
"""

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from automc.errors import PolicyError
from automc.kernels.build import compiled
from automc.kernels.integers import Quantized, rounded, window_of
from automc.kernels.plan import plain
from automc.kernels.sparse8 import (
    LAYER,
    NO_TILES,
    Sparse8,
    check_call,
    dense_codes,
    library,
    run,
)
from automc.kernels.steps import Window

_IMAGE = struct.Struct("@13i")
"""As in sparse8.c: channels, height, width, out_height, out_width; kernel, stride, padding, dilation."""
_ROWS = 16


@cache
def _function() -> Callable[[bytes, bytes, int, int, int], int] | None:
    """`sparse8_conv2d` of the compiled library; None where there is none."""
    found = compiled("sparse8")
    if found is None or (found.sparse8_layer_bytes(), found.sparse8_image_bytes()) != (LAYER.size, _IMAGE.size):
        return None
    pointers = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_void_p)
    found.sparse8_conv2d.argtypes = pointers
    return found.sparse8_conv2d


def _window(sides: Sequence[Sequence[int]]) -> Window:
    return Window(*((side[0], side[1]) for side in sides))


def _conv2d(x: Tensor, *given: Any) -> Tensor:
    """`automc::sparse8_conv2d` on a processor."""
    check_call(x, given[:7], given[7], _ROWS)
    return _convolved(x, *given)


def _convolved(x: Tensor, *given: Any) -> Tensor:
    codes, places, starts, offset, scale, bias, levels, outputs, *sides, low, high = given
    window = _window(sides)
    height, width = window.over((x.shape[2], x.shape[3], x.shape[1]))
    function = _function()
    if function is None:
        return _in_torch(x, given, window)
    words = -(-x.shape[1] // 4) * (x.shape[2] + 2 * window.padding[0]) * (x.shape[3] + 2 * window.padding[1])
    if words >= 2**31 or min(height, width) < 1:
        raise RuntimeError(f"An image must have an output and fewer than 2^31 words; it is {tuple(x.shape)}: cut it.")
    x = x.contiguous()
    y = torch.empty(len(x), outputs, height, width)
    inputs = -(-x.shape[1] // 4) * 4 * window.kernel[0] * window.kernel[1]
    pointers = (levels, starts, places, codes, offset, scale, bias)
    layer = LAYER.pack(inputs, outputs, _ROWS, len(codes), 0, low, high, *[t.data_ptr() for t in pointers], *NO_TILES)
    image = _IMAGE.pack(*x.shape[1:], height, width, *(n for side in sides for n in side))

    def some(layer: bytes, at: int, count: int, to: int) -> int:
        return function(layer, image, at, count, to)

    if len(x):
        run(some, layer, (x.data_ptr(), x[0].nbytes), (y.data_ptr(), y[0].nbytes), len(x), 1)
    return y


def _in_torch(x: Tensor, given: Sequence[Any], window: Window) -> Tensor:
    """The same without a compiled library; float64 holds the sums exactly."""
    codes, places, starts, _, scale, bias, levels, outputs, *_, low, high = given
    step, zero, top = levels.unbind()
    level = (x / step).round().clamp(-zero, top - zero).double()
    four, (height, width) = -(-x.shape[1] // 4) * 4, window.kernel
    dense = dense_codes(codes, places, starts, outputs, height * width * four, _ROWS).double()
    weight = dense.reshape(outputs, height, width, four)[..., : x.shape[1]].permute(0, 3, 1, 2)
    sums = nn.functional.conv2d(level, weight, None, window.stride, window.padding, window.dilation).float()
    found: Tensor = sums * scale[:outputs, None, None] + bias[:outputs, None, None]
    return found.clamp(low, high)


def _shaped(x: Tensor, *given: Any) -> Tensor:
    """What `_conv2d` gives, without the numbers."""
    size = _window(given[8:12]).over((x.shape[2], x.shape[3], x.shape[1]))
    return x.new_empty((x.shape[0], given[7], *size))


library.define(  # type: ignore[no-untyped-call]
    "sparse8_conv2d(Tensor x, Tensor codes, Tensor places, Tensor starts, Tensor offset, Tensor scale, Tensor bias, "
    "Tensor levels, int outputs, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, float low, "
    "float high) -> Tensor"
)
library.impl("sparse8_conv2d", _conv2d, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("automc::sparse8_conv2d", _shaped, lib=library)


class SparseInt8Conv2d(Sparse8):
    """A convolution whose weight has few blocks of 16x4, whose input is rounded and whose output is clamped."""

    window: Window
    channels: int

    @classmethod
    def of(cls, quantized: Quantized, *, low: float = -math.inf, high: float = math.inf) -> "SparseInt8Conv2d":
        """The same layer as one with integer codes and rounded input that holds an nn.Conv2d.

        PolicyError for one without codes of its own scale, with conv-groups, or padding that is not of zeros.
        """
        layer = quantized.layer
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
            raise PolicyError(f"The layer must be an nn.Conv2d without groups; it is {layer}: leave it in torch.")
        window, (codes, scale, levels) = window_of(layer), rounded(quantized)
        padded = nn.functional.pad(codes.permute(0, 2, 3, 1), (0, -codes.shape[1] % 4))
        bias = None if layer.bias is None else layer.bias.detach()
        found = cls(padded.flatten(1), scale, bias, levels, low=low, high=high)
        found.window, found.channels = window, layer.in_channels
        return found

    def forward(self, x: Tensor) -> Tensor:
        """x (images, channels, height, width) float32; not a number where a window holds an input that is none."""
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise RuntimeError(f"x must be (images, {self.channels}, height, width); it is {tuple(x.shape)}: check it.")
        w = self.window
        sides = (list(w.kernel), list(w.stride), list(w.padding), list(w.dilation))
        given = (*self.held(), self.outputs, *sides, self.low, self.high)
        if plain(x) and plain(given[4]):
            return _convolved(x, *given)
        return torch.ops.automc.sparse8_conv2d.default(x, *given)  # type: ignore[no-any-return]
