"""Scores candidates in this process, one after the other."""

from collections import deque
from collections.abc import Callable

from automc.evaluation import Evaluation
from automc.policy import Policy


class Inline:
    """One slot: a policy is scored when the loop waits for it."""

    slots = 1

    def __init__(self, evaluate: Callable[[Policy], Evaluation]) -> None:
        self._evaluate = evaluate
        self._waiting: deque[Policy] = deque()

    def submit(self, policy: Policy) -> None:
        """Keeps the policy until `next`."""
        self._waiting.append(policy)

    def next(self) -> Evaluation:
        """Scores the oldest policy."""
        return self._evaluate(self._waiting.popleft())
