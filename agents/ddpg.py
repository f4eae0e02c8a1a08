"""DDPG as AMC uses it (Lillicrap et al. 2016; He et al. 2018, section 3.2 and its released code), in one file.

Kept from AMC: two hidden layers of 300 units; the critic adds a layer of the state and a layer of the action before
its first ReLU; Adam 1e-4 for the actor, 1e-3 for the critic; soft target updates with tau 0.01; batches of 64;
discount 1; uniform actions in the warm-up, then truncated-normal noise around the actor with deviation 0.5 * 0.95^k
in the k-th episode after it; a moving average of batch-mean rewards (0.5) as baseline; the final reward in every
transition of its episode; one update a transition, after the episode.

Deviations: each transition says whether it ended its episode, so no target reaches into the next one (the released
buffer guesses it from its neighbours); the executed action is stored; the actor's output layer is normalised by its
input's norm and a small penalty keeps its logits small, since plain actors with several action entries saturate at 0
and 1 and stop learning; first episodes may come from elsewhere (demonstrations, other searchers) and count as
warm-up.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from automc.agent import FloatArray, Transition

from .replay import Replay

PARTS = ("actor", "critic", "target_actor", "target_critic", "actor_optimizer", "critic_optimizer", "replay")
"""Attributes that carry state of their own."""
_Network = TypeVar("_Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class DDPGSettings:
    """Every knob; the defaults are AMC's."""

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
    capacity: int = 6000
    """Transitions remembered."""
    logit_penalty: float = 1e-3
    """Weight of the squared logits in the actor's loss."""


class Actor(nn.Module):
    """From states (B, S) to actions (B, A) in (0, 1)."""

    def __init__(self, state_size: int, action_size: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = _linear(state_size, hidden), _linear(hidden, hidden)
        self.last = _linear(hidden, action_size)

    def logits(self, state: Tensor) -> Tensor:
        """Before the sigmoid (B, A)."""
        features = self.second(self.first(state).relu()).relu()
        scaled = features / features.norm(dim=1, keepdim=True).clamp_min(1.0)
        return self.last(scaled)  # type: ignore[no-any-return]

    def forward(self, state: Tensor) -> Tensor:
        """Actions (B, A)."""
        return self.logits(state).sigmoid()


class Critic(nn.Module):
    """From states (B, S) and actions (B, A) to values (B, 1)."""

    def __init__(self, state_size: int, action_size: int, hidden: int) -> None:
        super().__init__()
        self.of_state, self.of_action = _linear(state_size, hidden), _linear(action_size, hidden)
        self.second, self.last = _linear(hidden, hidden), _linear(hidden, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """Values (B, 1)."""
        return self.last(self.second((self.of_state(state) + self.of_action(action)).relu()).relu())  # type: ignore[no-any-return]


class DDPGAgent:
    """The agent: acts on one state at a time, learns from whole episodes."""

    def __init__(
        self,
        state_size: int,
        action_size: int,
        *,
        seed: int = 0,
        warmup: int | None = None,
        settings: DDPGSettings | None = None,
    ) -> None:
        s = settings or DDPGSettings()
        self.settings = s if warmup is None else replace(s, warmup=warmup)
        generator = torch.Generator().manual_seed(seed)
        self.actor = _initialised(Actor(state_size, action_size, s.hidden), generator)
        self.critic = _initialised(Critic(state_size, action_size, s.hidden), generator)
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._online: list[Tensor] = [*self.actor.parameters(), *self.critic.parameters()]
        self._targets: list[Tensor] = [*self.target_actor.parameters(), *self.target_critic.parameters()]
        for parameter in self._targets:
            parameter.requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), s.actor_rate, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), s.critic_rate, fused=True)
        self.replay = Replay(s.capacity, state_size, action_size)
        self.reward_baseline: float | None = None
        self._episodes = 0

    @property
    def episode(self) -> int:
        """Episodes observed so far."""
        return self._episodes

    @property
    def deviation(self) -> float:
        """Exploration noise of the next episode."""
        s = self.settings
        return float(s.deviation * s.decay ** max(self._episodes - s.warmup, 0))

    @torch.no_grad()
    def act(self, state: FloatArray, rng: np.random.Generator, *, explore: bool = True) -> FloatArray:
        """The actor's action (A,) for a state (S,), with noise where asked; uniform in the warm-up."""
        if explore and self._episodes < self.settings.warmup:
            return rng.uniform(size=self.actor.last.out_features)
        output: Tensor = self.actor(torch.from_numpy(state.astype(np.float32))[None])[0]
        mean = output.numpy().astype(np.float64)
        if not explore:
            return mean
        return np.array([truncated_normal(m, self.deviation, rng) for m in mean.tolist()])

    def observe(self, episode: Sequence[Transition], rng: np.random.Generator, *, updates: int | None = None) -> None:
        """Remembers an episode, its final reward in every transition, then updates, once a transition by default."""
        final = episode[-1].reward
        for t in episode:
            self.replay.add(Transition(t.state, t.action, final, t.next_state, t.done))
        self._episodes += 1
        for _ in range(len(episode) if updates is None else updates):
            self._update(rng)

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, optimizers, replay buffer, baseline, episode count: tensors and JSON values only."""
        state: dict[str, Any] = {name: copy.deepcopy(getattr(self, name).state_dict()) for name in PARTS}
        return state | {"baseline": self.reward_baseline, "episodes": self._episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for name in PARTS:
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))
        self.reward_baseline, self._episodes = state["baseline"], int(state["episodes"])

    def _update(self, rng: np.random.Generator) -> None:
        s = self.settings
        state, action, reward, next_state, done = self.replay.sample(s.batch, rng)
        mean = float(reward.mean())
        old = mean if self.reward_baseline is None else self.reward_baseline
        self.reward_baseline = s.baseline * old + (1.0 - s.baseline) * mean
        with torch.no_grad():
            future = self.target_critic(next_state, self.target_actor(next_state))
            target = reward - self.reward_baseline + s.discount * (1.0 - done) * future
        loss = nn.functional.mse_loss(self.critic(state, action), target)
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.critic_optimizer.step()

        logits = self.actor.logits(state)
        value = self.critic(state, logits.sigmoid()).mean()
        gradients = torch.autograd.grad(s.logit_penalty * logits.square().mean() - value, list(self.actor.parameters()))
        for parameter, gradient in zip(self.actor.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.actor_optimizer.step()
        torch._foreach_lerp_(self._targets, [p.detach() for p in self._online], s.tau)


def truncated_normal(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """A draw from N(mean, deviation^2) cut to [0, 1], by the inverse of its distribution; `mean` lies in [0, 1]."""
    if deviation < 1e-6:
        return mean
    normal = NormalDist(mean, deviation)
    share = float(rng.uniform(normal.cdf(0.0), normal.cdf(1.0)))
    return min(max(normal.inv_cdf(min(max(share, 1e-12), 1.0 - 1e-12)), 0.0), 1.0)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer without values yet: the usual constructor would draw them from the global generator."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-any-return, no-untyped-call]


def _initialised(module: _Network, generator: torch.Generator) -> _Network:
    """Uniform in +-1 / sqrt(fan in), PyTorch's own default, from a generator of our own; small last layers."""
    with torch.no_grad():
        for name, layer in module.named_children():
            assert isinstance(layer, nn.Linear)
            bound = 3e-3 if name == "last" else layer.in_features**-0.5
            for parameter in (layer.weight, layer.bias):
                parameter.uniform_(-bound, bound, generator=generator)
    return module
