"""An agent that never learns: the smallest implementation of the contract, and a control for the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from automc.agent import AgentSetting, FloatArray, Transition, check_episode


class RandomAgent:
    """Uniform actions."""

    def __init__(self, setting: AgentSetting) -> None:
        self._action_size, self._episodes = setting.action_size, 0

    @property
    def episode(self) -> int:
        """Episodes observed so far."""
        return self._episodes

    def act(self, state: FloatArray, rng: np.random.Generator, *, explore: bool = True) -> FloatArray:
        """An action drawn uniformly."""
        return rng.uniform(size=self._action_size)

    def observe(self, episode: Sequence[Transition], rng: np.random.Generator, *, updates: int | None = None) -> None:
        """Counts the episode."""
        check_episode(episode)
        self._episodes += 1

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"episodes": self._episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the count."""
        self._episodes = int(state["episodes"])
