"""Linear layers on rows of features, their weights sparse (see `csrc/tokens.c`)."""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automc.errors import TaskError
from automc.kernels.build import compiled
from automc.kernels.matrix import FloatArray, Masks, Reads, Stored, packed
from automc.kernels.plan import WORTH, Head, Memory, header, plain, scratch
from automc.kernels.steps import FREE, Limits
from automc.kernels.threads import dealt, threads

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
    """Runs of inputs."""


@cache
def lanes() -> int:
    """Tokens in a vector; 0 where there is no compiled library."""
    found = _library()
    return 0 if found is None else int(found.tokens_lanes())


def most_vectors(block: int) -> int:
    """Vectors of tokens that fill the registers along with so many outputs."""
    if lanes() == 16:
        return {1: 8, 2: 8, 4: 6, 8: 3}[block]
    return {1: 8, 2: 4, 4: 2, 8: 1}[block]


class _Plan(Head):
    """As in tokens.c, behind the head."""

    KIND = 202
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("inputs", "vectors")),
        *((name, ctypes.c_float) for name in ("low", "high")),
        *((name, ctypes.c_int32) for name in ("gelu", "work")),
        ("floats", ctypes.c_int64),
        ("matrix", Stored),
    )


class PlannedLinear(nn.Module):
    """A planned linear layer; its plan is a buffer, and suits processors with vectors of the same width."""

    plan: Tensor

    def __init__(self, plan: Tensor, inputs: int, outputs: int) -> None:
        super().__init__()
        from automc.kernels import ops  # noqa: F401  (registers the operation)

        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("plan", plan)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x (..., in), float32; (..., out), with `other` of that shape added."""
        plan: Any = self._buffers["plan"]  # which is found faster there
        if plain(x) and (other is None or plain(other)):
            return run(x, plan, other)
        found: Tensor = torch.ops.automc.tokens(x, plan, self.out_features, other)
        return found

    def ended(self, limits: Limits | None, *, gelu: bool) -> "PlannedLinear":
        """The same within limits, or with GELU behind it."""
        return PlannedLinear(ended(self.plan, limits or FREE, gelu=gelu), self.in_features, self.out_features)

    def extra_repr(self) -> str:
        """As torch's own layer has it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def planned(weight: FloatArray, bias: FloatArray | None, choice: TokenChoice, limits: Limits = FREE) -> Tensor:
    """The plan (bytes,) of a layer with weight (out, in), bias (out,); outputs are clamped to the limits."""
    outputs, inputs = weight.shape
    columns = np.arange(inputs)
    pitch = 1 if choice.block == ACROSS else choice.vectors * lanes()
    none = np.zeros(inputs, dtype=np.int32)
    reads = Reads((columns * pitch).astype(np.int32), none, Masks.of(np.ones((1, 1, lanes()), dtype=np.bool_)))
    parts = [part for part in np.array_split(columns, choice.parts) if len(part)]
    memory, matrix = Memory(_Plan), packed(weight, bias, reads, choice.block, parts)
    return memory.finished(
        work=matrix.value.size,
        lanes=lanes(),
        inputs=inputs,
        vectors=choice.vectors,
        low=limits.low,
        high=limits.high,
        floats=(inputs + outputs + choice.block) * pitch,
        matrix=matrix.stored(memory),
    )


def ended(plan: Tensor, limits: Limits = FREE, *, gelu: bool = False) -> Tensor:
    """A plan that ends otherwise: outputs are clamped to the limits, or are GELU's, x * (1 + erf(x / sqrt(2))) / 2."""
    changed = plan.clone()
    made_for = header(changed, _Plan, lanes())
    made_for.low, made_for.high, made_for.gelu = limits.low, limits.high, gelu
    return changed


def run(x: Tensor, plan: Tensor, other: Tensor | None = None) -> Tensor:
    """What a planned layer gives for x (..., in), float32; `other` (..., out) is added before the limits or GELU.

    TaskError for an x of another width, which would be read beyond its end, and an `other` of another shape.
    """
    made_for, library = header(plan, _Plan, lanes()), _library()
    assert library is not None  # whose lanes they are
    x = x.contiguous()
    matrix = made_for.matrix
    inputs, outputs = made_for.inputs, matrix.rows
    if x.shape[-1] != inputs:
        raise TaskError(f"Inputs must have {inputs} features, as the planned layer; one has {x.shape[-1]}: mend it.")
    count = x.numel() // inputs
    out = torch.empty(*x.shape[:-1], outputs)
    if other is not None and other.shape != out.shape:
        raise TaskError(f"What is added must be {tuple(out.shape)}; it is {tuple(other.shape)}: mend it.")
    added = None if other is None else other.contiguous()

    def part(begin: int, end: int) -> None:
        given, made = x.data_ptr() + 4 * begin * inputs, out.data_ptr() + 4 * begin * outputs
        to_add = None if added is None else added.data_ptr() + 4 * begin * outputs
        library.tokens_run(plan.data_ptr(), given, to_add, made, end - begin, scratch(made_for.floats).data_ptr())

    step = ACROSS if matrix.block == ACROSS else made_for.vectors * lanes()
    dealt(part, count, min(threads(), 1 + -(-count // lanes()) * made_for.work // WORTH), step)
    return out


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled functions, told what they take: that spares a conversion a call."""
    found = compiled("tokens")
    if found is None or found.tokens_plan_bytes() != ctypes.sizeof(_Plan):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    found.tokens_run.argtypes = [pointer, pointer, pointer, pointer, number, pointer]
    return found
