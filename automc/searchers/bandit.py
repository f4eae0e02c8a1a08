"""Who proposes next: Thompson sampling over arms whose worth drifts.

Each arm has discounted counts of proposals that paid and that did not; the arm with the largest draw from its Beta
distribution proposes (Thompson 1933; discounting: Raj and Kalyani 2017).
"""

import numpy as np

DISCOUNT = 0.95


class Bandit:
    """Discounted Beta-Bernoulli arms."""

    def __init__(self, arms: tuple[str, ...]) -> None:
        self.arms = arms
        self.wins = dict.fromkeys(arms, 0.0)
        self.losses = dict.fromkeys(arms, 0.0)

    def choose(self, rng: np.random.Generator) -> str:
        """The arm that proposes next."""
        draws = {arm: rng.beta(1.0 + self.wins[arm], 1.0 + self.losses[arm]) for arm in self.arms}
        return max(draws, key=draws.__getitem__)

    def update(self, arm: str, *, won: bool) -> None:
        """Counts the outcome of one proposal; unknown arms (baselines, earlier studies) change nothing."""
        if arm not in self.arms:
            return
        for known in self.arms:
            self.wins[known] *= DISCOUNT
            self.losses[known] *= DISCOUNT
        (self.wins if won else self.losses)[arm] += 1.0
