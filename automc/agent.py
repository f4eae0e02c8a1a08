"""The contract of a reinforcement-learning agent: actions for states, learning from finished episodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Transition:
    """One step of an episode, as it was executed after the budget's clip."""

    state: FloatArray
    """(S,), each entry in [0, 1]."""
    action: FloatArray
    """(A,), each entry in [0, 1]: the executed action, not the proposed one."""
    reward: float
    next_state: FloatArray
    done: bool


class Agent(Protocol):
    """Acts and learns; `episode` counts finished episodes told so far and drives exploration."""

    @property
    def episode(self) -> int:
        """Episodes observed so far."""
        ...

    def act(self, state: FloatArray, rng: np.random.Generator, *, explore: bool = True) -> FloatArray:
        """An action (A,) in [0, 1] for a state (S,)."""
        ...

    def observe(self, episode: Sequence[Transition], rng: np.random.Generator, *, updates: int | None = None) -> None:
        """Learns from one finished episode; called once an evaluation, in the order recorded.

        `updates` bounds the learning steps; 0 only remembers.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        ...
