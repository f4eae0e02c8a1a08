"""Convolutions of 8 bits that leave out zero blocks (see `csrc/sparse8.c`, `sparse8.py`), with groups or without.

An image is rounded once, the level of 0.0 around it, to planes in which what a block reads for neighbouring outputs
lies side by side or a stride apart, for any kernel, and nothing need be gathered: planes of four channels for blocks of
16 outputs and 4 channels; for blocks of 4 outputs and one input of every channel and phase of the stride.
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
from automc.kernels.integers import Quantized, layout_of, leveled, rounded, window_of
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

_IMAGE = struct.Struct("@15i")
"""As in sparse8.c: channels, height, width, out_height, out_width; kernel, stride, padding, dilation; groups, and
outputs of all of them."""


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


def _laid(outputs: int, groups: int, rows: int) -> int:
    """Outputs of all sets of blocks: where there are groups, each is filled up to whole sets."""
    return outputs if groups == 1 else groups * -(-outputs // groups // rows) * rows


def _conv2d(x: Tensor, *given: Any) -> Tensor:
    """`automc::sparse8_conv2d` on a processor."""
    outputs, groups, rows = given[8:11]
    check_call(x, given[:7], _laid(outputs, groups, rows), rows)
    return _convolved(x, *given)


def _check_images(x: Tensor, channels: int) -> None:
    """RuntimeError for what are no images of the layer."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise RuntimeError(f"x must be (images, {channels}, height, width); it is {tuple(x.shape)}: check it.")


def _convolved(x: Tensor, *given: Any) -> Tensor:
    codes, places, starts, offset, scale, bias, levels, channels, outputs, groups, rows, *sides, low, high = given
    _check_images(x, channels)
    window, layout = _window(sides), layout_of(x)
    height, width = window.over((x.shape[2], x.shape[3], x.shape[1]))
    function = _function()
    if function is None:
        return _in_torch(x, given, window).contiguous(memory_format=layout)
    own = x.shape[1] // groups if rows == 4 else -(-x.shape[1] // groups // 4) * 4
    sizes = zip((x.shape[2], x.shape[3]), window.padding, window.stride, strict=True)
    read = math.prod(-(-(size + 2 * around) // step) * step for size, around, step in sizes)
    if groups * own * read >= 2**31 or min(height, width) < 1:
        raise RuntimeError(f"An image must have an output and fewer than 2^31 values; it is {tuple(x.shape)}: cut it.")
    x = x.contiguous()
    y = torch.empty(len(x), outputs, height, width)
    inputs, blocks = own * window.kernel[0] * window.kernel[1], codes.numel() // (4 * rows)
    pointers = [t.data_ptr() for t in (levels, starts, places, codes, offset, scale, bias)]
    layer = LAYER.pack(inputs, _laid(outputs, groups, rows), rows, blocks, 0, low, high, *pointers, *NO_TILES)
    image = _IMAGE.pack(*x.shape[1:], height, width, *(n for side in sides for n in side), groups, outputs)

    def some(layer: bytes, at: int, count: int, to: int) -> int:
        return function(layer, image, at, count, to)

    if len(x):
        run(some, layer, (x.data_ptr(), x[0].nbytes), (y.data_ptr(), y[0].nbytes), len(x), 1)
    return y.contiguous(memory_format=layout)


def _in_torch(x: Tensor, given: Sequence[Any], window: Window) -> Tensor:
    """The same without a compiled library; float64 holds the sums exactly."""
    codes, places, starts, _, scale, bias, levels, _, outputs, groups, rows, *_, low, high = given
    level = leveled(x, levels)
    channels, (height, width) = x.shape[1] // groups, window.kernel
    own = channels if rows == 4 else -(-channels // 4) * 4
    laid, each = _laid(outputs, groups, rows), outputs // groups
    dense = dense_codes(codes, places, starts, laid, height * width * own, rows).double()
    weight = dense.reshape(groups, laid // groups, height, width, own)[:, :each, ..., :channels]
    kernel = weight.flatten(0, 1).permute(0, 3, 1, 2)
    moves = (window.stride, window.padding, window.dilation, groups)
    sums = nn.functional.conv2d(level, kernel, None, *moves).float()
    worth, least = (v[:laid].reshape(groups, -1)[:, :each].reshape(-1, 1, 1) for v in (scale, bias))
    found: Tensor = sums * worth + least
    return found.clamp(low, high)


def _shaped(x: Tensor, *given: Any) -> Tensor:
    """What `_conv2d` gives, without the numbers."""
    _check_images(x, given[7])
    size = _window(given[11:15]).over((x.shape[2], x.shape[3], x.shape[1]))
    return torch.empty((x.shape[0], given[8], *size), device=x.device, memory_format=layout_of(x))


library.define(  # type: ignore[no-untyped-call]
    "sparse8_conv2d(Tensor x, Tensor codes, Tensor places, Tensor starts, Tensor offset, Tensor scale, Tensor bias, "
    "Tensor levels, int channels, int outputs, int groups, int rows, int[2] kernel, int[2] stride, int[2] padding, "
    "int[2] dilation, "
    "float low, float high) -> Tensor"
)
library.impl("sparse8_conv2d", _conv2d, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("automc::sparse8_conv2d", _shaped, lib=library)


class SparseInt8Conv2d(Sparse8):
    """A convolution whose weight has few blocks, whose input is rounded and whose output is clamped."""

    window: Window
    channels: int
    groups: int
    filters: int
    """Outputs; `outputs` are those of all sets of blocks."""

    @classmethod
    def of(
        cls, quantized: Quantized, *, rows: int = 16, low: float = -math.inf, high: float = math.inf
    ) -> "SparseInt8Conv2d":
        """The same layer as one with integer codes and rounded input that holds an nn.Conv2d.

        rows: 16 for blocks of 16 outputs by 4 channels of a tap, 4 for blocks of 4 outputs by one input. PolicyError
        for one without codes of its own scale, that is depthwise, or with padding that is uneven or not of zeros.
        """
        layer = quantized.layer
        if not isinstance(layer, nn.Conv2d) or layer.in_channels == layer.groups > 1:
            raise PolicyError(f"The layer must be an nn.Conv2d, and not depthwise; it is {layer}: leave it in torch.")
        window, (codes, scale, levels) = window_of(layer), rounded(quantized)
        channels = nn.functional.pad(codes.permute(0, 2, 3, 1), (0, -codes.shape[1] % 4 if rows == 16 else 0))
        bias = torch.zeros(len(codes)) if layer.bias is None else layer.bias.detach()
        laid = _laid(len(codes), layer.groups, rows)
        matrix, scale, bias = (_filled(value, layer.groups, laid) for value in (channels.flatten(1), scale, bias))
        found = cls(matrix, scale, bias, levels, rows=rows, low=low, high=high)
        found.window, found.channels = window, layer.in_channels
        found.groups, found.filters = layer.groups, layer.out_channels
        return found

    def forward(self, x: Tensor) -> Tensor:
        """x (images, channels, height, width) float32; the output lies in memory as x does, and is not a number where a
        window holds an input that is none."""
        w = self.window
        sides = (list(w.kernel), list(w.stride), list(w.padding), list(w.dilation))
        given = (*self.held(), self.channels, self.filters, self.groups, self.rows, *sides, self.low, self.high)
        if plain(x) and plain(given[4]):
            return _convolved(x, *given)
        return torch.ops.automc.sparse8_conv2d.default(x, *given)  # type: ignore[no-any-return]


def _filled(values: Tensor, groups: int, laid: int) -> Tensor:
    """Values (outputs, ...), each group filled up with zeros, to (laid, ...)."""
    own = values.reshape(groups, -1, *values.shape[1:])
    found = values.new_zeros(groups, laid // groups, *values.shape[1:])
    found[:, : own.shape[1]] = own
    return found.flatten(0, 1)
