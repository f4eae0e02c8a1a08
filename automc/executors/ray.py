"""Workers as Ray actors, on a cluster where there is one, on this machine otherwise (see `_begin`).

Actors with plain calls: a trial costs a few milliseconds that way, and more as one of Ray Tune's. What workers are made
from goes into the object store once. Ray is not told to try anything again: which candidates are tried again is settled
in one place, `dispatch`, whatever the workers are.
"""

import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from automc.errors import ExecutorError, told
from automc.executors.executor import Lost, Make
from automc.executors.parcel import opened_in, packed
from automc.executors.pool import Event, Pool
from automc.executors.worker import made, worked

_log = logging.getLogger("automc")
_OFF = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is reported to anybody; a worker without a GPU sees the devices it saw."""


class _Actor:
    """One worker: made from the parcel, then called with one job after the other."""

    def __init__(self, parcel: Any, tensors: int, path: Sequence[str], threads: int, memory_bytes: int | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray makes SystemExit of it, which would seem to be a job's
        # The object store's memory is that of all actors of a node: what one wrote there the others would read.
        self.work, self.said = made(lambda: opened_in(memoryview(parcel), tensors), path, threads, memory_bytes)

    def begin(self) -> tuple[str, Any]:
        """Whether it can work."""
        return ("ready", None) if self.work is not None else ("broken", self.said)

    def run(self, job: Any) -> tuple[str, Any]:
        """What became of a job."""
        return worked(self.work, job)


class RayWorkers:
    """Actors that own a CPU for each of their `threads`, and a share of a GPU."""

    def __init__(
        self,
        make: Make[Any, Any],
        count: int,
        *,
        threads: int = 1,
        memory_bytes: int | None = None,
        gpus: float = 0.0,
    ) -> None:
        self.count = count
        self._threads, self._memory_bytes = threads, memory_bytes
        parcel = packed(make)
        try:
            self._tensors, everything = parcel.tensors, parcel.read()
        finally:
            parcel.close()
        self._ray, self._ours = _connected(count * threads)
        self._parcel = self._ray.put(np.frombuffer(everything, dtype=np.uint8))
        self._class = self._ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Actor)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        """By what will be a call's result, the worker that was called."""

    def start(self, worker: int) -> None:
        """Starts an actor; one that has the number already is killed."""
        self._end(worker)
        actor = self._class.remote(self._parcel, self._tensors, sys.path, self._threads, self._memory_bytes)
        self._actors[worker] = actor
        self._calls[actor.begin.remote()] = worker

    def send(self, worker: int, job: Any) -> None:
        """Calls an actor."""
        self._calls[self._actors[worker].run.remote(job)] = worker

    def events(self, seconds: float | None) -> Sequence[Event]:
        """Waits for the first call that ends."""
        ended, rest = self._ray.wait(list(self._calls), timeout=seconds)
        if ended and rest:
            ended += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [self._heard(call) for call in ended]

    def close(self) -> None:
        """Kills all actors, and ends Ray where it was begun here."""
        for worker in list(self._actors):
            self._end(worker)
        self._parcel = None
        if self._ours:
            self._ray.shutdown()

    def _heard(self, call: Any) -> Event:
        worker = self._calls.pop(call)
        try:
            kind, value = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:  # all that a job raises is caught in the actor
            return Event(worker, "raised", f"What it gave cannot leave its process: {told(error.cause)}")
        except self._ray.exceptions.RayError as error:
            return Event(worker, "died", _why(error))
        return Event(worker, kind, value)

    def _end(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        self._calls = {call: other for call, other in self._calls.items() if other != worker}
        if actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)


def on_ray(
    make: Make[Any, Any],
    lost: Lost[Any, Any],
    *,
    workers: int,
    slots: int | None = None,
    seconds: float | None = None,
    threads: int = 1,
    memory_bytes: int | None = None,
    gpus: float = 0.0,
) -> Pool[Any, Any]:
    """An executor of so many actors; see `Pool` and `RayWorkers`."""
    actors = RayWorkers(make, workers, threads=threads, memory_bytes=memory_bytes, gpus=gpus)
    return Pool(actors, lost, slots=slots, seconds=seconds)


def _connected(cpus: int) -> tuple[Any, bool]:
    """Ray, and whether it was begun here; ExecutorError where it cannot be had."""
    for name, value in _OFF.items():
        os.environ.setdefault(name, value)
    ray: Any = importlib.import_module("ray")

    ours = not ray.is_initialized()
    try:
        if ours:
            _begin(ray, cpus)
        there = float(ray.cluster_resources().get("CPU", 0.0))
    except Exception as error:  # Ray raises whatever went wrong in it
        said = told(error)
        raise ExecutorError(f"Ray must start, or be reached; it says {said}: mend that, or use processes.") from error
    if there < cpus:
        _log.warning("Workers need %d CPUs of Ray, which has %g: some wait until there are more.", cpus, there)
    return ray, ours


def _begin(ray: Any, cpus: int) -> None:
    """Joins the cluster of RAY_ADDRESS or of `ray start`; where there is none, starts Ray for this process alone.

    Not by address="auto", which would join whatever Ray it finds on this machine, such as that of another search.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
    except ValueError:  # a cluster has CPUs of its own
        ray.init(**quiet)


def _why(error: Exception) -> str:
    """How an actor ended, in words."""
    said = " ".join(str(error).split())
    for known, words in (("OutOfMemory", "killed for memory"), ("SYSTEM_ERROR", "its process died")):
        if known in said or known in type(error).__name__:
            return words
    return f"{type(error).__name__}: {said}"[:200]
