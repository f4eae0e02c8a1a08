"""Workers in this process that finish in any order, and die now and then: what a search does must not depend on it.

Each is made from a parcel of its own, so that none knows what another one has computed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from automc.executors.executor import Lost, Make
from automc.executors.parcel import opened, packed
from automc.executors.pool import Event, Pool


class Scrambled:
    """As `seed` has it; `deaths` is how often a worker dies instead of finishing."""

    def __init__(self, make: Make[Any, Any], count: int, seed: int, deaths: float) -> None:
        self.count, self._deaths = count, deaths
        self._parcel = packed(make)
        self._rng = np.random.default_rng(seed)
        self._works: dict[int, Any] = {}
        self._jobs: dict[int, Any] = {}
        self._unheard: list[int] = []

    def start(self, worker: int) -> None:
        self._works[worker] = opened(self._parcel)()
        self._jobs.pop(worker, None)
        self._unheard.append(worker)

    def send(self, worker: int, job: Any) -> None:
        assert worker not in self._jobs
        self._jobs[worker] = job

    def events(self, seconds: float | None) -> Sequence[Event]:
        begun, self._unheard = self._unheard, []
        found = [Event(worker, "ready") for worker in begun]
        busy = [w for w in self._jobs if self._rng.random() < 0.4]
        if not busy and self._jobs and not found and seconds != 0.0:
            busy = [int(self._rng.choice(list(self._jobs)))]
        self._rng.shuffle(busy)
        return [*found, *(self._ended(worker) for worker in busy)]

    def close(self) -> None:
        self._parcel.close()

    def _ended(self, worker: int) -> Event:
        job = self._jobs.pop(worker)
        if self._rng.random() < self._deaths:
            return Event(worker, "died", "drawn by lot")
        return Event(worker, "done", self._works[worker](job))


SEED, DEATHS = 0, 0.05


def scrambled(
    make: Make[Any, Any], lost: Lost[Any, Any], *, workers: int, slots: int | None, **_: Any
) -> Pool[Any, Any]:
    """What the registry calls."""
    return Pool(Scrambled(make, workers, SEED + workers, DEATHS), lost, slots=slots)
