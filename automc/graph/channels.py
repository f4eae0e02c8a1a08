"""Channel indices: which positions of which tensors are the same channel, as classes of a union-find.

Every activation carries one id per channel position. Two positions whose ids end in the same class leave together.
Class `PINNED` is never pruned: model inputs and outputs, constants, and whatever meets an operation that is refused.
An activation's channels lie along one dimension, so that what is kept of it is always rectangular.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from automc.graph.facts import IntArray

PINNED = 0


@dataclass(frozen=True, eq=False, slots=True)
class Lane:
    """Where an activation's channels lie."""

    shape: tuple[int, ...]
    """Of the activation, batch included."""
    dim: int | None
    """Dimension along which the channels lie; None when nothing of this activation can be pruned."""
    ids: IntArray
    """Channel id of each position along `dim` (shape[dim],); empty when `dim` is None."""

    @staticmethod
    def fixed(shape: Sequence[int]) -> "Lane":
        """An activation of which nothing can be pruned."""
        return Lane(tuple(shape), None, np.zeros(0, dtype=np.int64))

    def spread(self, ids: IntArray) -> Tensor:
        """`ids`, one per position along `dim`, as a tensor of the activation's shape (no memory is taken)."""
        if self.dim is None:
            return torch.zeros((), dtype=torch.int64).expand(self.shape)
        line = [1] * len(self.shape)
        line[self.dim] = len(ids)
        return torch.from_numpy(ids).view(line).expand(self.shape)


Lanes: TypeAlias = "Lane | tuple[Lanes, ...] | None"
"""The lanes of a node's value: one per tensor in it; None for what is no tensor."""


def leaves(lanes: Lanes) -> tuple[Lane, ...]:
    """All single lanes of a node."""
    if isinstance(lanes, tuple):
        return tuple(lane for part in lanes for lane in leaves(part))
    return () if lanes is None else (lanes,)


class Classes:
    """Union-find over channel ids; the smallest id of a class is its root, so `PINNED` wins every union."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)

    @property
    def count(self) -> int:
        """Number of ids handed out, `PINNED` included."""
        return len(self._parent)

    def fresh(self, count: int) -> IntArray:
        """`count` new ids (count,), each a class of its own."""
        start = len(self._parent)
        ids = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, ids])
        return ids

    def roots(self, ids: IntArray) -> IntArray:
        """The class of each id, same shape."""
        found = self._parent[ids]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                return found
            found = above

    def union(self, first: IntArray, second: IntArray | int) -> None:
        """Makes first[i] and second[i] the same class."""
        sides = np.broadcast_arrays(first, np.asarray(second, dtype=np.int64))
        left, right = sides[0].ravel(), sides[1].ravel()
        while True:
            a, b = self.roots(left), self.roots(right)
            open_ = a != b
            if not open_.any():
                return
            low, high = np.minimum(a, b)[open_], np.maximum(a, b)[open_]
            np.minimum.at(self._parent, high, low)
            left, right = left[open_], right[open_]  # of several lows for one high only the smallest was taken

    def pin(self, ids: IntArray) -> None:
        """Takes these channels out of the search."""
        self.union(ids, PINNED)

    def free(self, lane: Lane) -> bool:
        """Whether any channel of the lane can still be pruned."""
        return bool((self.roots(lane.ids) != PINNED).any())

    def full(self, lane: Lane) -> Tensor:
        """The class of every single element of an activation, in its shape."""
        return lane.spread(self.roots(lane.ids))

    def read(self, full: Tensor) -> Lane:
        """The lane of an activation from the class of each of its elements.

        Where classes vary along several dimensions (a view that splits the channels), they are tied along all but
        one, the one that leaves most channels to choose from. A single class has no dimension to lie along: pinned.
        """
        shape = tuple(full.shape)
        if full.numel() == 0:
            return Lane.fixed(shape)
        varying = [d for d in range(full.dim()) if not torch.equal(full, full.narrow(d, 0, 1).expand(shape))]
        if not varying:
            self.pin(full.reshape(-1)[:1].numpy())
            return Lane.fixed(shape)
        dim = max(varying, key=lambda d: (len(np.unique(_line(full, d).numpy())), d))
        line = _line(full, dim).clone().numpy()
        lane = Lane(shape, dim, line)
        if len(varying) > 1:
            pairs = torch.stack([full.reshape(-1), lane.spread(line).reshape(-1)]).numpy()
            self.union(*np.unique(pairs, axis=1))
        return lane

    def join(self, lanes: Sequence[Lane], shape: Sequence[int]) -> tuple[Lane, bool]:
        """The lane of an element-wise result of this shape, and whether the operands' channels fit together.

        Operands whose channels lie along the same dimension are tied. A single channel stretched over many (spatial
        attention) is pinned: it belongs to each of them. Where dimensions differ, all are pinned.
        """
        spans: list[tuple[int, Lane]] = []
        for lane in lanes:
            dim = None if lane.dim is None else lane.dim + len(shape) - len(lane.shape)
            if dim is not None and lane.shape[lane.dim or 0] == shape[dim]:
                spans.append((dim, lane))
            else:
                self.pin(lane.ids)
        if len({dim for dim, _ in spans}) != 1:
            for _, lane in spans:
                self.pin(lane.ids)
            return Lane.fixed(shape), not spans
        dim, first = spans[0]
        for _, lane in spans[1:]:
            self.union(first.ids, lane.ids)
        if any(lane.dim is None and _size_at(lane, dim - len(shape)) == shape[dim] for lane in lanes):
            self.pin(first.ids)
        return Lane(tuple(shape), dim, first.ids), True


def _line(full: Tensor, dim: int) -> Tensor:
    """The elements along one dimension, at index 0 of all others (shape[dim],)."""
    return full[tuple(slice(None) if d == dim else 0 for d in range(full.dim()))]


def _size_at(lane: Lane, from_end: int) -> int | None:
    """Size of an operand in a dimension counted from the end; None where it has no such dimension."""
    return lane.shape[from_end] if -from_end <= len(lane.shape) else None
