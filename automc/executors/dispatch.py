"""Which job is whose turn, how often it was tried, and which results are due: the bookkeeping of every pool."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic

from automc.executors.executor import J, Lost, R

ATTEMPTS = 3
"""How many workers a job may take down with it before it is given up."""


@dataclass(slots=True)
class _Ticket(Generic[J, R]):
    job: J
    deaths: list[str] = field(default_factory=list)
    """Why workers left while they were at it."""
    seconds: float = 0.0
    """What it took in all attempts."""
    results: list[R] = field(default_factory=list)
    """None yet, or the one."""


class Dispatch(Generic[J, R]):
    """Jobs by number, from 0; they are handed out, and their results due, in the order submitted."""

    def __init__(self, lost: Lost[J, R]) -> None:
        self._lost = lost
        self._tickets: dict[int, _Ticket[J, R]] = {}
        self._waiting: deque[int] = deque()
        self._submitted = self._returned = 0

    def submit(self, job: J) -> None:
        """Puts a job in the queue."""
        self._tickets[self._submitted] = _Ticket(job)
        self._waiting.append(self._submitted)
        self._submitted += 1

    def hand_out(self) -> tuple[int, J] | None:
        """The next job to work on, with its number; None where none waits."""
        if not self._waiting:
            return None
        number = self._waiting.popleft()
        return number, self._tickets[number].job

    def done(self, number: int, result: R) -> None:
        """Takes note of a result."""
        self._tickets[number].results.append(result)

    def died(self, number: int, reason: str, seconds: float) -> None:
        """Takes note that a worker died of a job, which is tried again, before all others, or given up."""
        ticket = self._tickets[number]
        ticket.deaths.append(reason)
        ticket.seconds += seconds
        if len(ticket.deaths) < ATTEMPTS:
            self._waiting.appendleft(number)
        else:
            why = "; ".join(dict.fromkeys(ticket.deaths))
            self.give_up(number, f"It took {len(ticket.deaths)} workers down with it ({why}).", 0.0)

    def give_up(self, number: int, reason: str, seconds: float) -> None:
        """Takes note that a job is not to be tried again."""
        ticket = self._tickets[number]
        ticket.results.append(self._lost(ticket.job, reason, ticket.seconds + seconds))

    @property
    def due(self) -> bool:
        """Whether the result of the oldest job is there."""
        ticket = self._tickets.get(self._returned)
        return ticket is not None and bool(ticket.results)

    def next(self) -> R:
        """The result of the oldest job, which must be there."""
        (result,) = self._tickets.pop(self._returned).results
        self._returned += 1
        return result
