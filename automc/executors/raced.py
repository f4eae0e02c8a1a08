"""Scores a search's policies by jobs that any executor can work on."""

from collections import deque

from automc.evaluation import Evaluation
from automc.executors.executor import Executor
from automc.policy import Policy
from automc.scoring.heat import Job, Outcome
from automc.scoring.race import Race


class Raced:
    """What a policy runs against is settled when it is submitted, by what the race was told until then."""

    def __init__(self, race: Race, executor: Executor[Job, Outcome]) -> None:
        self.slots = executor.slots
        self._race, self._executor = race, executor
        self._flying: deque[Job | Evaluation] = deque()

    def submit(self, policy: Policy) -> None:
        """Begins to score a policy, unless the race knows enough of it."""
        job = self._race.job(policy)
        if isinstance(job, Job):
            self._executor.submit(job)
        self._flying.append(job)

    def next(self) -> Evaluation:
        """Waits for the oldest policy in flight."""
        job = self._flying.popleft()
        return self._race.take(job, self._executor.next()) if isinstance(job, Job) else job

    def close(self) -> None:
        """Gives up what is in flight."""
        self._flying.clear()
        self._executor.close()
