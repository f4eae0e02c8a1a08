"""What a network computes, step by step, whatever kernels then carry it out: `tiles` and `images` do.

A value is known by its number and has a shape (height, width, channels); what a linear layer reads and gives has height
and width one.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float32]
Shape = tuple[int, int, int]
Pair = tuple[int, int]
Kind = Literal["product", "shift", "spread", "add", "affine", "maximum", "mean", "copy", "clear", "round"]
"""shift and spread lay out what a product of `images` reads; nobody asks for them."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel moves over its input."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def over(self, shape: Shape) -> Pair:
        """Height and width of what comes out."""
        sides = zip(shape, self.kernel, self.stride, self.padding, self.dilation, strict=False)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return height, width

    def as_c(self) -> "tuple[ctypes.Array[ctypes.c_int], ...]":
        """Its four pairs, in the order in which structures in C have them."""
        return tuple((ctypes.c_int * 2)(*p) for p in (self.kernel, self.stride, self.padding, self.dilation))


@dataclass(frozen=True, slots=True)
class Limits:
    """What an output is clamped to."""

    low: float = -math.inf
    high: float = math.inf


POINT, FREE = Window(), Limits()


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One value made from one or two others."""

    kind: Kind
    x: int
    out: int
    window: Window = POINT
    limits: Limits = FREE
    other: int = -1
    """What is added before the limits; -1 for nothing."""
    weight: FloatArray | None = None
    """(out, in / groups, kernel height, kernel width); of an affine step (channels,)."""
    bias: FloatArray | None = None
    groups: int = 1
    offset: int = 0
    """Of a copy: the first channel of the output."""
    step: float = 0.0
    """The distance of two levels; of a mean what one position counts."""
    zero: float = 0.0
    """The level of 0.0."""


class Steps:
    """Steps that follow one another; weights are held, not copied."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        """Of every value."""
        self.steps: list[Step] = []

    def given(self, shape: Shape) -> int:
        """A value that every run is given, or might be."""
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def convolution(
        self,
        x: int,
        weight: FloatArray,
        bias: FloatArray | None,
        window: Window,
        groups: int = 1,
        limits: Limits = FREE,
        other: int = -1,
    ) -> int:
        """weight (out, in / groups, kh, kw), bias (out,); `other` is added before the limits."""
        out = self.given((*window.over(self.shapes[x]), len(weight)))
        return self._add(Step("product", x, out, window, limits, other, weight, bias, groups))

    def pool(self, x: int, window: Window, *, largest: bool) -> int:
        """The largest value under each window, or the mean, padding counted as zeros."""
        out = self.given((*window.over(self.shapes[x]), self.shapes[x][2]))
        return self._add(Step("maximum" if largest else "mean", x, out, window, step=1 / math.prod(window.kernel)))

    def add(self, x: int, other: int = -1, limits: Limits = FREE) -> int:
        """The sum of two values of one shape, or one value, within limits."""
        return self._add(Step("add", x, self.given(self.shapes[x]), limits=limits, other=other))

    def affine(self, x: int, scale: FloatArray, shift: FloatArray, limits: Limits = FREE) -> int:
        """scale * x + shift, both (channels,)."""
        return self._add(Step("affine", x, self.given(self.shapes[x]), limits=limits, weight=scale, bias=shift))

    def joined(self, parts: Sequence[tuple[int, int]], channels: int, stride: Pair = (1, 1)) -> int:
        """Values side by side, each with its first channel in the output, every stride-th position; zeros between."""
        height, width, _ = self.shapes[parts[0][0]]
        out = self.given((-(-height // stride[0]), -(-width // stride[1]), channels))
        if sum(self.shapes[x][2] for x, _ in parts) < channels:
            self._add(Step("clear", parts[0][0], out))
        for x, offset in parts:
            self._add(Step("copy", x, out, Window(stride=stride), offset=offset))
        return out

    def rounded(self, x: int, step: float, zero: float, top: float) -> int:
        """Levels 0 to `top`, `step` apart, of which `zero` stands for 0.0."""
        return self._add(Step("round", x, self.given(self.shapes[x]), limits=Limits(0.0, top), step=step, zero=zero))

    @property
    def products(self) -> list[int]:
        """Which of the steps are products."""
        return [i for i, s in enumerate(self.steps) if s.kind == "product"]

    def _add(self, step: Step) -> int:
        self.steps.append(step)
        return step.out


def shape_of(x: Tensor) -> Shape | None:
    """Height, width and channels of float32 samples (B, channels) or (B, channels, height, width); None of others."""
    if x.dtype != torch.float32 or x.dim() not in (2, 4):
        return None
    return (x.shape[2], x.shape[3], x.shape[1]) if x.dim() == 4 else (1, 1, x.shape[1])
