"""Plans: all that a compiled kernel needs to know of a layer or a network, as one tensor of bytes.

A plan begins with a header; places in it are counted from its beginning, so that it can be copied, saved and exported.
What is in it suits vectors of one width, and says which; a file may bring it to a machine with others.
"""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.errors import ArtifactError

ALIGNMENT = 64
_BY = "by automc.deploy or automc export --kernels"
WORTH = 300_000
"""Multiply-adds of vectors that are worth another thread: some hundred microseconds, as waking it takes."""


class Head(ctypes.Structure):
    """What every plan begins with, as in product.h."""

    KIND: ClassVar[int]
    """Of each kind of plan a number, and another one whenever what follows changes: old files are then refused."""
    _fields_: ClassVar[Sequence[Any]] = (
        *((name, ctypes.c_int32) for name in ("lanes", "kind")),
        ("bytes", ctypes.c_int64),
    )


H = TypeVar("H", bound=Head)


class Memory:
    """What a plan is written into, behind room for its header."""

    def __init__(self, header: type[Head]) -> None:
        self._header = header
        self._parts: list[bytes] = []
        self._size = _aligned(ctypes.sizeof(header))

    def put(self, what: NDArray[Any] | ctypes.Array[Any]) -> int:
        """Where an array has been put."""
        data = what.tobytes() if isinstance(what, np.ndarray) else bytes(what)
        at = self._size
        self._parts.append(data.ljust(_aligned(len(data)), b"\0"))
        self._size += _aligned(len(data))
        return at

    def finished(self, lanes: int, **fields: Any) -> Tensor:
        """The plan (bytes,), uint8, for vectors of so many lanes, with these fields of its header."""
        made = self._header(lanes, self._header.KIND, self._size, **fields)
        head = bytes(made).ljust(_aligned(ctypes.sizeof(self._header)), b"\0")
        return torch.frombuffer(bytearray(b"".join((head, *self._parts))), dtype=torch.uint8).clone()


def header(plan: Tensor, kind: type[H], lanes: int) -> H:
    """A plan's header; ArtifactError where it was made for vectors of other than so many lanes, is another kind of plan
    or not whole, or lies elsewhere."""
    if not plan.is_cpu:
        raise ArtifactError(f"A plan must be where the processor reads it; it is on {plan.device}: move it to cpu.")
    size = plan.nbytes
    found = kind.from_address(plan.data_ptr()) if size >= ctypes.sizeof(kind) and plan.is_contiguous() else None
    if found is None or found.kind != kind.KIND or found.bytes != size:
        raise ArtifactError(
            f"A plan must be whole, of this operation, and of this version of automc; one of {size} bytes is not: make "
            f"it anew, {_BY}."
        )
    if found.lanes == lanes:
        return found
    if not lanes:
        raise ArtifactError(
            "A plan must be run by compiled kernels; there are none here: install a C compiler, or a wheel of automc "
            "that carries them, and leave AUTOMC_KERNELS unset."
        )
    raise ArtifactError(
        f"A plan must be run on a processor like the one it was made for, with vectors of {found.lanes} floats; this "
        f"one has {lanes}: make it anew here, {_BY}."
    )


def plain(x: Tensor) -> bool:
    """Whether x is what compiled functions read, and nobody watches what is done with it.

    Then operations of torch are left aside: it takes longer to find the way to one than many of them take.
    """
    return x.dtype is torch.float32 and x.is_cpu and unwatched(x)


def unwatched(x: Tensor) -> bool:
    """Whether x is a tensor of torch's own, and nobody records what is done with it."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_torch_function_mode_enabled()
    )


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


_own = threading.local()


def scratch(floats: int) -> Tensor:
    """Memory of this thread, with anything in it; the thread keeps it, since to ask the system for it takes longer than
    most products."""
    held: Tensor | None = getattr(_own, "scratch", None)
    if held is None or held.numel() < floats:
        held = _own.scratch = torch.empty(floats)
    return held
