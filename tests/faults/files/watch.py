"""Whatever happens while a hostile file is read: code that runs, files that are written, time and memory it takes."""

import contextlib
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
)
SECONDS = 20
"""Of processor time that one file may take before it counts as a hang."""
MEGABYTES = 400
"""That reading files may add to the most this process ever held."""


class _Ears:
    """What is listened for; a hook of the interpreter cannot be taken away again."""

    heard: list[tuple[str, str]] | None = None
    writes: list[str] | None = None


class HangError(BaseException):
    """Not an Exception, so that nobody takes it for his own."""


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _Ears.heard is not None and event in FORBIDDEN:
        _Ears.heard.append((event, repr(arguments)[:200]))
    if _Ears.writes is not None and event in ("open", "os.mkdir", "os.rename", "os.symlink"):
        _Ears.writes.extend(_written(event, arguments))


def _written(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Paths that an event writes to."""
    if event != "open":
        return [os.fsdecode(arguments[1] if event in ("os.rename", "os.symlink") else arguments[0])]
    path, _, flags = arguments
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return [os.fsdecode(path)] if writes and isinstance(path, (str, bytes)) else []


sys.addaudithook(_listen)


@contextlib.contextmanager
def nothing_runs() -> Iterator[None]:
    """Fails where a pickle finds a class, a process begins or a connection is made."""
    _Ears.heard = []
    try:
        yield
        assert not _Ears.heard, _Ears.heard
    finally:
        _Ears.heard = None


@contextlib.contextmanager
def written() -> Iterator[list[Path]]:
    """The paths that are opened for writing, made or renamed to; known at the end."""
    _Ears.writes, found = [], list[Path]()
    try:
        yield found
    finally:
        found += [Path(os.path.abspath(p)) for p in _Ears.writes]
        _Ears.writes = None


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """HangError where what is done takes more than `SECONDS` of processor time."""
    assert threading.current_thread() is threading.main_thread()

    def late(_number: int, _frame: FrameType | None) -> None:
        raise HangError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Fails where the most this process ever held grows by more than `MEGABYTES`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < MEGABYTES, f"{grown} MB more"
