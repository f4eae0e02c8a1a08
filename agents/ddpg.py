"""DDPG as AMC and HAQ use it (Lillicrap et al. 2016; He et al. 2018, section 3.2; Wang et al. 2019), in one file.

As published: two hidden layers of 300 units; the critic adds a layer of the state and a layer of the action before
its first ReLU; Adam 1e-4 for the actor, 1e-3 for the critic; soft target updates with tau 0.01; batches of 64;
discount 1; a replay buffer of 100 episodes; uniform actions in the warm-up, then truncated-normal noise around the
actor with deviation 0.5 * 0.95^k in the k-th episode after it, from k = 0 (the released code begins with k = 1, after
101 uniform episodes; the paper says 100, then 0.5); a moving average of batch-mean rewards (0.5) as baseline; the final
reward in every transition of its episode; one update a transition, after the episode.

Deviations: each transition says whether it ended its episode, so no target reaches into the next one (the released
buffer guesses it from its neighbours); the executed action is stored, not the proposed one; an episode is remembered
whole before its updates, and batches are drawn with replacement; first episodes may come from elsewhere
(demonstrations, other searchers) and count as warm-up. `steady`, which AMC has not: the actor's output layer is
normalised by its input's norm and a small penalty keeps its logits small, since plain actors with several action
entries saturate at 0 and 1 and stop learning. `imitation`, which AMC has not: remembered actions are copied where the
critic prefers them to the actor's own (Nair et al. 2018, section IV.B, their filter on Q); theirs copies demonstrations
alone, here whatever is remembered, the agent's own noise where it proved better included.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automc.agent import AgentSetting, FloatArray, Transition

from .exploration import Exploration
from .networks import Actor, Critic, initialise_, sizes
from .replay import Replay

PARTS = ("actor_optimizer", "critic_optimizer", "replay", "exploration")
"""Attributes that carry state of their own."""


@dataclass(frozen=True, slots=True)
class DDPGSettings:
    """Every knob; the defaults are AMC's, save `steady`."""

    hidden: int = 300
    """Units of each hidden layer."""
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    tau: float = 0.01
    """Share of the online network that enters the target network at each update."""
    batch: int = 64
    discount: float = 1.0
    warmup: int = 100
    """Episodes before the actor is asked."""
    deviation: float = 0.5
    """Exploration noise in the first episode after the warm-up."""
    decay: float = 0.95
    """Factor on the noise for each later episode."""
    baseline: float = 0.5
    """Weight of the old value in the moving-average reward baseline."""
    replay: int = 100
    """Episodes' worth of transitions remembered."""
    steady: bool = True
    """Whether the actor's logits are kept small; False is AMC's plain actor."""
    imitation: float = 0.0
    """Weight of the squared difference from remembered actions that the critic prefers, in the actor's loss."""


class DDPGAgent:
    """The agent: acts on one state at a time, learns from whole episodes."""

    def __init__(self, setting: AgentSetting) -> None:
        s = self.settings = setting.read(DDPGSettings)
        warmup = s.warmup if setting.warmup is None else setting.warmup
        size = setting.state_size, setting.action_size, s.hidden
        shapes = Actor.shapes(*size), Critic.shapes(*size)
        cut = sum(sizes(shapes[0]))
        self.online = torch.empty(cut + sum(sizes(shapes[1])))
        """Parameters of actor and critic, one vector."""
        generator = torch.Generator().manual_seed(setting.seed)
        initialise_(self.online[:cut], shapes[0], generator)
        initialise_(self.online[cut:], shapes[1], generator)
        self.target, slope = self.online.clone(), torch.zeros_like(self.online)

        def networks(flat: Tensor) -> tuple[Actor, Critic]:
            return Actor(flat[:cut], *size, steady=s.steady), Critic(flat[cut:], *size)

        self.actor, self.critic = networks(self.online)
        self.target_actor, self.target_critic = networks(self.target)
        self._actor_slope, self._critic_slope = networks(slope)
        self.actor_optimizer = _adam(self.online[:cut], slope[:cut], s.actor_rate)
        self.critic_optimizer = _adam(self.online[cut:], slope[cut:], s.critic_rate)
        self.replay = Replay(s.replay * setting.steps, setting.state_size, setting.action_size)
        self.exploration = Exploration(warmup, s.deviation, s.decay)
        self.reward_baseline: float | None = None

    @property
    def episode(self) -> int:
        """Episodes observed so far."""
        return self.exploration.episodes

    def act(self, state: FloatArray, rng: np.random.Generator, *, explore: bool = True) -> FloatArray:
        """The actor's action (A,) for a state (S,), with noise where asked; uniform in the warm-up."""
        if explore and self.exploration.warming_up:
            return rng.uniform(size=len(self.actor.b3))
        output = self.actor(torch.from_numpy(state.astype(np.float32))[None])[0]
        mean = output.numpy().astype(np.float64)
        return self.exploration.around(mean, rng) if explore else mean

    def observe(self, episode: Sequence[Transition], rng: np.random.Generator, *, updates: int | None = None) -> None:
        """Remembers an episode, its final reward in every transition, then updates, once a transition by default."""
        self.replay.add(episode)
        self.exploration.count(own=updates != 0)
        for _ in range(len(episode) if updates is None else updates):
            self._update(rng)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, optimizers, replay buffer, baseline, counts: tensors and JSON values only."""
        state: dict[str, Any] = {name: copy.deepcopy(getattr(self, name).state_dict()) for name in PARTS}
        return state | {"online": self.online.clone(), "target": self.target.clone(), "baseline": self.reward_baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for name in PARTS:
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))
        self.online.copy_(state["online"])
        self.target.copy_(state["target"])
        self.reward_baseline = state["baseline"]

    def _update(self, rng: np.random.Generator) -> None:
        s = self.settings
        state, action, reward, next_state, done = self.replay.sample(s.batch, rng)
        mean = float(reward.mean())
        old = mean if self.reward_baseline is None else self.reward_baseline
        self.reward_baseline = s.baseline * old + (1.0 - s.baseline) * mean
        future = self.target_critic(next_state, self.target_actor(next_state))
        target = reward - self.reward_baseline + s.discount * (1.0 - done) * future
        self.critic.gradient(self._critic_slope, state, action, target)
        self.critic_optimizer.step()
        shown = action if s.imitation > 0 else None
        self.actor.gradient(self._actor_slope, state, self.critic, shown, s.imitation)
        self.actor_optimizer.step()
        self.target.lerp_(self.online, s.tau)


def _adam(values: Tensor, slope: Tensor, rate: float) -> torch.optim.Adam:
    """Adam over a view; its gradient is written in place, so it is set once."""
    parameter = torch.nn.Parameter(values)
    parameter.grad = slope
    return torch.optim.Adam([parameter], rate, fused=True)
