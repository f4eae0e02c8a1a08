"""The bridge to Stable-Baselines3: what its buffers hold, whose episodes teach, and that its globals stay outside."""

import random
import sys

import numpy as np
import pytest
import torch

from automc.agent import Agent, AgentSetting, Transition
from automc.errors import RegistryError
from automc.registry import AGENTS

pytest.importorskip("stable_baselines3")
from automc.agents.sb3 import OffPolicyAgent, PPOAgent, isolated, ppo, sac, td3

SETTING = AgentSetting(state_size=4, action_size=2, steps=3, warmup=2)
ALL = {"td3": td3, "sac": sac, "ppo": ppo}


def episode(rng: np.random.Generator, reward: float, actions: np.ndarray | None = None) -> list[Transition]:
    actions = rng.uniform(size=(3, 2)) if actions is None else actions
    states = rng.uniform(size=(4, 4))
    return [Transition(states[i], actions[i], reward, states[i + 1], i == 2) for i in range(3)]


def weights(agent: Agent) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.model.policy.parameters()])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_the_replay_holds_executed_actions_ends_and_standardised_parts_of_the_reward(name: str) -> None:
    agent, rng = ALL[name](SETTING), np.random.default_rng(0)
    assert isinstance(agent, OffPolicyAgent)
    rewards = [0.2, 0.5, 0.8]
    told = [episode(rng, r) for r in rewards]
    for steps in told:
        agent.observe(steps, rng, updates=0)
    agent.observe(episode(rng, 0.5), rng, updates=1)
    buffer = agent.model.replay_buffer
    assert buffer.size() == 12 and buffer.buffer_size == 300
    assert np.allclose(buffer.actions[:3, 0], [2 * t.action - 1 for t in told[0]])
    assert np.allclose(buffer.next_observations[2, 0], told[0][2].next_state)
    assert buffer.dones[:12, 0].tolist() == [0, 0, 1] * 4
    spread = np.std([*rewards, 0.5])
    expected = np.repeat((np.array([*rewards, 0.5]) - 0.5) / spread / 3, 3)
    assert np.allclose(buffer.rewards[:12, 0], expected, atol=1e-6)
    assert agent.model.gamma == 1.0


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_one_update_a_transition_for_its_own_episodes_and_none_for_those_it_is_shown(name: str) -> None:
    agent, rng = ALL[name](SETTING), np.random.default_rng(0)
    before = weights(agent)
    agent.observe(episode(rng, 0.5), rng, updates=0)
    assert torch.equal(weights(agent), before) and agent.model._n_updates == 0  # type: ignore[attr-defined]
    agent.observe(episode(rng, 0.7), rng)
    assert not torch.equal(weights(agent), before) and agent.model._n_updates == 3  # type: ignore[attr-defined]


def test_ppo_learns_from_four_episodes_of_its_own_and_from_no_others() -> None:
    agent, rng = ppo(SETTING), np.random.default_rng(0)
    assert isinstance(agent, PPOAgent)
    before = weights(agent)
    for i in range(3):
        agent.observe(episode(rng, 0.1 * i), rng)
        agent.observe(episode(rng, 0.9), rng, updates=0)
    assert torch.equal(weights(agent), before) and agent.episode == 6
    last = episode(rng, 0.9)
    agent.observe(last, rng)
    assert not torch.equal(weights(agent), before)
    buffer = agent.model.rollout_buffer
    assert buffer.buffer_size == 12 and np.allclose(buffer.actions[-1], 2 * last[-1].action - 1)
    told = [0.0, 0.9, 0.1, 0.9, 0.2, 0.9, 0.9]
    ends = (np.array([0.0, 0.1, 0.2, 0.9]) - np.mean(told)) / np.std(told)
    paid = buffer.rewards.flatten()
    assert np.allclose(paid[2::3], ends, atol=1e-6) and not paid.reshape(4, 3)[:, :2].any()
    assert agent._rollout == []


@pytest.mark.parametrize("name", list(ALL))
def test_learns_which_of_two_actions_pays(name: str) -> None:
    """One step: the first entry should be high, the second low."""
    agent, rng = AGENTS.load(name)(AgentSetting(2, 2, 1, warmup=20)), np.random.default_rng(0)
    state = np.full(2, 0.5)
    for _ in range(120):
        action = agent.act(state, rng)
        steps = [Transition(state, action, float(action[0] - action[1]), state, True)]
        agent.observe(steps, rng, updates=None if name == "ppo" else 3)
    high, low = agent.act(state, rng, explore=False)
    assert high > 0.65 and low < 0.35


@pytest.mark.parametrize("name", list(ALL))
def test_global_generators_neither_matter_nor_move(name: str) -> None:
    def run(seed: int) -> tuple[list[list[float]], tuple[str, ...]]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = repr(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())
        agent, rng = AGENTS.load(name)(SETTING), np.random.default_rng(0)
        done = []
        for i in range(6):
            steps = episode(rng, 0.1 * i, np.array([agent.act(np.full(4, 0.3), rng) for _ in range(3)]))
            agent.observe(steps, rng)
            done += [t.action.tolist() for t in steps]
        after = repr(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())
        assert before == after
        return done, before

    first, second = run(1), run(2)
    assert first[1] != second[1] and first[0] == second[0]


def test_isolation_ends_with_an_exception_too() -> None:
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    with pytest.raises(ZeroDivisionError), isolated(np.random.default_rng(0)):
        np.random.uniform()
        torch.rand(1)
        random.random()
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


@pytest.mark.parametrize("name", list(ALL))
def test_without_it_the_message_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(RegistryError, match=r"must have Stable-Baselines3; .*: pip install automc\[sb3\]\.$"):
        AGENTS.load(name)(SETTING)
