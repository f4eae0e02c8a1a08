"""Workers as processes of this machine, started anew rather than forked: threads of torch survive no fork."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from automc.errors import ExecutorError, told
from automc.executors.executor import Lost, Make
from automc.executors.parcel import Parcel, packed
from automc.executors.pool import Event, Pool

GRACE = 5.0
"""Seconds in which a process that was told to end does so."""


@dataclass(frozen=True, eq=False, slots=True)
class _Process:
    running: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"
    handle: int | None
    """A file descriptor that can be read from once the process has ended, where the system has such."""

    @property
    def sources(self) -> "tuple[Connection[Any, Any] | int, ...]":
        """What is heard of it; a socket is not closed while a process that it started holds it, too."""
        return (self.connection,) if self.handle is None else (self.connection, self.handle)


class Processes:
    """Processes that are given `make` through shared memory, each with its own pool of `threads` of torch.

    memory_bytes: how much more than at its begin a job may have its process map; an allocation beyond raises in it.
    """

    def __init__(self, make: Make[Any, Any], count: int, *, threads: int = 1, memory_bytes: int | None = None) -> None:
        if os.name != "posix":
            raise ExecutorError("Worker processes need a POSIX system; this is none: use workers=1.")
        self.count = count
        self._threads, self._memory_bytes = threads, memory_bytes
        self._parcel: Parcel | None = packed(make)
        self._processes: dict[int, _Process] = {}

    def start(self, worker: int) -> None:
        """Starts a process; one that has the number already is killed."""
        assert self._parcel is not None  # nobody starts what was closed
        self._end(worker)
        ours, theirs = socket.socketpair()
        with theirs:
            passed = (theirs.fileno(), self._parcel.memory)
            running = _started(["automc.executors.worker", str(theirs.fileno()), str(os.getpid())], passed)
        connection: Connection[Any, Any] = Connection(ours.detach())
        self._processes[worker] = _Process(running, connection, _handle(running.pid))
        self.send(worker, (_path(), self._threads, self._memory_bytes, self._parcel))

    def send(self, worker: int, job: Any) -> None:
        """Gives a job to a process; that one is gone is heard of by `events`."""
        with contextlib.suppress(OSError):
            self._processes[worker].connection.send(job)

    def events(self, seconds: float | None) -> Sequence[Event]:
        """Waits for the first message, or the end of a process."""
        by_source = {source: worker for worker, p in self._processes.items() for source in p.sources}
        heard = dict.fromkeys(by_source[source] for source in wait(list(by_source), seconds) if source in by_source)
        return [self._heard(worker) for worker in heard]

    def close(self) -> None:
        """Kills all processes: whatever they know is known elsewhere, or lost with the candidates in flight."""
        for worker in list(self._processes):
            self._end(worker)
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None

    def _heard(self, worker: int) -> Event:
        """What a process has said, or else that it is gone; either is heard once."""
        process = self._processes[worker]
        try:
            if process.connection.poll():
                kind, value = process.connection.recv()
                return Event(worker, kind, value)
        except (EOFError, OSError):
            pass
        except Exception as error:  # it is of what nobody can import here
            return Event(worker, "raised", f"What it gave cannot be read here: {told(error)}")
        end = _end_of(process.running)
        self._end(worker)
        return Event(worker, "died", end)

    def _end(self, worker: int) -> None:
        process = self._processes.pop(worker, None)
        if process is None:
            return
        process.connection.close()
        if process.handle is not None:
            os.close(process.handle)
        if process.running.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.running.pid, signal.SIGKILL)
            process.running.wait()


def processes(
    make: Make[Any, Any],
    lost: Lost[Any, Any],
    *,
    workers: int,
    slots: int | None = None,
    seconds: float | None = None,
    threads: int = 1,
    memory_bytes: int | None = None,
) -> Pool[Any, Any]:
    """An executor of so many processes; see `Pool` and `Processes`."""
    started = Processes(make, workers, threads=threads, memory_bytes=memory_bytes)
    return Pool(started, lost, slots=slots, seconds=seconds)


def _started(module: Sequence[str], passed: Sequence[int]) -> "subprocess.Popen[bytes]":
    """A Python process that runs a module with arguments, in a group of its own: Ctrl-C is not meant for it.

    The folder it runs in comes last in its path, where no file there can stand for one of Python's own.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(_path())}
    command = [sys.executable, "-P", "-m", *module]
    try:
        return subprocess.Popen(command, pass_fds=passed, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        raise ExecutorError(
            f"A worker process must start; the system says {error.strerror}: close other programs, or start fewer."
        ) from error


def _path() -> list[str]:
    """Where this process finds its modules, and the folder it runs in."""
    return [*map(os.path.abspath, sys.path), os.getcwd()]


def _handle(process: int) -> int | None:
    """What `_Process.handle` says."""
    try:
        return os.pidfd_open(process)
    except (OSError, AttributeError):  # Linux has it, if not for everybody
        return None


def _end_of(process: "subprocess.Popen[bytes]") -> str:
    """How a process ended, in words."""
    try:
        status = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return "it closed its socket"
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"{name}, as when memory runs out" if status == -signal.SIGKILL else name
