"""Networks run on tiles of samples (see `csrc/tiles.c`): a program of steps, and its runs on any number of samples.

A value has a shape (height, width, channels); what a linear layer reads and gives has height and width one. Samples are
independent, so results depend neither on how many there are nor on the number of threads.
"""

import ctypes
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.kernels.build import compiled

FloatArray = NDArray[np.float32]
Shape = tuple[int, int, int]
Pair = tuple[int, int]
CONV, WINOGRAD, DEPTHWISE, ADD, AFFINE, MAXIMUM, MEAN, COPY, CLEAR, ROUND = range(10)
T = TypeVar("T")
R = TypeVar("R")
# Winograd's F(4x4, 3x3), Lavin and Gray 2016, section 4.3: the weights' transform; the others are in tiles.c.
_WEIGHTS = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


class _Step(ctypes.Structure):
    """As in tiles.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("kind", "in_", "other", "out", "height", "width", "channels")),
        *((name, ctypes.c_int) for name in ("out_height", "out_width", "out_channels")),
        *((name, ctypes.c_int * 2) for name in ("kernel", "stride", "padding", "dilation")),
        *((name, ctypes.c_int) for name in ("groups", "offset")),
        *((name, ctypes.c_float) for name in ("low", "high", "step", "zero")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
    ]


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
        """Its four pairs, in the order of the structures in tiles.c."""
        return tuple((ctypes.c_int * 2)(*p) for p in (self.kernel, self.stride, self.padding, self.dilation))


@dataclass(frozen=True, slots=True)
class Limits:
    """What an output is clamped to."""

    low: float = -math.inf
    high: float = math.inf


FREE = Limits()


@cache
def lanes() -> int:
    """Samples in a tile; 0 where there is no compiled library."""
    found = compiled("tiles")
    if found is None or found.tiles_step_bytes() != ctypes.sizeof(_Step):
        return 0
    return int(found.tiles_lanes())


def kernels() -> ctypes.CDLL:
    """The compiled functions, for whoever has tiles."""
    found = compiled("tiles")
    assert found is not None  # there are no tiles without it
    return found


def shape_of(x: Tensor) -> Shape | None:
    """Height, width and channels of float32 samples (B, channels) or (B, channels, height, width); None of others."""
    if x.dtype != torch.float32 or x.dim() not in (2, 4):
        return None
    return (x.shape[2], x.shape[3], x.shape[1]) if x.dim() == 4 else (1, 1, x.shape[1])


class Program:
    """Steps that follow one another; a value, given or made by a step, is known by its number.

    dry: only shapes are worked out, and nothing can be run.
    """

    def __init__(self, *, dry: bool = False) -> None:
        self._dry = dry
        self.shapes: list[Shape] = []
        """Of every value."""
        self._steps: list[_Step] = []
        self._arrays: list[FloatArray] = []

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
        channels, out = self.shapes[x][2], len(weight)
        found = self.given((*window.over(self.shapes[x]), out))
        if self._dry:
            return found
        if groups == channels == out > 1:
            kind, packed = DEPTHWISE, weight[:, 0].reshape(out, -1).T
        elif window.kernel == (3, 3) and window.stride == window.dilation == (1, 1) and groups == 1:
            kind, packed = WINOGRAD, _packed(_transformed(weight), 1)
        else:
            kind, packed = CONV, _packed(weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[1], out), groups)
        return self._add(
            kind,
            x,
            found,
            window,
            limits,
            other,
            packed,
            np.zeros(out, dtype=np.float32) if bias is None else bias,
            groups,
        )

    def pool(self, x: int, window: Window, *, largest: bool) -> int:
        """The largest value under each window, or the mean, padding counted as zeros."""
        found = self.given((*window.over(self.shapes[x]), self.shapes[x][2]))
        kind = MAXIMUM if largest else MEAN
        return self._add(kind, x, found, window, step=1 / (window.kernel[0] * window.kernel[1]))

    def add(self, x: int, other: int = -1, limits: Limits = FREE) -> int:
        """The sum of two values of one shape, or one value, within limits."""
        return self._add(ADD, x, self.given(self.shapes[x]), limits=limits, other=other)

    def affine(self, x: int, scale: FloatArray, shift: FloatArray, limits: Limits = FREE) -> int:
        """scale * x + shift, both (channels,)."""
        return self._add(AFFINE, x, self.given(self.shapes[x]), limits=limits, weight=scale, bias=shift)

    def joined(self, parts: Sequence[tuple[int, int]], channels: int, stride: Pair = (1, 1)) -> int:
        """Values side by side, each with its first channel in the output, every stride-th position; zeros between."""
        height, width, _ = self.shapes[parts[0][0]]
        found = self.given((-(-height // stride[0]), -(-width // stride[1]), channels))
        if sum(self.shapes[x][2] for x, _ in parts) < channels:
            self._add(CLEAR, found, found)
        for x, offset in parts:
            self._add(COPY, x, found, Window(stride=stride), offset=offset)
        return found

    def rounded(self, x: int, step: float, zero: float, top: float) -> int:
        """Levels 0 to `top`, `step` apart, of which `zero` stands for 0.0."""
        return self._add(ROUND, x, self.given(self.shapes[x]), limits=Limits(0.0, top), step=step, zero=zero)

    def run(
        self,
        given: Mapping[int, Tensor],
        wanted: Sequence[int],
        *,
        room: "Room | None" = None,
    ) -> list[Tensor]:
        """What the wanted values are for given ones, each (tiles, *shape, lanes); only steps between them run.

        room: where results are put.
        """
        count, room = len(next(iter(given.values()))), room or Room()
        results = {v: room.take((count, *self.shapes[v], lanes())) for v in wanted if v not in given}
        stored = {value: x.contiguous() for value, x in given.items()} | results
        steps, sizes = self._placed(self._needed(set(given), set(results)), set(stored))
        job = _Job((_Step * len(steps))(*steps), sizes, self._scratch(), stored)
        together(job.run, np.array_split(np.arange(count), min(threads(), max(1, count))))
        return [stored[value] for value in wanted]

    def _needed(self, given: set[int], wanted: set[int]) -> list[_Step]:
        """The steps that lead from some values to others."""
        needed, steps = set(wanted), []
        for step in reversed(self._steps):
            if step.out in needed - given:
                steps.append(step)
                needed |= {step.in_, step.other}
        return steps[::-1]

    def _add(
        self,
        kind: int,
        x: int,
        out: int,
        window: Window = Window(),
        limits: Limits = FREE,
        other: int = -1,
        weight: FloatArray | None = None,
        bias: FloatArray | None = None,
        groups: int = 1,
        offset: int = 0,
        step: float = 0.0,
        zero: float = 0.0,
    ) -> int:
        numbers = (kind, x, other, out, *self.shapes[x], *self.shapes[out], *window.as_c(), groups, offset)
        pointers = (self._held(weight), self._held(bias))
        self._steps.append(_Step(*numbers, limits.low, limits.high, step, zero, *pointers))
        return out

    def _held(self, array: FloatArray | None) -> int | None:
        """The address of an array that lives as long as the program."""
        if array is None:
            return None
        self._arrays.append(np.ascontiguousarray(array, dtype=np.float32))
        return self._arrays[-1].ctypes.data

    def _placed(self, steps: list[_Step], stored: set[int]) -> tuple[list[_Step], list[int]]:
        """Steps with buffers instead of values, and each buffer's floats; stored values come first, with none.

        A buffer is used again once its value is read for the last time, so that little memory stays warm.
        """
        reads = {v: i for i, s in enumerate(steps) for v in (s.in_, s.other) if v >= 0}
        place = {value: i for i, value in enumerate(sorted(stored))}
        sizes = [0] * len(place)
        free: list[int] = []
        placed = []
        for i, step in enumerate(steps):
            for value in (step.in_, step.other, step.out):
                if value >= 0 and value not in place:
                    floats = math.prod(self.shapes[value])
                    best = min(free, key=lambda b: (sizes[b] < floats, abs(sizes[b] - floats)), default=None)
                    if best is None:
                        sizes.append(0)
                        best = len(sizes) - 1
                    else:
                        free.remove(best)
                    sizes[best] = max(sizes[best], floats)
                    place[value] = best
            copy = _Step.from_buffer_copy(step)
            copy.in_, copy.out = place[step.in_], place[step.out]
            copy.other = -1 if step.other < 0 else place[step.other]
            placed.append(copy)
            for value in {step.in_, step.other} - {-1, step.out} - stored:
                if reads[value] == i:
                    free.append(place[value])
        return placed, sizes

    def _scratch(self) -> int:
        outputs = int(kernels().tiles_outputs())
        return max((72 * (s.channels + outputs + 1) for s in self._steps if s.kind == WINOGRAD), default=1)


_lent: ContextVar[int] = ContextVar("threads lent by torch", default=0)


def threads() -> int:
    """How many threads compiled steps use: as many as torch, or as torch had before it lent them."""
    return _lent.get() or torch.get_num_threads()


@contextmanager
def lent_threads() -> Iterator[None]:
    """While open, torch works with one thread and compiled steps with all that it had.

    For work that goes back and forth between the two: threads of torch's that have nothing to do spin for a while, on
    the processors that the steps' threads wait for.
    """
    count = threads()
    token = _lent.set(count)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _lent.reset(token)
        torch.set_num_threads(1 if _lent.get() else count)


def together(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """What `work` gives for each part, by several threads."""
    workers = min(threads(), len(parts))
    if workers == 1:
        return [work(part) for part in parts]
    return list(_pool(os.getpid(), workers).map(work, parts))


@cache
def _pool(_process: int, workers: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a forked process has none of its parent's."""
    return ThreadPoolExecutor(workers, "automc-tiles")


class Room:
    """Memory that is handed out again: asking the system for it takes longer than most steps."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor with anything in it."""
        size = math.prod(shape)
        fitting = [x for x in self._free if size <= len(x) <= 1.25 * size]
        if not fitting:
            return torch.empty(shape)
        best = min(fitting, key=len)
        self._free = [x for x in self._free if x is not best]
        return best[:size].view(shape)

    def give(self, x: Tensor) -> None:
        """Takes back a tensor that nobody reads any more."""
        self._free.append(torch.empty(0).set_(x.untyped_storage()))


@dataclass(frozen=True, eq=False)
class _Job:
    """One run of a program, by several threads."""

    steps: "ctypes.Array[_Step]"
    sizes: list[int]
    scratch: int
    stored: Mapping[int, Tensor]

    def run(self, tiles: NDArray[np.int64]) -> None:
        """Runs some of the tiles; the interpreter is free meanwhile."""
        run = kernels().tiles_run
        # torch hands out memory at multiples of 64 bytes, as vectors need it
        own = [torch.empty(size * lanes()) for size in self.sizes]
        scratch = torch.empty(self.scratch * lanes())
        buffers = (ctypes.c_void_p * len(own))(*(x.data_ptr() for x in own))
        values = [(i, x.data_ptr(), x[0].nbytes) for i, (_, x) in enumerate(sorted(self.stored.items()))]
        for tile in tiles.tolist():
            for i, start, size in values:
                buffers[i] = start + tile * size
            run(self.steps, len(self.steps), buffers, ctypes.c_void_p(scratch.data_ptr()))


def to_tiles(x: Tensor) -> Tensor:
    """Samples (B, channels) or (B, channels, height, width) as tiles, the last one filled up with zeros."""
    size = lanes()
    count = -(-len(x) // size)
    image = x if x.dim() == 4 else x[:, :, None, None]
    whole = torch.zeros(count * size, *image.shape[1:])
    whole[: len(x)] = image
    return whole.reshape(count, size, *image.shape[1:]).permute(0, 3, 4, 2, 1).contiguous()


def from_tiles(tiles: Tensor, samples: int) -> Tensor:
    """The first `samples` as (B, channels, height, width)."""
    return tiles.permute(0, 4, 3, 1, 2).flatten(0, 1)[:samples].contiguous()


def _transformed(weight: FloatArray) -> FloatArray:
    """Winograd's form (36, in, out) of a 3x3 weight (out, in, 3, 3)."""
    found = np.einsum("fi,oxij,gj->fgxo", _WEIGHTS, weight.astype(np.float64), _WEIGHTS, optimize=True)
    return np.asarray(found.reshape(36, *found.shape[2:]), dtype=np.float32)


def _packed(weight: FloatArray, groups: int) -> FloatArray:
    """Weights (taps, in / groups, out) in the order they are read: by block of output channels, tap, input, output."""
    most = int(kernels().tiles_outputs())
    outer = weight.shape[2] // groups
    blocks = np.array_split(np.arange(outer), -(-outer // most))
    return np.concatenate([weight[:, :, g * outer + b].ravel() for g in range(groups) for b in blocks])
