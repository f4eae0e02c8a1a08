"""Work for worker processes, much of which goes wrong; imports nothing that takes long to import."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEPT: list[Any] = []


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Aside(BaseException):
    """No Exception."""


class Sticky:
    """Cannot leave its process."""

    def __reduce__(self) -> Any:
        raise RuntimeError("stays here")


class Foreign:
    """Leaves its process, and cannot be made again where it arrives."""

    def __reduce__(self) -> Any:
        return (_made_in, (os.getpid(),))


def _made_in(process: int) -> str:
    if os.getpid() != process:
        raise LookupError("made elsewhere")
    return "here"


def width(model: Any) -> int:
    """Channels of a model's first layer."""
    return int(model.get_submodule("0").weight.shape[0])


@dataclass(frozen=True)
class Deadly:
    """A task's own score, a model's first channels; four of them make it raise, six kill the worker it is in."""

    driver: int

    def __call__(self, model: Any) -> float:
        channels = width(model)
        if os.getpid() != self.driver and channels == 4:
            raise ValueError("not this one")
        if os.getpid() != self.driver and channels == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(channels)


def work(job: tuple[Any, ...]) -> Any:
    """Does what a job names, with its arguments."""
    name, *arguments = job
    return globals()[name](*arguments)


def make() -> Callable[[tuple[Any, ...]], Any]:
    return work


def broken() -> Any:
    raise ValueError("no such model")


def leaving() -> Any:
    raise SystemExit("I leave")


def dying() -> Any:
    os._exit(7)


def echo(value: Any, seconds: float = 0.0) -> tuple[Any, int]:
    time.sleep(seconds)
    return value, os.getpid()


def die(how: str, marks: str = "") -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(9)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "term":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    elif how == "deaf":  # a child holds the socket
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        Path(marks).with_suffix(".child").write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "mute":  # lives on without its socket
        os.closerange(3, 100)
        time.sleep(30)


def die_in_turn(ways: tuple[str, ...], marks: str) -> None:
    """Each time in another way."""
    path = Path(marks)
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    die(ways[len(path.read_text()) - 1])


def die_first(how: str, marks: str) -> int:
    """Dies unless it has done so before; gives how often it was begun."""
    path = Path(marks)
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    if len(path.read_text()) == 1:
        die(how, marks)
    return len(path.read_text())


def fail(how: str) -> None:
    if how == "memory":
        raise MemoryError
    if how == "allocator":
        import torch

        torch.empty(2**50)
    raise {
        "value": ValueError("two\nlines"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "mute": MuteError(),
        "aside": Aside("neither"),
        "deep": RecursionError("too deep"),
    }[how]


def give(what: str) -> Any:
    if what == "tensor":
        import torch

        return torch.arange(3.0)
    made: dict[str, Callable[[], Any]] = {
        "generator": lambda: iter(x for x in "ab"),
        "lock": threading.Lock,
        "sticky": Sticky,
        "foreign": Foreign,
        "function": lambda: lambda x: x + 1,
        "large": lambda: b"x" * 50_000_000,
        "nothing": lambda: None,
    }
    return made[what]()


def flood(count: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        for _ in range(count):
            stream.write("x" * 99 + "\n")
    return count


def hang(marks: str) -> None:
    """For good, with a child, and deaf to friendly signals."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"])
    Path(marks).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)


def take(megabytes: int, keep: bool = False) -> int:
    import torch

    taken = torch.ones(megabytes * 2**18)
    if keep:
        KEPT.append(taken)
    return len(taken)


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def environment() -> dict[str, Any]:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "group": os.getpgid(0),
        "parent": os.getppid(),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
