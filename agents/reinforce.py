"""REINFORCE with a policy of its own for every step (Williams 1992; Huang et al. 2018, section 3).

Huang et al. train one stochastic policy a layer by the policy gradient of its episodes' rewards. Theirs is a Bernoulli
for each filter, whose share kept is then about binomial. Here criteria choose the filters and the policy only chooses
the share, so it is a distribution over [0, 1]: a Beta with learnt mode and concentration. A binomial's spread is fixed
by the number of filters (6 % at 64 of them), so it cannot learn how much to explore, and it has no meaning for bits.

    alpha = 1 + c m,  beta = 1 + c (1 - m),  m = sigmoid(mode),  c = exp(concentration)

is uniform at c = 0 and has one mode, m, which is the action without exploration. The gradient of log p(executed action)
is weighted by (reward - baseline) / spread, both moving averages over all episodes told; only the agent's own episodes
have a gradient. Deviations: a moving average instead of Huang's batch of episodes from one policy; the step alone
selects the policy, the rest of the state is not looked at; the log-probability is that of the executed action, after
the budget's clip, not of the sampled one, which makes the gradient a biased one where they differ; executed actions at
0 and 1, where the density may vanish, count as 0.02 and 0.98; a small entropy bonus keeps the concentration from
running away.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automc.agent import AgentSetting, FloatArray, Transition, check_episode

EDGE = 0.02


@dataclass(frozen=True, slots=True)
class ReinforceSettings:
    """Every knob."""

    rate: float = 0.1
    """Adam's, for modes (before the sigmoid) and concentrations (before the exponential)."""
    concentration: float = 10.0
    """At the start."""
    memory: float = 0.9
    """Weight of the old value in the moving averages of the reward and of its square."""
    entropy: float = 1e-3
    """Weight of the policies' entropy."""
    largest: float = 4.0
    """Advantages, in spreads, are cut there."""


class ReinforceAgent:
    """A table of Beta distributions, one a step and action entry."""

    def __init__(self, setting: AgentSetting) -> None:
        s = self.settings = setting.read(ReinforceSettings)
        shape = setting.steps, setting.action_size
        self.mode = torch.zeros(shape, requires_grad=True)
        self.concentration = torch.full(shape, float(np.log(s.concentration)), requires_grad=True)
        self.optimizer = torch.optim.Adam([self.mode, self.concentration], s.rate)
        self.baseline: float | None = None
        """Moving average of rewards."""
        self.spread = 0.0
        """Moving average of squared differences from the baseline."""
        self._episodes = 0
        self._table = self._tabulated()

    @property
    def episode(self) -> int:
        """Episodes observed so far."""
        return self._episodes

    def act(self, state: FloatArray, rng: np.random.Generator, *, explore: bool = True) -> FloatArray:
        """A draw (A,) from the step's policy, or its mode."""
        row = self._row(state)
        alpha, beta, mode = self._table
        drawn: FloatArray = rng.beta(alpha[row], beta[row])
        return drawn if explore else mode[row].copy()

    def observe(self, episode: Sequence[Transition], rng: np.random.Generator, *, updates: int | None = None) -> None:
        """Moves the baseline; takes one step of policy gradient for an episode of the agent's own."""
        check_episode(episode)
        reward = episode[-1].reward
        before = reward if self.baseline is None else self.baseline
        advantage = self._advantage(reward - before)
        self.baseline = before + (1.0 - self.settings.memory) * (reward - before)
        self._episodes += 1
        if updates != 0:
            self._step(episode, advantage)

    def state_dict(self) -> dict[str, Any]:
        """Policies, optimizer, moving averages, count."""
        return {
            "mode": self.mode.detach().clone(),
            "concentration": self.concentration.detach().clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "baseline": self.baseline,
            "spread": self.spread,
            "episodes": self._episodes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        with torch.no_grad():
            self.mode.copy_(state["mode"])
            self.concentration.copy_(state["concentration"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.baseline, self.spread, self._episodes = state["baseline"], state["spread"], int(state["episodes"])
        self._table = self._tabulated()

    def _advantage(self, difference: float) -> float:
        """The difference from the baseline in spreads; 0 as long as there is none."""
        s = self.settings
        self.spread = s.memory * self.spread + (1.0 - s.memory) * difference**2
        # The first episode is its own baseline; the average over n more began at 0 and has weights that sum to this.
        weights = 1.0 - s.memory ** max(self._episodes, 1)
        unit = (self.spread / weights) ** 0.5
        return min(max(difference / unit, -s.largest), s.largest) if unit > 0 else 0.0

    def _step(self, episode: Sequence[Transition], advantage: float) -> None:
        rows = torch.tensor([self._row(t.state) for t in episode])
        actions = torch.tensor(np.array([t.action for t in episode]), dtype=torch.float32).clamp(EDGE, 1.0 - EDGE)
        policy = torch.distributions.Beta(*self._shapes(rows), validate_args=False)
        likelihood: Tensor = policy.log_prob(actions).sum()  # type: ignore[no-untyped-call]
        entropy: Tensor = policy.entropy().sum()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad()
        (-advantage * likelihood - self.settings.entropy * entropy).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._table = self._tabulated()

    @torch.no_grad()
    def _tabulated(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """alpha, beta and mode of every step's policies (T, A), to act from without a call of torch."""
        alpha, beta = self._shapes(torch.arange(len(self.mode)))
        return alpha.double().numpy(), beta.double().numpy(), self.mode.sigmoid().double().numpy()

    def _shapes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta of some steps' policies."""
        mode, concentration = self.mode[rows].sigmoid(), self.concentration[rows].exp()
        return 1.0 + concentration * mode, 1.0 + concentration * (1.0 - mode)

    def _row(self, state: FloatArray) -> int:
        """The step a state is of."""
        return round(float(state[0]) * (len(self.mode) - 1))
