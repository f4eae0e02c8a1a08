"""Libraries that a wheel carries for machines without a compiler: one a source and level of instructions.

The levels of x86-64 are those of its psABI; 8-bit sums have further ones. Other architectures have one, for any
processor. At run time the highest level is taken that the processor has: an instruction it lacks ends the process.
"""

import ctypes
import os
import platform
import subprocess
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from automc.errors import ArtifactError
from automc.kernels import compiler

FOLDER = Path(__file__).parent / "lib"
"""Filled when a wheel is built, and only there."""
SOURCES = ("dense8", "images", "sparse8", "tiles", "tokens")
_V2 = frozenset({"pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm"})  # pni is SSE3
_V3 = _V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}  # abm holds LZCNT
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@dataclass(frozen=True, slots=True)
class Level:
    """What a library may ask of a processor."""

    name: str
    flags: tuple[str, ...] = ()
    """Of the compiler."""
    needs: Set[str] = frozenset()
    """Instructions, by their names in /proc/cpuinfo."""
    sources: tuple[str, ...] = SOURCES
    """That have code of their own for it."""


_EIGHT_BITS = ("sparse8",)
_X86_64 = (
    Level("x86-64", ("-march=x86-64",)),
    Level("x86-64-v3", ("-march=x86-64-v3",), _V3),
    Level("x86-64-v3-vnni", ("-march=x86-64-v3", "-mavxvnni"), _V3 | {"avx_vnni"}, _EIGHT_BITS),
    Level("x86-64-v4", ("-march=x86-64-v4",), _V4),
    Level("x86-64-v4-vnni", ("-march=x86-64-v4", "-mavx512vnni"), _V4 | {"avx512_vnni"}, _EIGHT_BITS),
    Level(
        "x86-64-v4-amx",
        ("-march=x86-64-v4", "-mavx512vnni", "-mamx-tile", "-mamx-int8"),
        _V4 | {"avx512_vnni", "amx_tile", "amx_int8"},
        _EIGHT_BITS,
    ),
)


def levels(machine: str) -> tuple[Level, ...]:
    """All levels of an architecture, as `platform.machine` names it; the lowest first."""
    return _X86_64 if machine.lower() in ("x86_64", "amd64") else (Level(machine.lower()),)


def fitting(source: str, machine: str, has: Set[str]) -> list[Level]:
    """The levels of a source that a processor with such instructions runs, the best first."""
    return [level for level in reversed(levels(machine)) if source in level.sources and level.needs <= has]


def library(source: str) -> ctypes.CDLL | None:
    """The best library here of `csrc/SOURCE.c`; None where none is carried that fits and is whole."""
    for level in fitting(source, platform.machine(), instructions()):
        found = compiler.loaded(_path(FOLDER, source, level))
        if found is not None:
            return found
    return None


def instructions(info: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What all processors of this machine have, by Linux's names; nothing where it does not say."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        return frozenset()
    each = [frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")]
    return frozenset.intersection(*each) if each else frozenset()


def make(folder: Path) -> dict[str, bool]:
    """Compiles all levels of all sources for this architecture; whether each could be, by its file's name. Nothing
    without a compiler."""
    program = compiler.compiler()
    if program is None:
        return {}
    wanted = [(source, level) for level in levels(platform.machine()) for source in level.sources]

    def one(source: str, level: Level) -> bool:
        flags, code = (*compiler.FLAGS, *level.flags), compiler.SOURCES / f"{source}.c"
        try:
            compiler.build(program, flags, code, _path(folder, source, level))
        except (OSError, subprocess.SubprocessError, ArtifactError):
            return False  # an older compiler does not know every level
        return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda pair: one(*pair), wanted))
    return {_path(folder, *pair).name: good for pair, good in zip(wanted, done, strict=True)}


def _path(folder: Path, source: str, level: Level) -> Path:
    return folder / f"{source}-{level.name}.so"
