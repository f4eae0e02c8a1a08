"""Compiles C sources for this processor at first use and keeps what came out.

The compiled file's name holds a digest of source, flags, compiler and processor, so that a folder shared between
machines never hands out the wrong one. A file is loaded only if it is whole: its own digest lies beside it, since a
torn library kills the process that runs it. What lies there is code: a folder, or a file in it, that belongs to
another user, or that everybody may write to, is not used. The folder is $AUTOMC_KERNELS, by default
~/.cache/automc/kernels; "off" turns compiled kernels off. Where there is no compiler, or it fails, there is no library,
and torch does the work.
"""

import contextlib
import ctypes
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from automc.errors import ArtifactError
from automc.files import read_file, sha256, write_atomic

_log = logging.getLogger("automc")
SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
SECONDS = 120
"""How long a compiler may take."""
MOST_BYTES = 2**26
"""That a compiled file may have."""


@cache
def compiled(name: str) -> ctypes.CDLL | None:
    """The compiled `csrc/NAME.c`; None where it cannot be had."""
    compiler = _compiler()
    folder = folder_named()
    if compiler is None or folder is None:
        return None
    source = SOURCES / f"{name}.c"
    try:
        if folder.exists() and not _ours(folder):
            _log.warning("%s may be written to by others: compiled kernels are done without; name another one.", folder)
            return None
        path = folder / f"{name}-{_digest(source, compiler)}.so"
        if _whole(path):
            with contextlib.suppress(OSError):  # a broken file is made anew
                return ctypes.CDLL(str(path))
        _compile(compiler, source, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError, ArtifactError):
        return None


def folder_named() -> Path | None:
    """Where compiled files are kept; None where they are not wanted."""
    named = os.environ.get("AUTOMC_KERNELS")
    if named == "off":
        return None
    if named:
        return Path(named)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home: a user without an entry, in a container
        return None
    return home / "automc" / "kernels"


def _compiler() -> str | None:
    """Path of the C compiler: $CC, else the first of cc, gcc and clang."""
    named = os.environ.get("CC")
    return next(
        (found for name in ([named] if named else ["cc", "gcc", "clang"]) if (found := shutil.which(name))), None
    )


def _digest(source: Path, compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    sources = (source, *sorted(source.parent.glob("*.h")))
    parts = (*(path.read_bytes() for path in sources), " ".join(FLAGS).encode(), version, _processor().encode())
    return sha256(b"\0".join(parts))[:16]


def _processor() -> str:
    """What tells processors apart that run different instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(found))) or f"{platform.machine()} {platform.processor()}"


def _compile(compiler: str, source: Path, path: Path) -> None:
    """Writes the compiled file whole or not at all, whoever else may be at it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        command = [compiler, *FLAGS, str(source), "-o", str(made)]
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        data = made.read_bytes()
    with contextlib.suppress(FileNotFoundError):
        _seal(path).unlink()  # which speaks of the file that leaves
    write_atomic(path, data)
    write_atomic(_seal(path), sha256(data).encode())


def _whole(path: Path) -> bool:
    """Whether a compiled file is as it was written, by this user."""
    try:
        return _ours(path) and read_file(_seal(path), 64).decode() == sha256(read_file(path, MOST_BYTES))
    except (OSError, ValueError):
        return False


def _ours(path: Path) -> bool:
    """Whether nobody but this user, and the administrator, can have put there what is there."""
    if not hasattr(os, "getuid"):
        return True
    found = path.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & stat.S_IWOTH


def _seal(path: Path) -> Path:
    """Where a compiled file's digest lies."""
    return path.with_suffix(".sha256")
