"""Dense convolutions of 8 bits: images are rounded to rows of what each output reads, which one product multiplies.

The product is that of linear layers (see `dense8`). oneDNN's own convolutions of 8 bits would spare the rows, up to a
third of the time, but those of oneDNN 3.12 give wrong sums for some shapes: beside others with padding and a level of
0.0 that is not 0, with groups, or where kernels of 4 columns move by 4.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import PolicyError
from automc.kernels.dense8 import (
    FLOATS,
    ONEDNN,
    WINDOWS,
    Dense8,
    check_call,
    functions,
    in_passes,
    laid,
    product,
)
from automc.kernels.integers import Quantized, layout_of, leveled, rounded, window_of
from automc.kernels.packed import packed
from automc.kernels.plan import plain
from automc.kernels.sparse8 import library
from automc.kernels.steps import Pair, Window
from automc.kernels.threads import dealt, threads


def _conv2d(x: Tensor, *given: Any) -> Tensor:
    """`automc::dense8_conv2d` on a processor."""
    check_call(x, given[:4], (x.shape[1] // given[7],))
    return _convolved(x, *given)


def _convolved(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, levels: Tensor, *sides: Any) -> Tensor:
    window, groups, layout = _window(codes, sides), sides[3], layout_of(x)
    height, width = window.over((x.shape[2], x.shape[3], x.shape[1]))
    if min(height, width) < 1:
        raise RuntimeError(f"An image must have an output; it is {tuple(x.shape)}: give a larger one.")
    shape = (len(x), height, width, len(codes))
    if not x.numel():
        return torch.empty((*shape[:1], shape[3], *shape[1:3]), memory_format=layout)
    count = len(x) * height * width
    rows = packed(codes, ONEDNN, lambda: laid(_as_rows(codes), levels, count, groups), levels)
    if not rows.weights:
        return _in_torch(x, codes, scale, bias, levels, *sides).contiguous(memory_format=layout)
    x = x.contiguous(memory_format=layout)
    level, numbers = _windows(x, levels, rows.zero, window, groups, (height, width))
    each = zip(level, scale.chunk(groups), bias.chunk(groups), strict=True)
    parts = [product(part, rows, g, s, b) for g, (part, s, b) in enumerate(each)]
    y = (parts[0] if groups == 1 else torch.cat(parts, dim=1)).reshape(shape).permute(0, 3, 1, 2)
    if not numbers:
        y.masked_fill_(_touched(x.isnan(), codes, sides), torch.nan)  # as in torch
    return y.contiguous(memory_format=layout)


def _as_rows(codes: Tensor) -> Tensor:
    """Codes (outputs, kernel height * kernel width * channels)."""
    return codes.permute(0, 2, 3, 1).flatten(1).contiguous()


def _windows(x: Tensor, levels: Tensor, zero: int, window: Window, groups: int, made: Pair) -> tuple[Tensor, bool]:
    """What each output of images in either layout reads, as levels (groups, outputs, kernel * channels of a group);
    whether all of it are numbers."""
    images, channels, height, width = x.shape
    sides = zip(made, window.kernel, window.stride, window.dilation, strict=True)
    rows, columns = ((n - 1) * s + d * (k - 1) + 1 for n, k, s, d in sides)
    above, before = window.padding
    taps = window.kernel[0] * window.kernel[1] * channels // groups
    count = made[0] * made[1]
    found = functions()
    if found is None:
        level, numbers = in_passes(x, levels)
        read = F.pad(level, (before, columns - before - width, above, rows - above - height), value=zero)
        return _gathered(read, window, groups), numbers
    out = torch.empty((groups, images * count, taps), dtype=torch.uint8)
    last = layout_of(x) is torch.channels_last
    moves = (*window.kernel, *window.stride, *window.dilation, *made)
    asked = WINDOWS.pack(channels, height, width, last, above, before, rows, columns, groups, *moves)

    def some(begin: int, end: int) -> int:
        at = (x.data_ptr() + begin * x[0].nbytes, end - begin, out.data_ptr() + begin * count * taps)
        return int(found.dense8_windows(levels.data_ptr(), asked, *at, images * count * taps))

    told = min(dealt(some, images, min(threads(), 1 + x.numel() // FLOATS)))
    if told < 0:
        raise RuntimeError(f"Memory must suffice for images {tuple(x.shape)}; it did not: give fewer or smaller ones.")
    return out, bool(told)


def _gathered(x: Tensor, window: Window, groups: int) -> Tensor:
    """The same of levels (images, channels, rows, columns), padded, in torch."""
    for side in (2, 3):
        at = side - 2
        x = x.unfold(side, window.dilation[at] * (window.kernel[at] - 1) + 1, window.stride[at])
    x = x[..., :: window.dilation[0], :: window.dilation[1]]  # (images, channels, height, width, kernel)
    apart = x.reshape(len(x), groups, -1, *x.shape[2:]).permute(1, 0, 3, 4, 5, 6, 2)
    return apart.reshape(groups, -1, apart.shape[4] * apart.shape[5] * apart.shape[6])


def _touched(marks: Tensor, codes: Tensor, sides: tuple[Any, ...]) -> Tensor:
    """Outputs (images, outputs, height, width) whose window holds a mark, of the channels that they read."""
    groups = sides[3]
    any_of = marks.reshape(len(marks), groups, -1, *marks.shape[2:]).any(dim=2).float()
    found = F.conv2d(any_of, torch.ones(groups, 1, *codes.shape[2:]), None, *sides) > 0
    return found.repeat_interleave(len(codes) // groups, dim=1)


def _in_torch(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, levels: Tensor, *sides: Any) -> Tensor:
    """The same where oneDNN is not to be trusted; float64 holds the sums exactly."""
    level = leveled(x, levels)
    sums = F.conv2d(level, codes.double(), None, *sides).float()
    return sums * scale[:, None, None] + bias[:, None, None]


def _window(codes: Tensor, sides: Sequence[Any]) -> Window:
    stride, padding, dilation = ((side[0], side[1]) for side in sides[:3])
    return Window((codes.shape[2], codes.shape[3]), stride, padding, dilation)


def _shaped(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, levels: Tensor, *sides: Any) -> Tensor:
    """What `_conv2d` gives, without the numbers."""
    made = _window(codes, sides).over((x.shape[2], x.shape[3], x.shape[1]))
    return torch.empty((x.shape[0], codes.shape[0], *made), device=x.device, memory_format=layout_of(x))


library.define(  # type: ignore[no-untyped-call]
    "dense8_conv2d(Tensor x, Tensor codes, Tensor scale, Tensor bias, Tensor levels, int[2] stride, int[2] padding, "
    "int[2] dilation, int groups) -> Tensor"
)
library.impl("dense8_conv2d", _conv2d, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("automc::dense8_conv2d", _shaped, lib=library)


class DenseInt8Conv2d(Dense8):
    """A convolution with integer codes whose input is rounded; one on rows is one on images of height one."""

    window: Window
    groups: int
    on_rows: bool

    @classmethod
    def of(cls, quantized: Quantized) -> "DenseInt8Conv2d":
        """The same layer as one with integer codes and rounded input that holds an nn.Conv2d or nn.Conv1d.

        PolicyError for one without codes of its own scale, that does not round what it reads, whose sums oneDNN would
        cut off, that is depthwise, or with padding that is uneven or not of zeros.
        """
        layer = quantized.layer
        if not isinstance(layer, (nn.Conv1d, nn.Conv2d)) or layer.in_channels == layer.groups > 1:
            raise PolicyError(
                f"The layer must be an nn.Conv1d or nn.Conv2d, and not depthwise; it is {layer}: leave it in torch."
            )
        window, (codes, scale, levels) = window_of(layer), rounded(quantized)
        found = cls(codes.reshape(*codes.shape[:2], *window.kernel), scale, layer.bias, levels)
        found.window, found.groups, found.on_rows = window, layer.groups, isinstance(layer, nn.Conv1d)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """x (images, channels, height, width) float32, or without height; the output lies in memory as x does, and is
        not a number where a window holds an input that is none."""
        held = self.held()
        channels, w = self.groups * held[0].shape[1], self.window
        if x.dim() != (3 if self.on_rows else 4) or x.shape[1] != channels:
            sides = f"(images, {channels}, {'' if self.on_rows else 'height, '}width)"
            raise RuntimeError(f"x must be {sides}; it is {tuple(x.shape)}: check what it reads.")
        given: Any = (*held, list(w.stride), list(w.padding), list(w.dilation), self.groups)
        images = x.unsqueeze(2) if self.on_rows else x
        known = plain(x) and plain(held[1])
        found: Tensor = _convolved(images, *given) if known else torch.ops.automc.dense8_conv2d.default(images, *given)
        return found.squeeze(2) if self.on_rows else found
