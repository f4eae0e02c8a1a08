"""Levels that save time: what a budget of seconds alone leaves open.

FLOPs are not time: a layer at 14 of 16 channels, or with a third of its weights zero, may take as long as the whole
one. Where only latency is limited, a level that takes as long as a higher one costs accuracy for nothing.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from automc.costs.latency import Latency, LatencyTable
from automc.projection import Costing
from automc.space import GOVERNORS, Axis, FloatArray, IntArray, SearchSpace, Value

INTEGERS = ("weight_bits", "activation_bits", "codebook")
"""What a layer in integers takes all of: few bits of either, and no codebook."""
GAIN = 0.02
"""Share of what an axis can save at all that a level must save over the next higher one that is left."""


def paying(space: SearchSpace, latency: LatencyTable) -> SearchSpace:
    """The space without levels that save no time over a higher one, and with the fastest patterns first.

    Each axis is looked at by itself, everything else whole, except that few bits of weights, few bits of inputs and
    even levels save time only together. What only says how something is done that is no longer decided leaves as well.
    """
    ordered = fastest_first(space, latency)
    costing = Costing(ordered, latency)
    kept = tuple(_kept(ordered, costing, i) if a.ordered else a.values for i, a in enumerate(ordered.axes))
    axes = [replace(a, values=values) for a, values in zip(ordered.axes, kept, strict=True)]
    decided = {(a.kind, p, a.field) for a in axes if a.ordered and len(a.values) > 1 for p in a.places}
    return replace(space, axes=tuple(a for a in axes if _says_something(a, decided)))


def fastest_first(space: SearchSpace, latency: LatencyTable) -> SearchSpace:
    """The same space, each layer's patterns in the order of its seconds with the most zeros, as a projection asks."""
    costing, axes = Costing(space, latency), list(space.axes)
    zeros = {a.places: i for i, a in enumerate(axes) if a.field == "sparsity"}
    for number, axis in enumerate(axes):
        if axis.field == "pattern" and axis.places in zeros:
            points = np.repeat(space.largest[None], len(axis.values), axis=0)
            points[:, zeros[axis.places]] = 0
            points[:, number] = np.arange(len(axis.values))
            order = np.argsort(_seconds(costing, points), kind="stable")
            axes[number] = replace(axis, values=tuple(axis.values[i] for i in order))
    return replace(space, axes=tuple(axes))


def _kept(space: SearchSpace, costing: Costing, number: int) -> tuple[Value, ...]:
    """Values of an axis that save time."""
    values = space.axes[number].values
    points = np.repeat(_beside(space, number)[None], len(values), axis=0)
    points[:, number] = np.arange(len(values))
    seconds = _seconds(costing, points)
    least = GAIN * float(seconds[-1] - seconds[0])
    kept, last = [values[-1]], float(seconds[-1])
    for value, took in zip(values[-2::-1], seconds[-2::-1], strict=True):
        if last - took >= max(least, 1e-12 * last):
            kept.append(value)
            last = float(took)
    return tuple(reversed(kept))


def _beside(space: SearchSpace, number: int) -> IntArray:
    """Where an axis is looked at: at the dense point, but for what integers need besides."""
    axis, point = space.axes[number], space.largest
    if axis.field in INTEGERS:
        for i, other in enumerate(space.axes):
            if other.field in INTEGERS and set(other.places) & set(axis.places):
                point[i] = 0
    return point


def _seconds(costing: Costing, points: IntArray) -> FloatArray:
    return costing.batch(points, (Latency.name,))[:, 0]


def _says_something(axis: Axis, decided: Collection[tuple[str, str, str]]) -> bool:
    """Whether an axis decides anything, given what has more than one level."""
    if axis.ordered:
        return len(axis.values) > 1
    return any((axis.kind, p, governor) in decided for p in axis.places for governor in GOVERNORS[axis.field])
