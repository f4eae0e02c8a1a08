"""The contract of a reinforcement-learning agent: actions for states, learning from finished episodes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from automc.errors import PolicyError, RegistryError

FloatArray = NDArray[np.float64]
LARGEST_REWARD = 1e15
"""Agents keep rewards in single precision, and square them."""
_Knobs = TypeVar("_Knobs")


@dataclass(frozen=True, slots=True)
class AgentSetting:
    """What an agent is made for: the one argument of every registered factory."""

    state_size: int
    action_size: int
    steps: int
    """Steps of an episode; entry 0 of a state says which one it is, scaled from 0, the first, to 1, the last."""
    seed: int = 0
    warmup: int | None = None
    """Episodes of uniform actions before the agent acts by itself; None: what its source has. Agents that learn from
    their own episodes alone have none."""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """The agent's own settings by name, where they differ from its defaults."""

    def read(self, kind: type[_Knobs]) -> _Knobs:
        """The agent's settings, a dataclass, with the knobs turned; an unknown knob raises RegistryError."""
        known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
        for name in self.knobs:
            if name not in known:
                raise RegistryError(f"A knob of this agent must be one of {known}; {name!r} is none: name one of them.")
        return kind(**self.knobs)


@dataclass(frozen=True, eq=False, slots=True)
class Transition:
    """One step of an episode, as it was executed after the budget's clip or repair."""

    state: FloatArray
    """(S,), each entry in [0, 1]."""
    action: FloatArray
    """(A,), each entry in [0, 1]: the executed action, not the proposed one."""
    reward: float
    next_state: FloatArray
    done: bool


class Agent(Protocol):
    """Acts and learns; `episode` counts finished episodes told so far."""

    @property
    def episode(self) -> int:
        """Episodes observed so far."""
        ...

    def act(self, state: FloatArray, rng: np.random.Generator, *, explore: bool = True) -> FloatArray:
        """An action (A,) in [0, 1] for a state (S,)."""
        ...

    def observe(self, episode: Sequence[Transition], rng: np.random.Generator, *, updates: int | None = None) -> None:
        """Learns from one finished episode; called once an evaluation, in the order recorded.

        `updates` bounds the learning steps; 0 only remembers, as for episodes of others. Numbers that are not finite
        raise PolicyError and change nothing (see `check_episode`).
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values only, and everything that later acts and observes depend on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        ...


AgentFactory = Callable[[AgentSetting], Agent]
"""What an agent registers."""


def check_episode(episode: Sequence[Transition]) -> None:
    """Raises PolicyError for an episode without a step or with a number that is not finite.

    Every agent calls this before it remembers anything: one NaN in a replay buffer or a network spoils all that is
    learnt later.
    """
    if not episode:
        raise PolicyError("An episode must have a step; this one has none: tell finished episodes only.")
    rewards = np.array([t.reward for t in episode], dtype=np.float64)
    parts = [x for t in episode for x in (t.state, t.action, t.next_state)]
    sound = bool((np.abs(rewards) <= LARGEST_REWARD).all())  # False for NaN
    if not sound or not np.isfinite(np.concatenate(parts)).all():
        what = "a state or an action" if sound else "a reward"
        raise PolicyError(
            f"An episode must hold finite numbers, rewards at most {LARGEST_REWARD:.0e}; {what} is none: "
            "give it the reward of a failure."
        )
