"""An object for processes of this machine: its tensors once in shared memory, the rest as bytes for each.

Whoever opens a parcel maps the tensors as they lie; where it writes to one, the page written becomes its own. The
memory is an open file without a name, so that it is gone with the last process that holds it. What is packed comes from
this very process and goes through pipes alone, never through a file that somebody else could have written; functions
and classes that cannot be imported elsewhere travel whole (cloudpickle).

Memory that cannot be mapped so, as Ray's, is read: tensors that nobody writes to stay in it, all others are copied.
"""

import contextlib
import io
import mmap
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import cloudpickle
import torch
from torch import Tensor
from torch.storage import TypedStorage, UntypedStorage

from automc.errors import ExecutorError, told

Memory: TypeAlias = mmap.mmap | memoryview | bytearray
ALIGNMENT = 64
"""Of each tensor's first byte: no vector of any processor lies across."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What `opened` makes an object of: tensors, and after them everything else."""

    memory: int
    """A file descriptor, for a process that inherits it; closed by `close`."""
    tensors: int
    """Bytes of tensors."""
    size: int
    """Bytes in all."""

    def read(self) -> mmap.mmap:
        """All of it, for other machines; it lies there until nobody holds what is returned."""
        return mmap.mmap(self.memory, self.size, prot=mmap.PROT_READ)

    def close(self) -> None:
        """Lets go of the memory, here."""
        os.close(self.memory)


def packed(thing: Any) -> Parcel:
    """An object's parcel; ExecutorError for what cannot leave its process."""
    memory = _nameless()
    try:
        with open(memory, "wb", closefd=False) as file:
            buffer = io.BytesIO()
            _Packer(buffer, file, getattr(thing, "unwritten", ())).dump(thing)
            tensors = file.tell()
            return Parcel(memory, tensors, tensors + file.write(buffer.getvalue()))
    except Exception as error:  # whatever some object raises when it is asked to be packed
        os.close(memory)
        raise ExecutorError(
            "What workers are given must be able to leave this process; packing it stopped with "
            f"{told(error)}: keep locks, files and generators out of the task, or use workers=1."
        ) from error


def opened(parcel: Parcel) -> Any:
    """The object, its tensors where they lie in the shared memory."""
    mapped = mmap.mmap(parcel.memory, parcel.size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    return _Opener(io.BytesIO(mapped[parcel.tensors :]), mapped, ours=True).load()


def opened_in(memory: Memory, tensors: int) -> Any:
    """The object of a parcel that was read, the first so many bytes of which are tensors.

    What is `unwritten` (see `executor.Make`) stays where it lies in `memory`; everything else is copied.
    """
    return _Opener(io.BytesIO(memory[tensors:]), memory, ours=False).load()


def _nameless() -> int:
    """A new file in memory, or at least without a name."""
    with contextlib.suppress(OSError, AttributeError):  # Linux has it, if not for everybody
        return os.memfd_create("automc")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes storages of tensors to a file, each once."""

    def __init__(self, buffer: io.BytesIO, file: Any, unwritten: Iterable[Tensor]) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._file = file
        self._places: dict[tuple[int, int], int] = {}
        """By address and size, where a storage's bytes lie in the file; those of numpy's arrays may overlap."""
        self._kept: list[UntypedStorage] = []
        """Storages whose addresses are known, so that no other takes one."""
        self._unwritten = {_address(x.untyped_storage()) for x in unwritten if x.device.type == "cpu"}

    def persistent_id(self, obj: Any) -> Any:
        storage, dtype = (obj._untyped_storage, obj.dtype) if isinstance(obj, TypedStorage) else (obj, torch.uint8)
        if not isinstance(storage, UntypedStorage) or storage.device.type != "cpu":
            return None
        unwritten = _address(storage) in self._unwritten
        return self._place(storage), storage.nbytes(), dtype, unwritten  # newer dtypes come untyped, read as bytes

    def _place(self, storage: UntypedStorage) -> int:
        found = _address(storage)
        if found in self._places:
            return self._places[found]
        at: int = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        if storage.nbytes():
            self._file.seek(at)
            self._file.write(torch.tensor([], dtype=torch.uint8).set_(storage).numpy().data)
            self._places[found] = at
            self._kept.append(storage)
        return at


def _address(storage: UntypedStorage) -> tuple[int, int]:
    return storage.data_ptr(), storage.nbytes()


class _Opener(pickle.Unpickler):
    """Finds storages in mapped memory; `ours` may be written to."""

    def __init__(self, buffer: io.BytesIO, mapped: Memory, *, ours: bool) -> None:
        super().__init__(buffer)
        self._mapped, self._ours = mapped, ours
        self._made: dict[int, UntypedStorage] = {}

    def persistent_load(self, pid: Any) -> TypedStorage:
        at, size, dtype, unwritten = pid
        storage = self._storage(at, size, copied=not (self._ours or unwritten))
        return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]

    def _storage(self, at: int, size: int, *, copied: bool) -> UntypedStorage:
        if not size:
            return UntypedStorage(0)  # type: ignore[no-untyped-call]
        if at not in self._made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that what nobody writes to cannot be written to
                found = torch.frombuffer(self._mapped, dtype=torch.uint8, count=size, offset=at)
            self._made[at] = (found.clone() if copied else found).untyped_storage()
        return self._made[at]
