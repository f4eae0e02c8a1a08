"""An object for processes of this machine: its tensors once in shared memory, the rest as bytes for each.

Whoever opens a parcel maps the tensors as they lie; where it writes to one, the page written becomes its own. The
memory is an open file without a name, so that it is gone with the last process that holds it. What is packed comes from
this very process and goes through pipes alone, never through a file that somebody else could have written; functions
and classes that cannot be imported elsewhere travel whole (cloudpickle).
"""

import contextlib
import io
import mmap
import os
import pickle
import tempfile
from dataclasses import dataclass
from typing import Any

import cloudpickle
import torch
from torch.storage import TypedStorage, UntypedStorage

from automc.errors import ExecutorError, told

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

    def read(self) -> bytes:
        """All of it, for other machines."""
        with mmap.mmap(self.memory, self.size, prot=mmap.PROT_READ) as mapped:  # one read gives 2 GiB at most
            return mapped[:]

    def close(self) -> None:
        """Lets go of the memory, here."""
        os.close(self.memory)


def packed(thing: Any) -> Parcel:
    """An object's parcel; ExecutorError for what cannot leave its process."""
    memory = _nameless()
    try:
        with open(memory, "wb", closefd=False) as file:
            buffer = io.BytesIO()
            _Packer(buffer, file).dump(thing)
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
    return opened_in(mapped, parcel.tensors)


def opened_in(memory: mmap.mmap | bytearray, tensors: int) -> Any:
    """The object of a parcel that was read, its tensors where they lie in `memory`, the first so many bytes."""
    return _Opener(io.BytesIO(memory[tensors:]), memory).load()


def _nameless() -> int:
    """A new file in memory, or at least without a name."""
    with contextlib.suppress(OSError, AttributeError):  # Linux has it, if not for everybody
        return os.memfd_create("automc")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes storages of tensors to a file, each once."""

    def __init__(self, buffer: io.BytesIO, file: Any) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._file = file
        self._places: dict[tuple[int, int], int] = {}
        """By address and size, where a storage's bytes lie in the file; those of numpy's arrays may overlap."""
        self._kept: list[UntypedStorage] = []
        """Storages whose addresses are known, so that no other takes one."""

    def persistent_id(self, obj: Any) -> Any:
        storage, dtype = (obj._untyped_storage, obj.dtype) if isinstance(obj, TypedStorage) else (obj, torch.uint8)
        if not isinstance(storage, UntypedStorage) or storage.device.type != "cpu":
            return None
        return self._place(storage), storage.nbytes(), dtype  # newer dtypes come with untyped storages, read as bytes

    def _place(self, storage: UntypedStorage) -> int:
        found = storage.data_ptr(), storage.nbytes()
        if found in self._places:
            return self._places[found]
        at: int = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        if storage.nbytes():
            self._file.seek(at)
            self._file.write(torch.tensor([], dtype=torch.uint8).set_(storage).numpy().data)
            self._places[found] = at
            self._kept.append(storage)
        return at


class _Opener(pickle.Unpickler):
    """Finds storages in mapped memory."""

    def __init__(self, buffer: io.BytesIO, mapped: mmap.mmap | bytearray) -> None:
        super().__init__(buffer)
        self._mapped = mapped
        self._made: dict[int, UntypedStorage] = {}

    def persistent_load(self, pid: Any) -> TypedStorage:
        at, size, dtype = pid
        return TypedStorage(wrap_storage=self._storage(at, size), dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]

    def _storage(self, at: int, size: int) -> UntypedStorage:
        if not size:
            return UntypedStorage(0)  # type: ignore[no-untyped-call]
        if at not in self._made:
            found = torch.frombuffer(self._mapped, dtype=torch.uint8, count=size, offset=at)
            self._made[at] = found.untyped_storage()
        return self._made[at]
