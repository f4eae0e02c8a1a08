"""How an actor without randomness of its own explores (He et al. 2018, section 3.2 and appendix).

Uniform actions in the warm-up, then truncated-normal noise around the actor whose deviation decays from episode to
episode. Episodes of others fill the warm-up, but only the agent's own make the noise decay: what it was shown says
nothing of how much it has tried.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from automc.agent import FloatArray


@dataclass(slots=True)
class Exploration:
    """The schedule of one agent, counting."""

    warmup: int
    """Episodes of uniform actions."""
    first: float
    """Deviation of the noise in the first episode after the warm-up."""
    decay: float
    """Factor on the deviation for each later episode of the agent's own."""
    episodes: int = 0
    """Episodes told, whoever proposed them."""
    own: int = 0
    """Those of the agent's own after the warm-up."""

    @property
    def warming_up(self) -> bool:
        """Whether actions are uniform still."""
        return self.episodes < self.warmup

    @property
    def deviation(self) -> float:
        """Deviation of the noise in the next episode, as a share of the action's range."""
        return float(self.first * self.decay**self.own)

    def around(self, mean: FloatArray, rng: np.random.Generator) -> FloatArray:
        """An action (A,) near the actor's, which lies in [0, 1]."""
        return np.array([truncated_normal(m, self.deviation, rng) for m in mean.tolist()])

    def count(self, *, own: bool) -> None:
        """Counts a finished episode."""
        self.own += own and not self.warming_up
        self.episodes += 1

    def state_dict(self) -> dict[str, Any]:
        """Both counts, and the warm-up they are held against."""
        return {"warmup": self.warmup, "episodes": self.episodes, "own": self.own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.warmup, self.episodes, self.own = int(state["warmup"]), int(state["episodes"]), int(state["own"])


def truncated_normal(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """A draw from N(mean, deviation^2) cut to [0, 1], by the inverse of its distribution; `mean` lies in [0, 1]."""
    if deviation < 1e-6:
        return mean
    normal = NormalDist(mean, deviation)
    share = float(rng.uniform(normal.cdf(0.0), normal.cdf(1.0)))
    return min(max(normal.inv_cdf(min(max(share, 1e-12), 1.0 - 1e-12)), 0.0), 1.0)
