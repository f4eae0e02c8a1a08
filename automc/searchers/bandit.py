"""Who proposes next: Thompson sampling over arms whose worth drifts.

Each arm has discounted counts of proposals that paid and that did not; the arm with the largest draw from its Beta
distribution proposes (Thompson 1933; discounting: Raj and Kalyani 2017; gains between 0 and 1 count as parts of a
success, Agrawal and Goyal 2013, section 1.1, without their coin).
"""

from collections import deque

import numpy as np

DISCOUNT = 0.95
WINDOW = 40
"""Latest gains that a gain is compared with."""


class Bandit:
    """Discounted Beta-Bernoulli arms."""

    def __init__(self, arms: tuple[str, ...]) -> None:
        self.arms = arms
        self.wins = dict.fromkeys(arms, 0.0)
        self.losses = dict.fromkeys(arms, 0.0)
        self._gains: deque[float] = deque(maxlen=WINDOW)

    def choose(self, rng: np.random.Generator) -> str:
        """The arm that proposes next."""
        draws = {arm: rng.beta(1.0 + self.wins[arm], 1.0 + self.losses[arm]) for arm in self.arms}
        return max(draws, key=draws.__getitem__)

    def update(self, arm: str, gain: float) -> None:
        """Counts what one proposal brought, at least 0, by its rank among late gains, since gains shrink.

        Arms not among these (baselines, earlier studies) change nothing but what gains are compared with.
        """
        self._gains.append(gain)
        below = sum((gain > other) + 0.5 * (gain == other) for other in self._gains)
        paid = below / len(self._gains) if gain > 0 else 0.0
        if arm not in self.arms:
            return
        for known in self.arms:
            self.wins[known] *= DISCOUNT
            self.losses[known] *= DISCOUNT
        self.wins[arm] += paid
        self.losses[arm] += 1.0 - paid
