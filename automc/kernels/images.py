"""A network on one image after another, its weights sparse (see `csrc/images.c`): from steps to a plan.

How a value lies depends on who reads it: with as many rows of zeros as the kernels that move over it look beyond it. A
plan says of each product how many outputs are taken at once, and into how many parts its columns are cut.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.errors import ArtifactError, TaskError
from automc.kernels.build import compiled
from automc.kernels.matrix import Masks, Matrix, Reads, Stored, packed
from automc.kernels.plan import WORTH, Head, Memory, header, scratch
from automc.kernels.steps import Kind, Shape, Step, Steps, Window
from automc.kernels.threads import dealt, threads

LARGEST = 2**31
_KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of images.c."""


class _Layout(ctypes.Structure):
    """As in images.c."""

    _fields_ = [(name, ctypes.c_int) for name in ("channels", "height", "width", "above", "plane")]


class _Step(ctypes.Structure):
    """As in images.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("kind", "in_", "other", "out", "offset")),
        *((name, ctypes.c_int * 2) for name in ("kernel", "stride", "padding", "dilation")),
        *((name, ctypes.c_int) for name in ("phases", "shift")),
        *((name, ctypes.c_float) for name in ("low", "high", "step", "zero")),
        *((name, ctypes.c_int64) for name in ("scale", "bias")),
        ("matrix", Stored),
    ]


class _Plan(Head):
    """As in images.c, behind the head."""

    KIND = 101
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("steps", "values", "input", "output", "cleared")),
        *((name, ctypes.c_int64) for name in ("step", "layout", "place", "clear", "floats", "work")),
    )


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled functions, told what they take: that spares a conversion a call."""
    found = compiled("images")
    if found is None:
        return None
    if (found.images_step_bytes(), found.images_plan_bytes()) != (ctypes.sizeof(_Step), ctypes.sizeof(_Plan)):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    found.images_run.argtypes = [pointer, pointer, pointer, number, pointer]
    return found


def lanes() -> int:
    """Positions in a vector; 0 where there is no compiled library."""
    found = _library()
    return 0 if found is None else int(found.images_lanes())


@dataclass(frozen=True, slots=True)
class Choice:
    """How one product is carried out."""

    block: int = 1
    """Outputs that are taken at once."""
    parts: int = 1
    """Runs of columns."""
    shift: bool = False
    """Whether a kernel that slides over its input has moved copies of it laid out first."""


@dataclass(frozen=True, slots=True)
class _Lie:
    """How a value lies: its shape, and rows of zeros."""

    shape: Shape
    above: int = 0
    below: int = 0

    @property
    def plane(self) -> int:
        """Floats of a channel; a vector may read beyond its last position."""
        height, width, _ = self.shape
        return -(-((self.above + height + self.below) * width + lanes()) // lanes()) * lanes()

    @property
    def floats(self) -> int:
        """Of all channels."""
        return self.shape[2] * self.plane


def _slides(window: Window, shape: Shape) -> bool:
    """Whether a kernel moves by one over all columns, so that what its taps read are runs."""
    return window.stride == (1, 1) and window.over(shape)[1] == shape[1]


def planned(network: Steps, source: int, result: int, choices: Mapping[int, Choice]) -> Tensor:
    """The plan (bytes,) from one value of a network to another; choices: by number of a step that is a product.

    ArtifactError for a value of 2^31 floats or more, which no offset reaches.
    """
    return _Planner(network).plan(source, result, choices)


def run(x: Tensor, plan: Tensor, shape: Sequence[int]) -> Tensor:
    """What a planned network gives for x (B, channels, height, width) or (B, channels), float32, as (B, *shape).

    TaskError for images of another size, which would be read beyond their end, and for another shape.
    """
    made_for, library = header(plan, _Plan, lanes()), _library()
    assert library is not None  # whose lanes they are
    given, gives = (_held(plan, made_for.layout, value) for value in (made_for.input, made_for.output))
    if x.dim() not in (2, 4) or (*x.shape[1:], 1, 1)[:3] != given:
        raise TaskError(
            f"Inputs must be {_sizes(given)}, which this plan was made for; one is {_sizes(x.shape[1:])}: deploy the "
            "model for inputs of that size."
        )
    if tuple(shape) != gives:
        raise TaskError(f"This plan's results are {_sizes(gives)}; asked for are {_sizes(shape)}: ask for its own.")
    x = x.contiguous()
    out = torch.empty(len(x), *shape)

    def part(begin: int, end: int) -> None:
        own = scratch(made_for.floats)
        given, made = x[begin:].data_ptr(), out[begin:].data_ptr()
        library.images_run(plan.data_ptr(), given, made, end - begin, own.data_ptr())

    dealt(part, len(x), min(threads(), 1 + len(x) * made_for.work // WORTH))
    return out


def _held(plan: Tensor, layouts: int, value: int) -> Shape:
    """Channels, height and width of a value."""
    found = _Layout.from_address(plan.data_ptr() + layouts + value * ctypes.sizeof(_Layout))
    return found.channels, found.height, found.width


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


class _Planner:
    """A plan while it is made."""

    def __init__(self, network: Steps) -> None:
        self._network, self._memory, self._lies, self._work = network, Memory(_Plan), _lies(network), 0

    def plan(self, source: int, result: int, choices: Mapping[int, Choice]) -> Tensor:
        steps: list[_Step] = []
        for number, step in enumerate(self._network.steps):
            steps += self._steps(step, choices.get(number, Choice()))
        if max(lie.floats for lie in self._lies) >= LARGEST:
            raise ArtifactError(
                f"A value of a plan must have fewer than 2^31 floats; one has {max(x.floats for x in self._lies):,}: "
                "run the model on smaller images, or by torch."
            )
        place, clear, floats = _placed(steps, self._lies, source, result)
        layouts = [_Layout(x.shape[2], *x.shape[:2], x.above, x.plane) for x in self._lies]
        return self._memory.finished(
            lanes=lanes(),
            steps=len(steps),
            values=len(layouts),
            input=source,
            output=result,
            cleared=len(clear),
            step=self._memory.put((_Step * len(steps))(*steps)),
            layout=self._memory.put((_Layout * len(layouts))(*layouts)),
            place=self._memory.put(np.array(place, dtype=np.int64)),
            clear=self._memory.put(np.array(clear, dtype=np.int32)),
            floats=floats,
            work=self._work,
        )

    def _steps(self, step: Step, choice: Choice) -> list[_Step]:
        if step.kind != "product":
            return [self._packed(step)]
        lie, window = self._lies[step.x], step.window
        if window.over(lie.shape) == (1, 1) and window.padding == (0, 0):
            return [self._product(step, _single(window, lie), choice)]
        if not _slides(window, lie.shape):
            laid = _spread(step, lie, len(self._lies))
        elif choice.shift and window.kernel[1] > 1:
            laid = _shifted(step, lie, len(self._lies))
        else:
            return [self._product(step, _taps(window, lie), choice)]
        self._lies.append(laid.lie)
        return [self._laid(laid), self._product(replace(step, x=laid.step.out), laid.reads, choice)]

    def _laid(self, laid: "_Laid") -> _Step:
        masks = Stored(mask=0 if laid.masks is None else self._memory.put(laid.masks.lanes))
        return self._packed(laid.step, laid.phases, laid.shift, masks)

    def _product(self, step: Step, reads: Reads, choice: Choice) -> _Step:
        matrix = _matrix(step, reads, choice)
        height, width, _ = self._network.shapes[step.out]
        self._work += matrix.value.size * -(-height * width // lanes())
        return self._packed(replace(step, weight=None, bias=None), matrix=matrix.stored(self._memory))

    def _packed(self, step: Step, phases: int = 0, shift: int = 0, matrix: Stored | None = None) -> _Step:
        numbers = (_KINDS.index(step.kind), step.x, step.other, step.out, step.offset, *step.window.as_c())
        limits = (step.limits.low, step.limits.high, step.step, step.zero)
        places = (0 if x is None else self._memory.put(x.astype(np.float32)) for x in (step.weight, step.bias))
        return _Step(*numbers, phases, shift, *limits, *places, matrix or Stored())


def _lies(network: Steps) -> list[_Lie]:
    """How each value lies, from who reads it."""
    above, below = [0] * len(network.shapes), [0] * len(network.shapes)
    for step in network.steps:
        window, shape = step.window, network.shapes[step.x]
        if step.kind != "product" or not _slides(window, shape):
            continue
        # what is moved beyond a side is masked, but read
        edge = -(-window.padding[1] // shape[1])
        deepest = network.shapes[step.out][0] - 1 + window.dilation[0] * (window.kernel[0] - 1) - window.padding[0]
        above[step.x] = max(above[step.x], window.padding[0] + edge)
        below[step.x] = max(below[step.x], deepest - (shape[0] - 1) + edge)
    return [_Lie(*found) for found in zip(network.shapes, above, below, strict=True)]


def _taps(window: Window, lie: _Lie) -> Reads:
    """What each column of a weight (channels, kh, kw) reads of a value that its kernel slides over."""
    positions = math.prod(window.over(lie.shape))
    moves = _moves(window)
    read = _inside(lie, moves, -(-positions // lanes()))
    read |= np.arange(read[0].size).reshape(read[0].shape) >= positions  # nobody looks at those
    taps = _tap_rows(window, lie)[:, None] + moves
    return _reads(np.arange(lie.shape[2]) * lie.plane, taps, Masks.of(read))


def _single(window: Window, lie: _Lie) -> Reads:
    """What each column of a weight (channels, kh, kw) reads where a kernel is at one place alone, as that of a linear
    layer is which reads a whole image."""
    taps = _tap_rows(window, lie)[:, None] + np.arange(window.kernel[1]) * window.dilation[1]
    return _reads(np.arange(lie.shape[2]) * lie.plane, taps, _all_read(window.kernel[1]))


def _moves(window: Window) -> NDArray[np.int64]:
    """Columns by which the taps of a kernel are away from where it is."""
    return np.arange(window.kernel[1]) * window.dilation[1] - window.padding[1]


def _tap_rows(window: Window, lie: _Lie) -> NDArray[np.int64]:
    """Floats from the beginning of a channel to the row that each row of a kernel reads at the first position."""
    rows: NDArray[np.int64] = np.arange(window.kernel[0]) * window.dilation[0] - window.padding[0] + lie.above
    return rows * lie.shape[1]


def _inside(lie: _Lie, moves: NDArray[np.int64], vectors: int) -> NDArray[np.bool_]:
    """Whether what is so many columns away lies in the same row (moves, vectors, lanes)."""
    at = np.arange(vectors * lanes()) % lie.shape[1] + moves[:, None]
    inside: NDArray[np.bool_] = (at >= 0) & (at < lie.shape[1])
    return inside.reshape(len(moves), vectors, lanes())


def _reads(channels: NDArray[np.int64], taps: NDArray[np.int64], masks: Masks) -> Reads:
    """From the floats to each channel and each tap of a kernel (kh, kw)."""
    offset = (channels[:, None, None] + taps).reshape(-1)
    side = np.broadcast_to(np.arange(taps.shape[1]) * masks.lanes.shape[1], (len(channels), *taps.shape))
    return Reads(offset.astype(np.int32), side.reshape(-1).astype(np.int32), masks)


@dataclass(frozen=True, eq=False, slots=True)
class _Laid:
    """What is laid out before a product."""

    step: Step
    reads: Reads
    """What the columns of the weight read of it."""
    lie: _Lie
    masks: Masks | None = None
    phases: int = 0
    shift: int = 0


def _shifted(step: Step, lie: _Lie, number: int) -> _Laid:
    """A plane for each channel and each column of a kernel that slides, rows of zeros included."""
    window = step.window
    columns = window.kernel[1]
    shape = (lie.shape[0], lie.shape[1], lie.shape[2] * columns)
    planes = replace(lie, shape=shape)
    taps = _tap_rows(window, lie)[:, None] + np.arange(columns) * lie.plane
    reads = _reads(np.arange(lie.shape[2]) * columns * lie.plane, taps, _all_read(columns))
    read = _inside(lie, _moves(window), lie.plane // lanes())
    return _Laid(Step("shift", step.x, number, window), reads, planes, Masks.of(read))


def _spread(step: Step, lie: _Lie, number: int) -> _Laid:
    """A plane for each channel, column of the kernel and phase of its rows: row r of phase f is the input's row
    (r + shift) * stride + f, every stride-th column of it."""
    window = step.window
    height, width = window.over(lie.shape)
    tap = np.arange(window.kernel[0]) * window.dilation[0] - window.padding[0]
    phase, row = tap % window.stride[0], tap // window.stride[0]
    phases, shift = int(phase.max()) + 1, int(row.min())
    each = window.kernel[1] * phases
    planes = _Lie((height + int(row.max()) - shift, width, lie.shape[2] * each))
    plane = np.arange(window.kernel[1]) * phases + phase[:, None]
    taps = plane * planes.plane + (row[:, None] - shift) * width
    reads = _reads(np.arange(lie.shape[2]) * each * planes.plane, taps, _all_read(window.kernel[1]))
    return _Laid(Step("spread", step.x, number, window), reads, planes, phases=phases, shift=shift)


def _all_read(columns: int) -> Masks:
    return Masks.of(np.ones((columns, 1, lanes()), dtype=np.bool_))


def _matrix(step: Step, reads: Reads, choice: Choice) -> Matrix:
    """A convolution's weight over all channels, in parts by channels."""
    weight = step.weight
    assert weight is not None
    outer, inner = len(weight) // step.groups, weight.shape[1]
    taps = math.prod(weight.shape[2:])
    whole = np.zeros((len(weight), inner * step.groups * taps), dtype=np.float32)
    for g in range(step.groups):
        rows, columns = slice(g * outer, (g + 1) * outer), slice(g * inner * taps, (g + 1) * inner * taps)
        whole[rows, columns] = weight[rows].reshape(outer, -1)
    parts = [
        (part[:, None] * taps + np.arange(taps)).reshape(-1)
        for part in np.array_split(np.arange(inner * step.groups), choice.parts)
        if len(part)
    ]
    return packed(whole, step.bias, reads, choice.block, parts)


def _placed(steps: Sequence[_Step], lies: Sequence[_Lie], source: int, result: int) -> tuple[list[int], list[int], int]:
    """Floats from the beginning of the scratch to each value; one value of each place; floats of the scratch.

    A place is used again for values that lie alike, once its own is read for the last time: its zeros stay where they
    are, and little memory stays warm. A vector moved by some columns is read from before its channel and beyond it.
    """
    last = {v: i for i, s in enumerate(steps) for v in (s.in_, s.other) if v >= 0}
    place, clear, floats = {source: lanes()}, [source], lanes() + lies[source].floats
    free: dict[_Lie, list[int]] = {}
    for i, step in enumerate(steps):
        if step.out not in place:
            waiting = free.get(lies[step.out], [])
            if waiting:
                place[step.out] = waiting.pop()
            else:
                place[step.out] = floats
                clear.append(step.out)
                floats += lies[step.out].floats
        for value in {step.in_, step.other} - {-1, step.out, result}:
            if last[value] == i:
                free.setdefault(lies[value], []).append(place[value])
    return [place.get(value, 0) for value in range(len(lies))], clear, floats + lanes()
