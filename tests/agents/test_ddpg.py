"""Facts about the DDPG agent: AMC's published settings, what it remembers, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.agent import AgentSetting, Transition
from automc.agents.ddpg import DDPGAgent, DDPGSettings
from automc.agents.exploration import truncated_normal
from automc.agents.replay import Replay
from automc.errors import PolicyError, RegistryError

STATE = 4


def made(actions: int = 1, *, warmup: int | None = None, seed: int = 0, **knobs: object) -> DDPGAgent:
    return DDPGAgent(AgentSetting(STATE, actions, 5, seed, warmup, knobs))


def episode(rng: np.random.Generator, actions: np.ndarray, reward: float) -> list[Transition]:
    states = rng.uniform(size=(len(actions) + 1, STATE))
    last = len(actions) - 1
    return [
        Transition(states[i], a, reward if i == last else 0.0, states[i + 1], i == last) for i, a in enumerate(actions)
    ]


def test_defaults_are_those_amc_published() -> None:
    s = DDPGSettings()
    assert (s.hidden, s.actor_rate, s.critic_rate, s.tau, s.batch) == (300, 1e-4, 1e-3, 0.01, 64)
    assert (s.discount, s.deviation, s.decay, s.warmup, s.replay) == (1.0, 0.5, 0.95, 100, 100)
    agent = DDPGAgent(AgentSetting(11, 1, 15))
    assert [w.shape for w in (agent.actor.w1, agent.actor.w2, agent.actor.w3)] == [(300, 11), (300, 300), (1, 300)]
    assert agent.replay.capacity == 1500 and agent.exploration.warmup == 100
    assert agent.actor_optimizer.param_groups[0]["lr"] == 1e-4
    assert agent.critic_optimizer.param_groups[0]["lr"] == 1e-3


def test_noise_starts_after_the_warm_up_and_decays_with_every_episode() -> None:
    agent, rng = made(warmup=3), np.random.default_rng(0)
    seen = []
    for _ in range(7):
        seen.append(agent.exploration.deviation)
        agent.observe(episode(rng, rng.uniform(size=(3, 1)), 0.0), rng, updates=1)
    assert seen == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.5 * 0.95, 0.5 * 0.95**2, 0.5 * 0.95**3])


def test_episodes_of_others_end_the_warm_up_and_leave_the_noise_alone() -> None:
    agent, rng = made(warmup=3), np.random.default_rng(0)
    for _ in range(9):
        agent.observe(episode(rng, rng.uniform(size=(3, 1)), 0.0), rng, updates=0)
    assert agent.episode == 9 and not agent.exploration.warming_up
    assert agent.exploration.deviation == 0.5


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_no_number_that_is_not_finite_enters_the_replay(wrong: float) -> None:
    agent, rng = made(warmup=0), np.random.default_rng(0)
    agent.observe(episode(rng, rng.uniform(size=(3, 1)), 0.5), rng)
    before, baseline = agent.online.clone(), agent.reward_baseline
    good = episode(rng, rng.uniform(size=(3, 1)), 0.5)
    spoilt: tuple[list[Transition], ...] = (
        [*good[:2], replace(good[2], reward=wrong)],
        [replace(good[0], state=np.full(STATE, wrong)), *good[1:]],
        [*good[:2], replace(good[2], action=np.array([wrong]))],
        [],
    )
    for steps in spoilt:
        with pytest.raises(PolicyError, match="An episode must"):
            agent.observe(steps, rng)
    assert len(agent.replay) == 3 and agent.episode == 1
    assert torch.equal(agent.online, before) and agent.reward_baseline == baseline


def test_a_reward_that_single_precision_cannot_hold_is_refused() -> None:
    agent, rng = made(), np.random.default_rng(0)
    with pytest.raises(PolicyError, match="rewards at most"):
        agent.observe(episode(rng, rng.uniform(size=(3, 1)), 1e39), rng)
    assert len(agent.replay) == 0


def test_an_unknown_knob_is_refused_by_name() -> None:
    with pytest.raises(RegistryError, match="'actor_rat' is none"):
        made(actor_rat=1e-3)


def test_warm_up_actions_are_uniform() -> None:
    agent, rng = made(2, warmup=5), np.random.default_rng(0)
    drawn = np.array([agent.act(np.zeros(STATE), rng) for _ in range(2000)])
    assert drawn.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert drawn.std(axis=0) == pytest.approx([12**-0.5] * 2, abs=0.02)


@given(mean=st.floats(0, 1), deviation=st.floats(0, 2), seed=st.integers(0, 1000))
@settings(max_examples=200)
def test_exploration_stays_in_the_unit_interval(mean: float, deviation: float, seed: int) -> None:
    assert 0.0 <= truncated_normal(mean, deviation, np.random.default_rng(seed)) <= 1.0


def test_exploration_has_the_moments_of_a_truncated_normal() -> None:
    from scipy.stats import truncnorm

    rng = np.random.default_rng(0)
    for mean, deviation in ((0.5, 0.5), (0.1, 0.3), (0.97, 0.05), (0.0, 0.5)):
        expected = truncnorm(-mean / deviation, (1 - mean) / deviation, loc=mean, scale=deviation)
        drawn = np.array([truncated_normal(mean, deviation, rng) for _ in range(4000)])
        assert drawn.mean() == pytest.approx(expected.mean(), abs=0.02)
        assert drawn.std() == pytest.approx(expected.std(), abs=0.02)


def test_replay_holds_executed_actions_ends_and_the_final_reward_on_every_step() -> None:
    agent, rng = made(), np.random.default_rng(0)
    steps = episode(rng, np.array([[0.1], [0.2], [0.3]]), 0.7)
    agent.observe(steps, rng, updates=0)
    _, action, reward, following, done = agent.replay.sample(200, rng)
    assert set(np.round(action.flatten().tolist(), 6)) == {0.1, 0.2, 0.3}
    assert reward.unique().tolist() == pytest.approx([0.7])
    assert {(round(a, 6), d) for a, d in zip(action[:, 0].tolist(), done[:, 0].tolist(), strict=True)} == {
        (0.1, 0.0),
        (0.2, 0.0),
        (0.3, 1.0),
    }
    last = action[:, 0] > 0.25
    assert np.allclose(following[last], steps[-1].next_state)


def test_replay_overwrites_the_oldest() -> None:
    replay = Replay(5, 1, 1)
    for i in range(8):
        replay.add([Transition(np.array([i / 10]), np.array([0.0]), float(i), np.array([0.0]), False)])
    assert len(replay) == 5
    rewards = replay.sample(300, np.random.default_rng(0))[2]
    assert set(rewards.flatten().tolist()) == {3.0, 4.0, 5.0, 6.0, 7.0}


def test_one_update_a_transition_by_default_and_targets_follow_slowly() -> None:
    agent, rng = made(warmup=0), np.random.default_rng(0)
    before = agent.target.clone()
    agent.observe(episode(rng, rng.uniform(size=(4, 1)), 0.5), rng)
    state = agent.critic_optimizer.state_dict()["state"]
    assert {int(s["step"]) for s in state.values()} == {4}
    agent.observe(episode(rng, rng.uniform(size=(4, 1)), 0.5), rng, updates=1)
    parts = (
        (agent.actor.w1, agent.target_actor.w1),
        (agent.actor.b3, agent.target_actor.b3),
        (agent.critic.w2, agent.target_critic.w2),
    )
    for online, target in parts:
        start = before.as_strided(target.shape, target.stride(), target.storage_offset())
        assert 0 < (target - start).abs().max() < (online - start).abs().max()


def test_baseline_is_a_moving_average_of_batch_means() -> None:
    agent, rng = made(warmup=0), np.random.default_rng(0)
    agent.observe(episode(rng, rng.uniform(size=(2, 1)), 0.4), rng, updates=1)
    assert agent.reward_baseline == pytest.approx(0.4)
    agent.replay = Replay(100, STATE, 1)
    agent.observe(episode(rng, rng.uniform(size=(2, 1)), 0.8), rng, updates=1)
    assert agent.reward_baseline == pytest.approx(0.6)


def test_no_global_generator_is_used() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), str(np.random.get_state())
    rng = np.random.default_rng(0)
    agent = made(seed=3, warmup=0)
    agent.act(np.zeros(STATE), rng)
    agent.observe(episode(rng, rng.uniform(size=(4, 1)), 0.5), rng)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == str(np.random.get_state())


def test_same_seed_same_agent() -> None:
    def run(seed: int) -> np.ndarray:
        rng = np.random.default_rng(7)
        agent = made(seed=seed, warmup=1)
        for _ in range(4):
            agent.observe(episode(rng, rng.uniform(size=(5, 1)), float(rng.uniform())), rng)
        return agent.act(np.full(STATE, 0.5), rng, explore=False)

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_a_restored_agent_goes_on_as_the_first() -> None:
    rng = np.random.default_rng(0)
    first = made(warmup=1)
    episodes = [episode(rng, rng.uniform(size=(5, 1)), float(rng.uniform())) for _ in range(6)]
    for steps in episodes[:3]:
        first.observe(steps, np.random.default_rng(1))
    second = made(seed=9, warmup=1)
    second.load_state_dict(first.state_dict())
    for agent in (first, second):
        for steps in episodes[3:]:
            agent.observe(steps, np.random.default_rng(2))
    state = np.full(STATE, 0.3)
    assert np.array_equal(first.act(state, rng, explore=False), second.act(state, rng, explore=False))
    assert first.exploration == second.exploration and first.reward_baseline == second.reward_baseline


@pytest.mark.parametrize("actions", [1, 3])
def test_learns_a_target_that_depends_on_the_state_without_saturating(actions: int) -> None:
    """Reward: how near each action is to a function of the state; actors that saturate at 0 or 1 fail this."""
    rng = np.random.default_rng(0)
    agent = made(actions, warmup=20, actor_rate=1e-3)

    def target(state: np.ndarray) -> np.ndarray:
        return 0.3 + 0.4 * state[:actions]

    for _ in range(220):
        state = rng.uniform(size=STATE)
        action = agent.act(state, rng)
        reward = -float(np.square(action - target(state)).sum())
        agent.observe([Transition(state, action, reward, state, True)], rng, updates=4)
    states = rng.uniform(size=(100, STATE))
    found = np.array([agent.act(s, rng, explore=False) for s in states])
    wanted = np.array([target(s) for s in states])
    assert np.abs(found - wanted).mean() < 0.12
    assert ((found > 0.05) & (found < 0.95)).mean() > 0.9
