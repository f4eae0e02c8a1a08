"""A rounded layer as the integers that kernels of 8 bits multiply: codes, their scales, and levels of activations."""

from typing import Protocol

import torch
from torch import Tensor, nn

from automc.errors import PolicyError
from automc.kernels.steps import Pair, Window

LARGEST = (2**31 - 1) // 255
"""What the magnitudes of an output's codes may sum up to, so that 32 bits hold its sum of products."""
Levels = tuple[float, float, float]
"""The distance of two levels of activations, the level of 0.0, and the last one; the first one is 0."""


class Quantized(Protocol):
    """A layer with integer codes and rounded input, as `automc.compression.quantize.QuantizedLayer` is one."""

    layer: nn.Module
    weight_scale: Tensor | None

    @property
    def codes(self) -> Tensor | None:
        """The weight as integers."""


def rounded(quantized: Quantized) -> tuple[Tensor, Tensor, Levels]:
    """Codes, scales (outputs,) and levels of a layer; PolicyError where its numbers are not evenly spaced."""
    rounding = getattr(quantized, "input", None)
    if quantized.codes is None or quantized.weight_scale is None or rounding is None:
        raise PolicyError("Weights and activations must be rounded to evenly spaced levels; choose 8 bits for both.")
    levels: Levels = rounding.levels()
    return quantized.codes, quantized.weight_scale, levels


def check_codes(codes: Tensor) -> None:
    """PolicyError unless codes (outputs, inputs) have 8 bits, and 32 bits hold every sum of products."""
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


def check_levels(levels: Levels) -> None:
    """PolicyError unless levels have 8 bits."""
    step, zero, top = levels
    if not (step > 0 and 0 <= zero <= top <= 255):
        raise PolicyError(f"Levels must be 0 to 255 at most, {levels} were given: choose at most 8 bits.")


def leveled(x: Tensor, levels: Tensor) -> Tensor:
    """Each input's level less that of 0.0, in float64, which holds sums of products with codes exactly."""
    step, zero, top = levels.unbind()
    return (x / step).round().clamp(-zero, top - zero).double()


def window_of(layer: nn.Conv1d | nn.Conv2d) -> Window:
    """How a convolution moves, one on rows as one on images of height one; PolicyError for padding that is uneven, or
    not of zeros."""
    kernel, stride, dilation = (_pair(side, 1) for side in (layer.kernel_size, layer.stride, layer.dilation))
    given = layer.padding
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if isinstance(given, str):
        padding = (reach[0] // 2, reach[1] // 2) if given == "same" else (0, 0)
    else:
        padding = _pair(given, 0)
    if layer.padding_mode != "zeros" or (given == "same" and (reach[0] % 2 or reach[1] % 2)):
        raise PolicyError(f"Padding must be of zeros, and even; it is that of {layer}: leave it in torch.")
    return Window(kernel, stride, padding, dilation)


def layout_of(x: Tensor) -> torch.memory_format:
    """Of images that a convolution reads, which is that of what it makes."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _pair(sides: tuple[int, ...], missing: int) -> Pair:
    """Of two sides; of one side, what that of height one has before it."""
    return (sides[0], sides[1]) if len(sides) == 2 else (missing, sides[0])
