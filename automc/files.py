"""Writing files so that a crash or a full disk never leaves half of one, and reading files whoever wrote them."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automc.errors import ArtifactError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write_atomic(path: Path, data: bytes) -> None:
    """Writes to a temporary name, syncs, renames; on failure the old file stays and ArtifactError names the path."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """As `write_atomic`, several files: none is renamed before all are written, so that a full disk changes none."""
    temporary = {
        path: path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp") for path in files
    }  # other hosts write too
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            temporary[path].replace(path)
    except OSError as error:
        for left in temporary.values():
            with contextlib.suppress(OSError):
                left.unlink()
        raise ArtifactError(
            f"{path} must be writable; the system says {error.strerror}: free space or choose another place."
        ) from error


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a regular file; OSError for anything else, which might never end, and for more than `most` bytes."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if found.st_size <= most:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) <= most:
            return data
    raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))


def parsed_json(data: bytes | str) -> Any:
    """What a JSON text says; ValueError, in a few words, for what is none.

    Also for what is nested a thousand deep, for a key that stands twice in an object, and for characters that no file
    can hold. NaN and infinities are read: whoever takes numbers says which.
    """
    text = data if isinstance(data, str) else data.decode()
    try:
        found = json.loads(text, object_pairs_hook=_once)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in found if names.count(n) > 1)!r:.80} stands twice")
    return found


def check_folder(path: Path) -> None:
    """Makes a folder where there is none, and a file in it for a moment; ArtifactError where either cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ArtifactError(
            f"{path} must be a folder that can be written to; the system says {error.strerror}: choose another place."
        ) from error


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()
