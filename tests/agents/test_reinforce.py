"""REINFORCE: its distribution, its gradient in closed form, and that only its own episodes have one."""

import numpy as np
import pytest
import torch
from scipy.special import digamma
from scipy.stats import beta as beta_distribution

from automc.agent import AgentSetting, Transition
from automc.agents.reinforce import EDGE, ReinforceAgent

STEPS = 3


def made(actions: int = 1, steps: int = STEPS, **knobs: object) -> ReinforceAgent:
    return ReinforceAgent(AgentSetting(4, actions, steps, knobs=knobs))


def episode(actions: np.ndarray, reward: float) -> list[Transition]:
    last = len(actions) - 1
    states = np.zeros((len(actions), 4))
    states[:, 0] = np.linspace(0, 1, len(actions))
    return [Transition(states[i], a, reward, states[min(i + 1, last)], i == last) for i, a in enumerate(actions)]


def shapes(agent: ReinforceAgent, row: int) -> tuple[float, float]:
    mode, c = float(agent.mode[row, 0].detach().sigmoid()), float(agent.concentration[row, 0].detach().exp())
    return 1 + c * mode, 1 + c * (1 - mode)


def test_it_draws_from_the_beta_it_says_and_exploits_its_mode() -> None:
    agent, rng = made(), np.random.default_rng(0)
    with torch.no_grad():
        agent.mode[1], agent.concentration[1] = -1.0, float(np.log(6.0))
    agent.load_state_dict(agent.state_dict())
    state = np.array([0.5, 0.9, 0.1, 0.2])  # the second of three steps
    drawn = np.array([agent.act(state, rng)[0] for _ in range(4000)])
    expected = beta_distribution(*shapes(agent, 1))
    assert drawn.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(expected.std(), abs=0.01)
    mode = agent.act(state, rng, explore=False)[0]
    assert mode == pytest.approx(1 / (1 + np.e))
    near = expected.pdf([mode - 0.01, mode, mode + 0.01])
    assert near[1] == near.max()


def test_the_gradient_is_the_advantage_times_the_score_function() -> None:
    agent = made(entropy=0.0)
    agent.observe(episode(np.full((STEPS, 1), 0.5), 1.0), np.random.default_rng(0), updates=0)
    before = [shapes(agent, row) for row in range(STEPS)]
    actions = np.array([[0.7], [0.2], [1.0]])
    agent.observe(episode(actions, 2.0), np.random.default_rng(0))
    advantage = 1.0  # the first difference is the whole spread
    assert agent.concentration.grad is not None
    for row, (alpha, beta) in enumerate(before):
        x = float(np.clip(actions[row, 0], EDGE, 1 - EDGE))
        mode, c = (alpha - 1) / (alpha + beta - 2), alpha + beta - 2
        of_alpha = np.log(x) - digamma(alpha) + digamma(alpha + beta)
        of_beta = np.log(1 - x) - digamma(beta) + digamma(alpha + beta)
        expected = c * (mode * of_alpha + (1 - mode) * of_beta)
        assert float(agent.concentration.grad[row, 0]) == pytest.approx(-advantage * expected, rel=1e-4)


def test_episodes_of_others_move_nothing_but_the_baseline() -> None:
    agent, rng = made(), np.random.default_rng(0)
    agent.observe(episode(rng.uniform(size=(STEPS, 1)), 0.5), rng)
    agent.observe(episode(rng.uniform(size=(STEPS, 1)), 0.9), rng)
    before = agent.state_dict()
    agent.observe(episode(rng.uniform(size=(STEPS, 1)), 0.1), rng, updates=0)
    after = agent.state_dict()
    assert before["baseline"] != after["baseline"] and after["episodes"] == 3
    for name in ("mode", "concentration"):
        assert torch.equal(before[name], after[name])
    assert repr(before["optimizer"]) == repr(after["optimizer"])


def test_the_baseline_is_a_moving_average_and_the_first_episode_teaches_nothing() -> None:
    agent, rng = made(memory=0.75, entropy=0.0), np.random.default_rng(0)
    agent.observe(episode(rng.uniform(size=(STEPS, 1)), 4.0), rng)
    assert agent.baseline == 4.0 and not agent.mode.any()
    agent.observe(episode(rng.uniform(size=(STEPS, 1)), 8.0), rng)
    assert agent.baseline == 5.0 and agent.mode.any()


def test_advantages_have_unit_spread_from_the_second_episode_on() -> None:
    drawn = np.zeros((200, 20))
    for row, seed in enumerate(range(len(drawn))):
        agent, rng = made(), np.random.default_rng(seed)
        for column in range(drawn.shape[1]):
            agent._episodes += 1
            drawn[row, column] = agent._advantage(float(rng.normal()))
    sizes = np.abs(drawn).mean(axis=0)
    assert sizes[0] == pytest.approx(1.0) and sizes.max() < 1.05 and sizes.min() > 0.6


def test_each_step_has_a_policy_of_its_own() -> None:
    """Two targets at two steps: a policy shared by both would end between them."""
    agent, rng = made(steps=2), np.random.default_rng(0)
    target = np.array([[0.2], [0.8]])
    states = np.array([[0.0, 0, 0, 0], [1.0, 0, 0, 0]])
    for _ in range(250):
        actions = np.array([agent.act(s, rng) for s in states])
        agent.observe(episode(actions, -float(np.square(actions - target).sum())), rng)
    found = np.array([agent.act(s, rng, explore=False) for s in states])
    assert np.abs(found - target).max() < 0.2


@pytest.mark.parametrize("reward", [1e-9, 1.0, 1e9])
def test_what_is_learnt_does_not_depend_on_the_rewards_unit(reward: float) -> None:
    def learnt(unit: float) -> np.ndarray:
        agent, rng = made(), np.random.default_rng(0)
        for _ in range(20):
            actions = rng.uniform(size=(STEPS, 1))
            agent.observe(episode(actions, unit * float(actions.sum())), rng)
        return agent.mode.detach().numpy()

    assert np.allclose(learnt(reward), learnt(1.0), atol=1e-4)


def test_executed_edges_leave_every_number_finite() -> None:
    agent, rng = made(2), np.random.default_rng(0)
    for i in range(30):
        agent.observe(episode(np.tile([0.0, 1.0], (STEPS, 1)), float(i % 3)), rng)
    assert torch.isfinite(agent.mode).all() and torch.isfinite(agent.concentration).all()
    assert np.isfinite(agent.act(np.zeros(4), rng)).all()
