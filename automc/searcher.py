"""What a search works on, and the contract of what proposes policies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.projection import Projector
from automc.space import FloatArray, SearchSpace


@dataclass(frozen=True, eq=False)
class Problem:
    """One search: the open decisions, the budget as a projection, and what is known of the layers beforehand."""

    space: SearchSpace
    projector: Projector
    dense_score: float
    """Score of the dense model on the validation data."""
    errors: Callable[[], tuple[FloatArray, ...]] | None = None
    """Per axis of the space, the layer's relative output error at each level, from calibration data alone; an
    axis without an order has zeros. None where no layer statistics exist; computed on the first call."""
    thresholds: Callable[[str], tuple[FloatArray, ...]] | None = None
    """For a criterion, per axis, the largest of its scores among what each level removes; -inf where it removes
    nothing or ranks nothing."""


class Searcher(Protocol):
    """Proposes policies by ask and tell.

    `ask` returns a feasible policy; several asks may come before a tell. `tell` is given every evaluation of the
    study in the order recorded, whoever proposed it, on resume as well: a searcher is a function of the seed and
    of what it was told, so an interrupted search goes on exactly as an uninterrupted one. Randomness of one ask
    or tell comes from a generator seeded with (seed, number of evaluations told, number of open asks).
    """

    def ask(self) -> Policy:
        """The next policy to score; it meets the budget."""
        ...

    def tell(self, evaluation: Evaluation) -> None:
        """Takes note of a scored policy."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values that describe what was learned, for inspection and transfer."""
        ...


@runtime_checkable
class Reopens(Searcher, Protocol):
    """A searcher that keeps nothing of an ask once it is told what came of it.

    Then it can be brought to where it was with asks open without repeating those before, which may each take seconds.
    """

    def reopen(self, policy: Policy, proposer: str) -> None:
        """Takes note of an open ask that was answered so, by whomever; all before it are told, or open, too."""
        ...


@runtime_checkable
class ServesBudgets(Searcher, Protocol):
    """A searcher whose agent was shown many budgets."""

    def policy_for(self, share: float) -> Policy:
        """What it does, without exploring, with a budget of that share of the dense cost."""
        ...


SearcherFactory = Callable[[Problem, int], Searcher]
"""What a searcher registers: from the problem and a seed to a searcher."""
