"""Writing files so that a crash or a full disk never leaves half of one."""

import contextlib
import hashlib
import os
import tempfile
import uuid
from pathlib import Path

from automc.errors import ArtifactError


def write_atomic(path: Path, data: bytes) -> None:
    """Writes to a temporary name, syncs, renames; on failure the old file stays and ArtifactError names the path."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # processes of other hosts share numbers
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ArtifactError(
            f"{path} must be writable; the system says {error.strerror}: free space or choose another place."
        ) from error


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
