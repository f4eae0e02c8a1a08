"""Linear layers on rows of features, their weights sparse (see `csrc/tokens.c`)."""

import ctypes
import threading
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from automc.kernels.build import compiled
from automc.kernels.matrix import FloatArray, Masks, Reads, packed
from automc.kernels.tiles import FREE, Limits, threads, together

ACROSS = 16
"""Outputs of a block that lies across the lanes."""


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """How a linear layer is carried out."""

    block: int = 1
    """Outputs that are taken at once: one of `matrix.BLOCKS`, or `ACROSS`."""
    vectors: int = 2
    """Vectors of tokens that are taken at once; without meaning for `ACROSS`."""
    parts: int = 1
    """Runs of inputs; one for `ACROSS`."""


@cache
def lanes() -> int:
    """Tokens in a vector; 0 where there is no compiled library."""
    found = compiled("tokens")
    return 0 if found is None else int(found.tokens_lanes())


def most_vectors(block: int) -> int:
    """Vectors of tokens that fill the registers along with so many outputs."""
    if lanes() == 16:
        return {1: 8, 2: 8, 4: 6, 8: 3}[block]
    return {1: 8, 2: 4, 4: 2, 8: 1}[block]


class SparseLinear:
    """A weight made ready once, for any number of rows."""

    def __init__(self, weight: FloatArray, bias: FloatArray | None, choice: TokenChoice) -> None:
        """weight (out, in), bias (out,)."""
        self.outputs, self.inputs = weight.shape
        self._choice = choice
        columns = np.arange(self.inputs)
        pitch = 1 if choice.block == ACROSS else choice.vectors * lanes()
        none = np.zeros(self.inputs, dtype=np.int32)
        reads = Reads((columns * pitch).astype(np.int32), none, Masks.of(np.ones((1, 1, lanes()), dtype=np.bool_)))
        parts = [part for part in np.array_split(columns, choice.parts) if len(part)] or [columns]
        self._matrix = packed(weight, bias, reads, choice.block, parts)
        self._held = self._matrix.as_c()
        self._c_matrix = ctypes.addressof(self._held)
        self._step = ACROSS if choice.block == ACROSS else choice.vectors * lanes()

    def run(self, x: Tensor, other: Tensor | None = None, limits: Limits = FREE) -> Tensor:
        """x (..., in), float32; (..., out), `other` of that shape added before the limits."""
        x = x.contiguous()
        count = x.numel() // self.inputs
        out = torch.empty(*x.shape[:-1], self.outputs)
        added = None if other is None else other.contiguous()
        workers = 1 if threads() == 1 else min(threads(), -(-count // self._step))
        if workers <= 1:
            self._part(x, added, out, 0, count, limits)
        else:
            edges = np.linspace(0, count, workers + 1).astype(int).tolist()
            parts = list(zip(edges[:-1], edges[1:], strict=True))
            together(lambda part: self._part(x, added, out, *part, limits), parts)
        return out

    def _part(
        self, x: Tensor, other: Tensor | None, out: Tensor, begin: int, end: int, limits: Limits
    ) -> None:
        """Some of the rows, by one thread."""
        given, made = x.data_ptr() + 4 * begin * self.inputs, out.data_ptr() + 4 * begin * self.outputs
        added = None if other is None else other.data_ptr() + 4 * begin * self.outputs
        matrix, count, bounds = self._c_matrix, end - begin, (limits.low, limits.high)
        if self._choice.block == ACROSS:
            _library().tokens_across(matrix, self.inputs, given, added, made, count, *bounds)
            return
        vectors = self._choice.vectors
        space = _scratch((self.inputs + self.outputs) * vectors * lanes()).data_ptr()
        _library().tokens_run(matrix, self.inputs, vectors, given, added, made, count, *bounds, space)


@cache
def _library() -> ctypes.CDLL:
    """The compiled functions, told what they take: that spares a conversion a call."""
    library = compiled("tokens")
    assert library is not None  # there are no choices without it
    pointer, number, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    library.tokens_across.argtypes = [pointer, number, pointer, pointer, pointer, number, real, real]
    library.tokens_run.argtypes = [pointer, number, number, pointer, pointer, pointer, number, real, real, pointer]
    return library


_own = threading.local()


def _scratch(floats: int) -> Tensor:
    """Memory of this thread, with anything in it; to ask the system for it takes longer than most products."""
    held: Tensor | None = getattr(_own, "scratch", None)
    if held is None or len(held) < floats:
        held = _own.scratch = torch.empty(floats)
    return held
