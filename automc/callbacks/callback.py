"""The contract of what watches a search."""

from typing import Literal, Protocol, TypeAlias

from automc.evaluation import Evaluation
from automc.study import Study

Ending: TypeAlias = Literal["done", "stopped", "failed"]
"""How a search ended: with all its trials or its time spent, by the user, or by an error."""


class Callback(Protocol):
    """Is told what a search does, in the process that drives it.

    The search waits for it, so it should be quick. One that raises is told no more, which is logged; the search goes
    on.
    """

    def begin(self, study: Study) -> None:
        """A search begins, or goes on with what `study` holds; `study.meta` says what is searched."""
        ...

    def trial(self, study: Study, evaluation: Evaluation) -> None:
        """An evaluation was recorded, durably, under its number; every one that was not there when the search began."""
        ...

    def end(self, study: Study, how: Ending, reason: str) -> None:
        """The search has ended; `reason` says why it failed, and is empty otherwise."""
        ...
