"""Compiles C sources for this processor at first use and keeps what came out.

The compiled file's name holds a digest of source, flags, compiler and processor, so that a folder shared between
machines never hands out the wrong one. What lies there is code: a folder that belongs to another user, or that
everybody may write to, is not used. The folder is $AUTOMC_KERNELS, by default ~/.cache/automc/kernels; "off" turns
compiled kernels off. Where there is no compiler, or it fails, a library that the wheel carries is taken (`prebuilt`);
where there is none, torch does the work.
"""

import ctypes
import logging
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

from automc.errors import ArtifactError
from automc.files import sha256
from automc.kernels import compiler, prebuilt

_log = logging.getLogger("automc")
FLAGS = ("-march=native", *compiler.FLAGS)


@cache
def compiled(name: str) -> ctypes.CDLL | None:
    """The compiled `csrc/NAME.c`; None where it cannot be had, or is not wanted."""
    if os.environ.get("AUTOMC_KERNELS") == "off":
        return None
    return _made_here(name) or prebuilt.library(name)


def _made_here(name: str) -> ctypes.CDLL | None:
    program, folder = compiler.compiler(), folder_named()
    if program is None or folder is None:
        return None
    source = compiler.SOURCES / f"{name}.c"
    try:
        if folder.exists() and not compiler.ours(folder):
            _log.warning("%s may be written to by others: what is compiled is not kept there: name another.", folder)
            return None
        path = folder / f"{name}-{_digest(source, program)}.so"
        found = compiler.loaded(path) if path.exists() and compiler.ours(path) else None
        if found is None:  # or it is broken
            compiler.build(program, FLAGS, source, path)
            found = ctypes.CDLL(str(path))
        return found
    except (OSError, subprocess.SubprocessError, ArtifactError):
        return None


def folder_named() -> Path | None:
    """Where compiled files are kept; None where they cannot be."""
    named = os.environ.get("AUTOMC_KERNELS")
    if named:
        return Path(named)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home: a user without an entry, in a container
        return None
    return home / "automc" / "kernels"


def _digest(source: Path, program: str) -> str:
    sources = (source, *sorted(source.parent.glob("*.h")))
    contents = (path.read_bytes() for path in sources)
    parts = (*contents, " ".join(FLAGS).encode(), compiler.version(program), _processor().encode())
    return sha256(b"\0".join(parts))[:16]


def _processor() -> str:
    """What tells processors apart that run different instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(found))) or f"{platform.machine()} {platform.processor()}"
