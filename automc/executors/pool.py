"""Several workers as one executor: jobs go to whoever is free, and no worker's end is the end of the search."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol

from automc.errors import ExecutorError
from automc.executors.dispatch import ATTEMPTS, Dispatch
from automc.executors.executor import J, Lost, R


@dataclass(frozen=True, slots=True)
class Event:
    """What was heard of a worker."""

    worker: int
    kind: Literal["ready", "done", "raised", "broken", "died"]
    """It can work; it has a result; a job raised; it cannot be set up at all; it is gone."""
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
    another, three times in all. ExecutorError where no worker can be started.
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
        self._failed_starts = 0
        for worker in range(min(workers.count, self.slots)):
            workers.start(worker)

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
        while self._free and (handed := self._dispatch.hand_out()) is not None:
            number, job = handed
            worker = self._free.pop(0)
            self._at[worker] = number, self._clock()
            self._workers.send(worker, job)

    def _hear(self, event: Event) -> None:
        if event.kind == "broken":
            raise ExecutorError(f"Workers must be able to begin; one says {event.value}: mend that, or use workers=1.")
        number, since = self._at.pop(event.worker, (None, 0.0))
        took = self._clock() - since
        if event.kind == "died":
            self._replace(event, number, took)
            return
        self._failed_starts = 0
        self._free.append(event.worker)
        if number is None:
            return
        if event.kind == "raised":
            self._dispatch.give_up(number, str(event.value), took)
        else:
            self._dispatch.done(number, event.value)

    def _replace(self, event: Event, number: int | None, took: float) -> None:
        """Starts another worker for one that died."""
        if event.worker in self._free:
            self._free.remove(event.worker)
        elif number is None:
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS:
                raise ExecutorError(
                    f"Workers must live until they have a job; {ATTEMPTS} in a row did not ({event.value}): give them "
                    "more memory, or start fewer."
                )
        if number is not None:
            self._dispatch.died(number, str(event.value), took)
        self._workers.start(event.worker)

    def _stop_late(self) -> None:
        if self._seconds is None:
            return
        now = self._clock()
        for worker, (number, since) in list(self._at.items()):
            if now - since >= self._seconds:
                del self._at[worker]
                self._dispatch.give_up(number, f"It took longer than {self._seconds:g} s and was stopped.", now - since)
                self._workers.start(worker)

    def _patience(self) -> float | None:
        """Seconds until somebody is late."""
        if self._seconds is None or not self._at:
            return None
        first = min(since for _, since in self._at.values())
        return max(0.0, first + self._seconds - self._clock())
