"""Networks run on tiles of samples (see `csrc/tiles.c`): a program of steps, and its runs on any number of samples.

Samples are independent, so results depend neither on how many there are nor on the number of threads.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.kernels.build import compiled
from automc.kernels.steps import FloatArray, Step, Steps
from automc.kernels.threads import threads, together

CONV, WINOGRAD, DEPTHWISE, ADD, AFFINE, MAXIMUM, MEAN, COPY, CLEAR, ROUND = range(10)
_KINDS = {"add": ADD, "affine": AFFINE, "maximum": MAXIMUM, "mean": MEAN, "copy": COPY, "clear": CLEAR, "round": ROUND}
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


class Program(Steps):
    """Steps that can be run; each is packed when it is first needed."""

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[int, _Step] = {}
        self._arrays: list[FloatArray] = []

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
        needed = [self._step(number) for number in self._needed(set(given), set(results))]
        steps, sizes = self._placed(needed, set(stored))
        job = _Job((_Step * len(steps))(*steps), sizes, _scratch(needed), stored)
        together(job.run, np.array_split(np.arange(count), min(threads(), max(1, count))))
        return [stored[value] for value in wanted]

    def _needed(self, given: set[int], wanted: set[int]) -> list[int]:
        """Numbers of the steps that lead from some values to others."""
        needed, numbers = set(wanted), []
        for number in reversed(range(len(self.steps))):
            step = self.steps[number]
            if step.out in needed - given:
                numbers.append(number)
                needed |= {step.x, step.other}
        return numbers[::-1]

    def _step(self, number: int) -> _Step:
        """A step as the kernels have it."""
        if number not in self._packed:
            s = self.steps[number]
            kind, weight, bias = self._product(s) if s.kind == "product" else (_KINDS[s.kind], s.weight, s.bias)
            shapes = (*self.shapes[s.x], *self.shapes[s.out])
            numbers = (kind, s.x, s.other, s.out, *shapes, *s.window.as_c(), s.groups, s.offset)
            limits = (s.limits.low, s.limits.high, s.step, s.zero)
            self._packed[number] = _Step(*numbers, *limits, self._held(weight), self._held(bias))
        return self._packed[number]

    def _product(self, step: Step) -> tuple[int, FloatArray, FloatArray]:
        """How a convolution is computed, with its weights in the order they are read, and its bias."""
        weight, window = step.weight, step.window
        assert weight is not None
        out = len(weight)
        bias = np.zeros(out, dtype=np.float32) if step.bias is None else step.bias
        if step.groups == self.shapes[step.x][2] == out > 1:
            return DEPTHWISE, weight[:, 0].reshape(out, -1).T, bias
        if window.kernel == (3, 3) and window.stride == window.dilation == (1, 1) and step.groups == 1:
            return WINOGRAD, _packed(_transformed(weight), 1), bias
        taps = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[1], out)
        return CONV, _packed(taps, step.groups), bias

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


def _scratch(steps: Sequence[_Step]) -> int:
    """Vectors of scratch that some steps need."""
    outputs = int(kernels().tiles_outputs())
    return max((72 * (s.channels + outputs + 1) for s in steps if s.kind == WINOGRAD), default=1)


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
