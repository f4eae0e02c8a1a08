"""A replay buffer: the last transitions in a ring, drawn uniformly with replacement."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from automc.agent import Transition


class Replay:
    """Holds up to `capacity` transitions as arrays; each is complete in itself, so any of them may be drawn."""

    def __init__(self, capacity: int, state_size: int, action_size: int) -> None:
        self.capacity, self.count = capacity, 0
        self._rows = np.zeros((capacity, 2 * state_size + action_size + 2), dtype=np.float32)
        self._cuts = np.cumsum([state_size, action_size, 1, state_size])

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    def add(self, transition: Transition) -> None:
        """Stores a transition over the oldest one."""
        row = (
            transition.state,
            transition.action,
            [transition.reward],
            transition.next_state,
            [float(transition.done)],
        )
        self._rows[self.count % self.capacity] = np.concatenate(row)
        self.count += 1

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """states (B, S), actions (B, A), rewards (B, 1), next states (B, S), done (B, 1) of `size` transitions."""
        rows = self._rows[rng.integers(0, len(self), size)]
        return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in np.split(rows, self._cuts, axis=1))

    def state_dict(self) -> dict[str, Any]:
        """Stored rows and the count."""
        return {"rows": torch.from_numpy(self._rows[: len(self)].copy()), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._rows[: len(state["rows"])] = state["rows"].numpy()
        self.count = int(state["count"])
