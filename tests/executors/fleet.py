"""Workers that exist on paper: a clock that jumps from event to event, and lives written down beforehand."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from automc.executors.pool import Event

End = Literal["done", "raised", "died", "hangs"]


@dataclass(frozen=True)
class Attempt:
    """What becomes of a job when it is tried once."""

    end: End
    seconds: float = 1.0


@dataclass(frozen=True)
class Start:
    """What becomes of a worker that is started."""

    kind: Literal["ready", "died", "broken", "hangs"] = "ready"
    seconds: float = 1.0


@dataclass(frozen=True, eq=False)
class Job:
    """A job that knows what becomes of it, attempt by attempt; the last one goes for all that follow."""

    name: int
    attempts: tuple[Attempt, ...] = (Attempt("done"),)
    tried: list[int] = field(default_factory=list)
    """By attempt, the worker that was at it."""


@dataclass
class Life:
    """What a worker is about."""

    number: int
    """Of starts with its number; what was planned for an earlier one comes to nothing."""
    ready: bool = False
    job: Job | None = None


class Fleet:
    """Workers for a `Pool`, which hold it to its part: AssertionError for what it must never do.

    starts: by worker, what becomes of it each time it is started; ready at once where nothing more is written.
    idle: by worker, seconds after it became ready at which it dies if it has no job then, each time it is started.
    """

    def __init__(
        self,
        count: int,
        starts: Sequence[Sequence[Start]] = (),
        idle: Sequence[Sequence[float]] = (),
    ) -> None:
        self.count, self.now, self.closed = count, 0.0, False
        self.starts = [list(starts[w]) if w < len(starts) else [] for w in range(count)]
        self.idle = [list(idle[w]) if w < len(idle) else [] for w in range(count)]
        self.lives: dict[int, Life] = {}
        self.begun = [0] * count
        self.handed: list[tuple[int, int]] = []
        """Worker and job, in order."""
        self._planned: list[tuple[float, int, int, int, str, Any]] = []
        self._made = 0

    def clock(self) -> float:
        return self.now

    def start(self, worker: int) -> None:
        assert not self.closed and 0 <= worker < self.count
        life = self.lives[worker] = Life(self.begun[worker])
        self.begun[worker] += 1
        plan = self.starts[worker].pop(0) if self.starts[worker] else Start(seconds=0.0)
        if plan.kind != "hangs":
            self._plan(plan.seconds, worker, life, plan.kind, "at its start")

    def send(self, worker: int, job: Job) -> None:
        life = self.lives[worker]
        assert not self.closed and life.job is None, "a worker was handed two jobs at once"
        assert life.ready, "a worker was handed a job before it was ready"
        attempt = job.attempts[min(len(job.tried), len(job.attempts) - 1)]
        job.tried.append(worker)
        self.handed.append((worker, job.name))
        life.job = job
        if attempt.end != "hangs":
            self._plan(attempt.seconds, worker, life, attempt.end, f"{attempt.end} {job.name}")

    def events(self, seconds: float | None) -> list[Event]:
        assert not self.closed
        self._forget()
        until = None if seconds is None else self.now + seconds
        if not self._planned or (until is not None and self._planned[0][0] > until):
            assert until is not None, "the pool waits for what never comes"
            self.now = until
            return []
        self.now = max(self.now, self._planned[0][0])
        heard: dict[int, Event] = {}  # one of each worker at a time, as of a socket
        later = []
        while self._planned and self._planned[0][0] <= self.now:
            entry = heapq.heappop(self._planned)
            if not self._current(entry):
                continue
            if entry[2] in heard:
                later.append(entry)
                continue
            heard[entry[2]] = self._happens(entry)
        for entry in later:
            heapq.heappush(self._planned, entry)
        return list(heard.values())

    def close(self) -> None:
        self.closed = True

    def _happens(self, entry: tuple[float, int, int, int, str, Any]) -> Event:
        _, _, worker, _, kind, value = entry
        life = self.lives[worker]
        if kind == "ready":
            life.ready = True
            if self.idle[worker]:
                self._plan(self.idle[worker].pop(0), worker, life, "idle", "at nothing")
        elif kind in ("died", "broken", "idle"):
            del self.lives[worker]
            return Event(worker, "broken" if kind == "broken" else "died", value)
        else:
            life.job = None
        return Event(worker, kind, value)  # type: ignore[arg-type]

    def _plan(self, seconds: float, worker: int, life: Life, kind: str, value: Any) -> None:
        self._made += 1
        heapq.heappush(self._planned, (self.now + seconds, self._made, worker, life.number, kind, value))

    def _forget(self) -> None:
        while self._planned and not self._current(self._planned[0]):
            heapq.heappop(self._planned)

    def _current(self, entry: tuple[float, int, int, int, str, Any]) -> bool:
        _, _, worker, number, kind, _ = entry
        life = self.lives.get(worker)
        return life is not None and life.number == number and not (kind == "idle" and life.job is not None)


Lost = tuple[str, int, str, float]


def lost(job: Job, reason: str, seconds: float) -> Lost:
    return ("lost", job.name, reason, seconds)


Expected = Callable[[Job, float | None], Any]


def expected(job: Job, limit: float | None, tries: int = 3) -> tuple[str, int]:
    """How a job must end, and after how many attempts, whatever becomes of the others."""
    for count in range(1, tries + 1):
        attempt = job.attempts[min(count, len(job.attempts)) - 1]
        late = limit is not None and (attempt.end == "hangs" or attempt.seconds > limit)
        if late:
            return "late", count
        if attempt.end != "died":
            return attempt.end, count
    return "deadly", tries
