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

from automc.errors import ExecutorError
from automc.executors.executor import Lost, Make
from automc.executors.parcel import Parcel, packed
from automc.executors.pool import Event, Pool

GRACE = 5.0
"""Seconds in which a process that was told to end does so."""


@dataclass(frozen=True, eq=False, slots=True)
class _Process:
    running: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"


class Processes:
    """Processes that are given `make` through shared memory, each with its own pool of `threads` of torch.

    memory_bytes: how much more than when it begins a process may map; an allocation beyond fails its candidate.
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
            command = [sys.executable, "-m", "automc.executors.worker", str(theirs.fileno()), str(os.getpid())]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            running = subprocess.Popen(command, pass_fds=passed, env=environment, stdin=subprocess.DEVNULL)
        connection: Connection[Any, Any] = Connection(ours.detach())
        self._processes[worker] = _Process(running, connection)
        self.send(worker, (sys.path, self._threads, self._memory_bytes, self._parcel))

    def send(self, worker: int, job: Any) -> None:
        """Gives a job to a process; that one is gone is heard of by `events`."""
        with contextlib.suppress(OSError):
            self._processes[worker].connection.send(job)

    def events(self, seconds: float | None) -> Sequence[Event]:
        """Waits for the first message, or the end of a process."""
        by_connection = {p.connection: worker for worker, p in self._processes.items()}
        return [self._heard(by_connection[c]) for c in wait(list(by_connection), seconds) if c in by_connection]

    def close(self) -> None:
        """Kills all processes: whatever they know is known elsewhere, or lost with the candidates in flight."""
        for worker in list(self._processes):
            self._end(worker)
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None

    def _heard(self, worker: int) -> Event:
        process = self._processes[worker]
        try:
            kind, value = process.connection.recv()
        except (EOFError, OSError):
            return Event(worker, "died", _end_of(process.running))
        return Event(worker, kind, value)

    def _end(self, worker: int) -> None:
        process = self._processes.pop(worker, None)
        if process is not None:
            process.connection.close()
            process.running.kill()
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
