"""Works on jobs in this process, one after the other."""

from collections import deque
from collections.abc import Callable
from typing import Generic

from automc.executors.executor import J, R


class Inline(Generic[J, R]):
    """A job is worked on when the loop waits for it; several `slots` only postpone that."""

    def __init__(self, work: Callable[[J], R], slots: int = 1) -> None:
        self.slots = slots
        self._work = work
        self._waiting: deque[J] = deque()

    def submit(self, job: J) -> None:
        """Keeps the job until `next`."""
        self._waiting.append(job)

    def next(self) -> R:
        """Works on the oldest job."""
        return self._work(self._waiting.popleft())

    def close(self) -> None:
        """Forgets what waits."""
        self._waiting.clear()
