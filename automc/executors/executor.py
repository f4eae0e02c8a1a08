"""The contract of what scores candidates for the loop."""

from typing import Protocol, runtime_checkable

from automc.evaluation import Evaluation
from automc.policy import Policy


@runtime_checkable
class Executor(Protocol):
    """Scores policies somewhere: here, in processes, on other machines.

    The loop keeps up to `slots` policies submitted and takes evaluations back in the order of submission, so what a
    search does depends on how many candidates are in flight and never on which of them finished first.
    """

    slots: int
    """How many policies may be in flight."""

    def submit(self, policy: Policy) -> None:
        """Begins to score a policy."""
        ...

    def next(self) -> Evaluation:
        """Waits for the oldest policy in flight; one that went wrong is a failed evaluation, never an exception."""
        ...
