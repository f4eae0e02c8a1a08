"""TD3, SAC and PPO from Stable-Baselines3, as agents of this library's walk.

Fujimoto et al. 2018, Haarnoja et al. 2018, Schulman et al. 2017, each with Stable-Baselines3's own networks, losses and
defaults where the settings below do not name another value. The bridge replaces its loops: an agent here is told whole
episodes, by whoever, and acts for someone else's environment.

* Discount 1. TD3 and SAC find an equal part of the final reward in every transition of its episode: with all of it at
  the end they do worse than chance on 27 steps, and AMC's copies of the whole differ by a factor. PPO finds it at the
  end, where the environment pays it. It is standardised, over the replay buffer or the last hundred episodes (PPO).
* Actions are executed ones, mapped to [-1, 1]. TD3 explores as `exploration.py` says; SAC and PPO by their own
  distributions, SAC after a uniform warm-up.
* PPO learns from its own episodes alone, four at a time, and has no warm-up; the log-probabilities are those of the
  executed actions. Others' episodes only enter the reward's scale.
* Stable-Baselines3 draws from the global generators of random, numpy and torch. It is given them seeded from the
  generator at hand, and they are put back.
"""

import contextlib
import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from automc.agent import Agent, AgentSetting, FloatArray, Transition, check_episode
from automc.errors import RegistryError

from .exploration import Exploration

BUFFER = ("observations", "actions", "next_observations", "dones")
"""Arrays of the replay buffer that carry state."""
LAST = 100
"""Episodes over which PPO's rewards are standardised."""


@dataclass(frozen=True, slots=True)
class OffPolicySettings:
    """Knobs of TD3 and SAC."""

    algorithm: Literal["TD3", "SAC"]
    hidden: int = 256
    """Units of both hidden layers."""
    rate: float = 1e-3
    """Adam's, for every network."""
    batch: int = 64
    replay: int = 100
    """Episodes' worth of transitions remembered."""
    tau: float = 0.01
    warmup: int = 100
    deviation: float = 0.5
    """TD3's exploration noise in the first episode after the warm-up."""
    decay: float = 0.95
    entropy: float = 0.1
    """SAC's entropy coefficient at the start; it is learnt."""


@dataclass(frozen=True, slots=True)
class PPOSettings:
    """Knobs of PPO."""

    rate: float = 3e-3
    episodes: int = 4
    """Own episodes a rollout."""
    epochs: int = 10
    deviation: float = 0.25
    """Of the Gaussian over [-1, 1] at the start; it is learnt."""


class OffPolicyAgent:
    """TD3 or SAC: learns from every episode remembered."""

    def __init__(self, setting: AgentSetting) -> None:
        s = self.settings = setting.read(OffPolicySettings)
        special: dict[str, Any] = {"ent_coef": f"auto_{s.entropy}"} if s.algorithm == "SAC" else {}
        self.model = _model(
            setting,
            s.algorithm,
            learning_rate=s.rate,
            batch_size=s.batch,
            buffer_size=s.replay * setting.steps,
            tau=s.tau,
            gamma=1.0,
            policy_kwargs={"net_arch": [s.hidden, s.hidden]},
            **special,
        )
        self.exploration = Exploration(s.warmup if setting.warmup is None else setting.warmup, s.deviation, s.decay)
        self._stochastic, self._action_size = s.algorithm == "SAC", setting.action_size
        self._rewards = np.zeros(s.replay * setting.steps)
        """The final reward of each remembered transition's episode, as told."""

    @property
    def episode(self) -> int:
        """Episodes observed so far."""
        return self.exploration.episodes

    def act(self, state: FloatArray, rng: np.random.Generator, *, explore: bool = True) -> FloatArray:
        """The actor's action (A,), with noise or drawn where asked; uniform in the warm-up."""
        if explore and self.exploration.warming_up:
            return rng.uniform(size=self._action_size)
        action = _predicted(self.model, state, rng, draw=explore and self._stochastic)
        return self.exploration.around(action, rng) if explore and not self._stochastic else action

    def observe(self, episode: Sequence[Transition], rng: np.random.Generator, *, updates: int | None = None) -> None:
        """Remembers an episode, then updates, once a transition by default."""
        check_episode(episode)
        buffer = self.model.replay_buffer
        for t in episode:
            self._rewards[buffer.pos] = episode[-1].reward
            buffer.add(*(_row(x) for x in (t.state, t.next_state, 2.0 * t.action - 1.0, [0.0], [t.done])), [{}])
        self.exploration.count(own=updates != 0)
        steps = len(episode) if updates is None else updates
        if steps:
            rewards = self._rewards[: buffer.size()]
            buffer.rewards[: buffer.size(), 0] = _standardised(rewards, rewards) / len(episode)
            with isolated(rng):
                self.model.train(gradient_steps=steps, batch_size=self.settings.batch)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers, replay buffer, counts."""
        buffer, size = self.model.replay_buffer, self.model.replay_buffer.size()
        arrays = {name: _tensor(getattr(buffer, name)[:size]) for name in BUFFER}
        replay = arrays | {"told": _tensor(self._rewards[:size]), "position": buffer.pos, "full": buffer.full}
        return {"model": _saved(self.model), "replay": replay, "exploration": self.exploration.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        _restore(self.model, state["model"])
        buffer, replay = self.model.replay_buffer, state["replay"]
        size = len(replay["told"])
        for name in BUFFER:
            getattr(buffer, name)[:size] = replay[name].numpy()
        self._rewards[:size] = replay["told"].numpy()
        buffer.pos, buffer.full = int(replay["position"]), bool(replay["full"])
        self.exploration.load_state_dict(state["exploration"])


class PPOAgent:
    """PPO: learns from its own episodes alone."""

    def __init__(self, setting: AgentSetting) -> None:
        s = self.settings = setting.read(PPOSettings)
        steps = max(s.episodes * setting.steps, 2)
        self.model = _model(
            setting,
            "PPO",
            learning_rate=s.rate,
            n_steps=steps,
            batch_size=steps,
            n_epochs=s.epochs,
            gamma=1.0,
            policy_kwargs={"log_std_init": math.log(s.deviation)},
        )
        self._episodes = 0
        self._told: list[float] = []
        """Rewards of the last episodes, whoever's."""
        self._rollout: list[tuple[FloatArray, FloatArray, float]] = []
        """States, actions in [-1, 1] and reward of the own episodes not yet learnt from."""

    @property
    def episode(self) -> int:
        """Episodes observed so far."""
        return self._episodes

    def act(self, state: FloatArray, rng: np.random.Generator, *, explore: bool = True) -> FloatArray:
        """A draw (A,) from the policy, or its mean."""
        return _predicted(self.model, state, rng, draw=explore)

    def observe(self, episode: Sequence[Transition], rng: np.random.Generator, *, updates: int | None = None) -> None:
        """Keeps an episode of its own; learns when the rollout is complete."""
        check_episode(episode)
        reward = episode[-1].reward
        self._episodes += 1
        self._told = [*self._told, reward][-LAST:]
        if updates == 0:
            return
        states, actions = np.array([t.state for t in episode]), np.array([t.action for t in episode])
        self._rollout.append((states, 2.0 * actions - 1.0, reward))
        if len(self._rollout) == self.settings.episodes:
            with isolated(rng):
                self._learn()
            self._rollout.clear()

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, unfinished rollout, counts."""
        rollout = [{"states": _tensor(s), "actions": _tensor(a), "reward": r} for s, a, r in self._rollout]
        return {"model": _saved(self.model), "rollout": rollout, "told": list(self._told), "episodes": self._episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        _restore(self.model, state["model"])
        self._rollout = [(r["states"].numpy(), r["actions"].numpy(), r["reward"]) for r in state["rollout"]]
        self._told, self._episodes = list(state["told"]), int(state["episodes"])

    def _learn(self) -> None:
        buffer, policy = self.model.rollout_buffer, self.model.policy
        buffer.buffer_size = sum(len(states) for states, _, _ in self._rollout)
        buffer.reset()
        for states, actions, reward in self._rollout:
            with torch.no_grad():
                of_states, of_actions = (torch.from_numpy(x.astype(np.float32)) for x in (states, actions))
                values, likelihoods, _ = policy.evaluate_actions(of_states, of_actions)
            paid = np.zeros(len(states))
            paid[-1] = _standardised(np.array([reward]), np.array(self._told))[0]
            for i in range(len(states)):
                start = np.array([i == 0])
                buffer.add(_row(states[i]), _row(actions[i]), paid[i], start, values[i], likelihoods[i])
        buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
        self.model.train()


def td3(setting: AgentSetting) -> Agent:
    """Twin delayed DDPG, registered as `td3`."""
    return OffPolicyAgent(replace(setting, knobs={**setting.knobs, "algorithm": "TD3"}))


def sac(setting: AgentSetting) -> Agent:
    """Soft actor-critic, registered as `sac`."""
    return OffPolicyAgent(replace(setting, knobs={**setting.knobs, "algorithm": "SAC"}))


def ppo(setting: AgentSetting) -> Agent:
    """Proximal policy optimisation, registered as `ppo`."""
    return PPOAgent(setting)


@contextlib.contextmanager
def isolated(rng: np.random.Generator) -> Iterator[None]:
    """Global generators seeded from `rng` inside, and as they were behind."""
    seed = int(rng.integers(2**31))
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _model(setting: AgentSetting, algorithm: str, **options: Any) -> Any:
    """An algorithm of Stable-Baselines3 that knows the spaces and nothing of an environment."""
    import gymnasium as gym

    spaces: gym.Env[Any, Any] = gym.Env()
    spaces.observation_space = gym.spaces.Box(0.0, 1.0, (setting.state_size,), np.float32)
    spaces.action_space = gym.spaces.Box(-1.0, 1.0, (setting.action_size,), np.float32)
    with isolated(np.random.default_rng(setting.seed)):
        try:
            import stable_baselines3  # on its first import something draws from `random`
            from stable_baselines3.common.logger import Logger
        except ImportError as error:
            raise RegistryError(
                f"{algorithm} must have Stable-Baselines3; it is not installed: pip install automc[sb3]."
            ) from error
        model = getattr(stable_baselines3, algorithm)("MlpPolicy", spaces, device="cpu", **options)
    model.set_logger(Logger(None, []))
    return model


def _predicted(model: Any, state: FloatArray, rng: np.random.Generator, *, draw: bool) -> FloatArray:
    """What a model does (A,), in [0, 1]."""
    with isolated(rng):
        action, _ = model.predict(state.astype(np.float32), deterministic=not draw)
    found: FloatArray = (0.5 * (action.astype(np.float64) + 1.0)).clip(0.0, 1.0)
    return found


def _standardised(rewards: FloatArray, among: FloatArray) -> FloatArray:
    """Rewards minus the mean of some, in their standard deviations; 0 where these do not differ."""
    spread = float(among.std())
    return (rewards - among.mean()) / spread if spread > 1e-12 else np.zeros(len(rewards))


def _saved(model: Any) -> dict[str, Any]:
    """Networks, optimizers, single variables and the count of updates."""
    variables = {name: getattr(model, name).detach().clone() for name in model._get_torch_save_params()[1]}
    parts = copy.deepcopy(model.get_parameters())
    return {"parts": parts, "variables": variables, "updates": model._n_updates}


def _restore(model: Any, state: dict[str, Any]) -> None:
    model.set_parameters(copy.deepcopy(state["parts"]), exact_match=True, device="cpu")
    with torch.no_grad():
        for name, value in state["variables"].items():
            getattr(model, name).copy_(value)
    model._n_updates = int(state["updates"])


def _row(values: Any) -> Any:
    """Values as a batch of one environment."""
    return np.asarray(values, dtype=np.float32)[None]


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
