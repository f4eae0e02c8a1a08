"""A replay buffer: the last transitions in a ring, drawn uniformly with replacement."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automc.agent import Transition, check_episode


class Replay:
    """Holds up to `capacity` transitions as arrays; each is complete in itself, so any of them may be drawn."""

    def __init__(self, capacity: int, state_size: int, action_size: int) -> None:
        self.capacity, self.count = capacity, 0
        self._rows = np.zeros((capacity, 2 * state_size + action_size + 2), dtype=np.float32)
        self._cuts = [state_size, action_size, 1, state_size, 1]

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    def add(self, episode: Sequence[Transition]) -> None:
        """Stores a finished episode over the oldest transitions, its final reward in every one of its own (AMC).

        Numbers that are not finite raise PolicyError and store nothing.
        """
        check_episode(episode)
        reward = episode[-1].reward
        rows = [np.concatenate((t.state, t.action, (reward,), t.next_state, (float(t.done),))) for t in episode]
        self._rows[(self.count + np.arange(len(rows))) % self.capacity] = rows
        self.count += len(rows)

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """states (B, S), actions (B, A), rewards (B, 1), next states (B, S), done (B, 1) of `size` transitions."""
        rows = torch.from_numpy(self._rows[rng.integers(0, len(self), size)])
        return rows.split_with_sizes(self._cuts, dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Stored rows and the count."""
        return {"rows": torch.from_numpy(self._rows[: len(self)].copy()), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._rows[: len(state["rows"])] = state["rows"].numpy()
        self.count = int(state["count"])
