"""Tensors made once and looked up many times: in memory up to a bound, and on disk where a folder is given.

In memory the least recently used entries leave first. On disk an entry is one safetensors file with a checksum in its
header, written whole or not at all, so processes may share a folder; a file that is damaged, or that stands where
another should, is made again.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save
from torch import Tensor

from automc.compression.bounded import Bounded
from automc.errors import ArtifactError
from automc.files import sha256, write_atomic

Tensors = Mapping[str, Tensor]
_log = logging.getLogger("automc")


class TensorStore:
    """Named sets of tensors, bounded in memory, kept in `folder` if there is one.

    given: sets that somebody else has made, found before all others; they count for no bound and are not written.
    """

    def __init__(
        self, memory_bytes: int, folder: Path | None = None, given: Mapping[str, Tensors] | None = None
    ) -> None:
        self.folder = folder
        self.given: Mapping[str, Tensors] = {} if given is None else given
        self._held: Bounded[Tensors] = Bounded(memory_bytes)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors held in memory."""
        return self._held.bytes

    @property
    def known(self) -> dict[str, Tensors]:
        """Every set in memory, by its key."""
        return {**dict(self._held.items()), **self.given}

    def get(self, key: str, make: Callable[[], Tensors], *, on_disk: bool = True) -> Tensors:
        """The tensors under `key`, made on first use."""
        found = self.given.get(key, self._held.get(key))
        if found is not None:
            return found
        path = self._path(key) if on_disk else None
        found = None if path is None else _read(path, key)
        if found is None:
            found = make()
            if path is not None:
                self._keep(path, key, found)
        self._held.put(key, found, sum(x.nbytes for x in found.values()))
        return found

    def _keep(self, path: Path, key: str, made: Tensors) -> None:
        """Writes an entry; where there is no room left for it, the folder is not written to again."""
        try:
            write_atomic(path, _packed(key, made))
        except ArtifactError as error:
            _log.warning("%s Until then nothing more is kept there.", error)
            self.folder = None

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{sha256(key.encode())[:32]}.safetensors"


def _packed(key: str, tensors: Tensors) -> bytes:
    contiguous = {name: x.contiguous() for name, x in tensors.items()}
    return save(contiguous, metadata={"sha256": _digest(key, contiguous)})


def _read(path: Path, key: str) -> Tensors | None:
    """The tensors of a file, or None where there is no sound one, or one of another key."""
    if not path.is_file():  # to open a pipe would be to wait for it
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:  # mapped: processes that read it hold it once
            expected = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        return tensors if _digest(key, tensors) == expected else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, safetensors.SafetensorError):
        return None


def _digest(key: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(key.encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"\0{name}\0{x.dtype}\0{tuple(x.shape)}\0".encode())
        digest.update(x.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
