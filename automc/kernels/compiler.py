"""The C compiler, and the files it makes: written whole, with their digest beside them, and loaded only if they are so.

A torn library kills the process that runs it.
"""

import contextlib
import ctypes
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from automc.files import read_file, sha256, write_atomic

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
"""For every processor; which one, is the caller's to add."""
MOST_BYTES = 2**26
"""That a compiled file may have."""
SECONDS = 120
"""How long a compiler may take."""


def compiler() -> str | None:
    """Path of the C compiler: $CC, else the first of cc, gcc and clang."""
    named = os.environ.get("CC")
    return next(
        (found for name in ([named] if named else ["cc", "gcc", "clang"]) if (found := shutil.which(name))), None
    )


def version(program: str) -> bytes:
    """What a compiler says of itself; OSError or SubprocessError where it says nothing."""
    return subprocess.run([program, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout


def build(program: str, flags: Sequence[str], source: Path, path: Path) -> None:
    """Writes the compiled source whole or not at all, whoever else may be at it; OSError, SubprocessError or
    ArtifactError where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        command = [program, *flags, str(source), "-o", str(made), "-lm"]
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        data = made.read_bytes()
    with contextlib.suppress(FileNotFoundError):
        _seal(path).unlink()  # which speaks of the file that leaves
    write_atomic(path, data)
    write_atomic(_seal(path), sha256(data).encode())


def loaded(path: Path) -> ctypes.CDLL | None:
    """A compiled file as a library; None where it is not there, not whole, or for another system."""
    if whole(path):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    return None


def whole(path: Path) -> bool:
    """Whether a compiled file is as it was written."""
    try:
        return read_file(_seal(path), 64).decode() == sha256(read_file(path, MOST_BYTES))
    except (OSError, ValueError):
        return False


def ours(path: Path) -> bool:
    """Whether nobody but this user, and the administrator, can have put there what is there."""
    if not hasattr(os, "getuid"):
        return True
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & stat.S_IWOTH


def _seal(path: Path) -> Path:
    """Where a compiled file's digest lies."""
    return path.with_name(f"{path.name}.sha256")
