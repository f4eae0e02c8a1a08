"""Several workers as one executor: jobs go to whoever is free, and no worker's end is the end of the search."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol

from automc.errors import ExecutorError
from automc.executors.dispatch import ATTEMPTS, Dispatch
from automc.executors.executor import J, Lost, R

START = 1800.0
"""Seconds that a search waits for any worker at all: for a cluster to find room, or a large model to be traced."""
_log = logging.getLogger("automc")


@dataclass(frozen=True, slots=True)
class Event:
    """What was heard of a worker."""

    worker: int
    kind: Literal["ready", "done", "raised", "broken", "died"]
    """It can work; it has a result; a job raised; it cannot be set up; it is gone, with nothing more to be heard."""
    value: Any = None
    """The result, or why."""


class Workers(Protocol):
    """Workers somewhere, by number from 0; each works on one job at a time."""

    count: int

    def start(self, worker: int) -> None:
        """Starts a worker, or another one in its place; what it was at is given up."""
        ...

    def send(self, worker: int, job: Any) -> None:
        """Gives a job to a worker that is ready; one that is gone is heard of as an event."""
        ...

    def events(self, seconds: float | None) -> Sequence[Event]:
        """What happened since; waits so long for the first event, None for as long as it takes."""
        ...

    def close(self) -> None:
        """Ends all of them."""
        ...


class Pool(Generic[J, R]):
    """An executor of `workers`, with `slots` jobs in flight, by default two for each worker.

    A job that takes longer than `seconds` is given up, and its worker replaced; one whose worker dies is tried again by
    another, three times in all. A worker that three times in a row was gone before it was ready is not started again;
    ExecutorError where none is left, or none is ready within `START`.
    """

    def __init__(
        self,
        workers: Workers,
        lost: Lost[J, R],
        *,
        slots: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots or 2 * workers.count
        self._workers, self._seconds, self._clock = workers, seconds, clock
        self._dispatch: Dispatch[J, R] = Dispatch(lost)
        self._free: list[int] = []
        """Ready, and at nothing."""
        self._at: dict[int, tuple[int, float]] = {}
        """By worker, the job it is at and since when."""
        self._starting: set[int] = set()
        """Not ready yet."""
        self._failed: Counter[int] = Counter()
        """By worker, how often in a row it was gone before it was ready."""
        self._any_ready = False
        """Whether any worker was ever ready."""
        self._news = clock()
        """When a worker was started, or heard of, for the last time."""
        try:
            for worker in range(min(workers.count, self.slots)):
                self._start(worker)
        except BaseException:
            workers.close()
            raise

    def submit(self, job: J) -> None:
        """Begins to work on a job as soon as a worker is free."""
        self._dispatch.submit(job)
        self._listen(0.0)

    def next(self) -> R:
        """Waits for the oldest job in flight."""
        self._listen(0.0)
        while not self._dispatch.due:
            self._listen(self._patience())
        return self._dispatch.next()

    def close(self) -> None:
        """Ends all workers."""
        self._workers.close()

    def _listen(self, seconds: float | None) -> None:
        """Takes note of what happened, and hands out what waits."""
        for event in self._workers.events(seconds):
            self._hear(event)
        self._stop_late()
        self._check_alive()
        while self._free and (handed := self._dispatch.hand_out()) is not None:
            number, job = handed
            worker = self._free.pop(0)
            self._at[worker] = number, self._clock()
            self._workers.send(worker, job)

    def _hear(self, event: Event) -> None:
        self._news = self._clock()
        number, since = self._at.pop(event.worker, (None, 0.0))
        took = self._news - since
        if event.kind in ("died", "broken"):
            self._replace(event, number, took)
            return
        self._starting.discard(event.worker)
        self._failed.pop(event.worker, None)
        self._any_ready = True
        self._free.append(event.worker)
        if number is None:
            return
        if event.kind == "raised":
            self._dispatch.give_up(number, str(event.value), took)
        else:
            self._dispatch.done(number, event.value)

    def _replace(self, event: Event, number: int | None, took: float) -> None:
        """Starts another worker for one that died, unless that has proved to be of no use."""
        worker = event.worker
        if event.kind == "broken" and not self._any_ready:
            raise ExecutorError(f"Workers must be able to begin; one says {event.value}: mend that, or use workers=1.")
        if worker in self._starting:
            self._failed[worker] += 1
        elif number is None:
            self._free.remove(worker)
        else:
            self._dispatch.died(number, str(event.value), took)
        if self._failed[worker] < ATTEMPTS:
            self._start(worker)
        else:
            self._give_up(event)

    def _give_up(self, event: Event) -> None:
        """Goes on without a worker; ExecutorError where it was the last."""
        self._starting.discard(event.worker)
        if not (self._starting or self._free or self._at):
            raise ExecutorError(
                f"Workers must live until they have a job; none does, tried {ATTEMPTS} times ({event.value}): give "
                "them more memory, or start fewer."
            )
        _log.warning("A worker does not begin, tried %d times (%s); the others go on.", ATTEMPTS, event.value)

    def _start(self, worker: int) -> None:
        self._starting.add(worker)
        self._news = self._clock()
        self._workers.start(worker)

    def _stop_late(self) -> None:
        if self._seconds is None:
            return
        now = self._clock()
        for worker, (number, since) in list(self._at.items()):
            if now - since >= self._seconds:
                del self._at[worker]
                self._dispatch.give_up(number, f"It took longer than {self._seconds:g} s and was stopped.", now - since)
                self._start(worker)

    def _check_alive(self) -> None:
        """ExecutorError where nobody is ready and nothing was heard for long."""
        if not (self._free or self._at) and self._clock() - self._news >= START:
            raise ExecutorError(f"Workers must be ready within {START:g} s; none is: make room, or start fewer.")

    def _patience(self) -> float | None:
        """Seconds until somebody is late, or all are; None while whoever is at a job may take as long as it takes."""
        if not self._at:
            return max(0.0, self._news + START - self._clock())
        if self._seconds is None:
            return None
        first = min(since for _, since in self._at.values())
        return max(0.0, first + self._seconds - self._clock())
