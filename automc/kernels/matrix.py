"""A weight as sparse kernels (`csrc/product.h`) read it: blocks of outputs by one input, those of zeros left out."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automc.kernels.plan import Memory

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
BLOCKS = (1, 2, 4, 8)
"""Consecutive outputs that a kernel takes at once."""


class Stored(ctypes.Structure):
    """As in product.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "block", "parts", "masks")),
        *((name, ctypes.c_int64) for name in ("start", "offset", "side", "value", "bias", "mask")),
    ]


@dataclass(frozen=True, eq=False, slots=True)
class Reads:
    """What the columns of a weight are multiplied with."""

    offset: IntArray
    """Floats from the base to it (columns,)."""
    side: IntArray
    """Vectors from the first mask to its own (columns,)."""
    masks: "Masks"


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """Which columns each block of rows keeps, and their values."""

    rows: int
    start: IntArray
    """Where each block's columns begin (parts, blocks + 1)."""
    offset: IntArray
    """Of each kept column (kept,): floats from the base to what it is multiplied with."""
    side: IntArray
    """Of each kept column (kept,): vectors from the first mask to its own."""
    value: FloatArray
    """(kept, block)"""
    bias: FloatArray
    """(blocks * block,)"""
    masks: "Masks"

    @property
    def block(self) -> int:
        """Rows of a block."""
        return int(self.value.shape[1])

    def stored(self, memory: Memory) -> Stored:
        """As a plan holds it."""
        side = self.side if self.masks.kind else self.side[:0]  # which nobody reads then
        arrays = (self.start, self.offset, side, self.value, self.bias, self.masks.lanes)
        return Stored(self.rows, self.block, len(self.start), self.masks.kind, *map(memory.put, arrays))


@dataclass(frozen=True, eq=False, slots=True)
class Masks:
    """Which lanes of each vector of positions a column of a kernel reads."""

    kind: int
    """0: all; 1: the same of every vector; 2: of every other one; 3: some of each."""
    lanes: NDArray[np.generic]
    """(columns, vectors) of 16 bits for vectors of 16, else (columns, vectors, lanes) of 32."""

    @classmethod
    def of(cls, read: NDArray[np.bool_]) -> "Masks":
        """read (columns, vectors, lanes)"""
        if read.all():
            kind = 0
        elif (read == read[:, :1]).all():
            kind = 1
        elif (read[:, 2:] == read[:, :-2]).all():
            kind = 2
        else:
            kind = 3
        if read.shape[2] == 16:
            return cls(kind, (read << np.arange(16)).sum(axis=2).astype(np.uint16))
        return cls(kind, -read.astype(np.int32))


def packed(
    weight: FloatArray,
    bias: FloatArray | None,
    reads: "Reads",
    block: int,
    parts: Sequence[NDArray[np.int64]],
) -> Matrix:
    """weight (rows, columns); parts: runs of columns that are multiplied one after another.

    A column of a block stays where one of the block's rows is not zero.
    """
    rows = len(weight)
    blocks = -(-rows // block)
    whole = np.zeros((blocks * block, weight.shape[1]), dtype=np.float32)
    whole[:rows] = weight
    cut = whole.reshape(blocks, block, -1)
    present = (cut != 0).any(axis=1)  # (blocks, columns)
    start, kept_columns, values = [], [], []
    kept = 0
    for columns in parts:
        at_block, at = np.nonzero(present[:, columns])
        counts = np.bincount(at_block, minlength=blocks)
        start.append(kept + np.concatenate(([0], np.cumsum(counts))))
        kept_columns.append(columns[at])
        values.append(cut[at_block, :, columns[at]])
        kept += len(at)
    filled = np.zeros(blocks * block, dtype=np.float32)
    if bias is not None:
        filled[:rows] = bias
    chosen = np.concatenate(kept_columns)
    return Matrix(
        rows,
        np.array(start, dtype=np.int32),
        reads.offset[chosen],
        reads.side[chosen],
        np.ascontiguousarray(np.concatenate(values), dtype=np.float32),
        filled,
        reads.masks,
    )
