"""The Gymnasium environment: both check_env suites, and the search's own rules inside an episode."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from automc.env import ENV_ID, CompressionEnv
from automc.episode import run_episode
from automc.errors import PolicyError
from tests.searchers import table

CASES = [("channels", "macs<=50%"), ("channels-bits", "macs<=60%,size<=25%")]


def make(space: str = "channels", budget: str = "macs<=50%", **options: object) -> CompressionEnv:
    problem = table.problem(space, budget)
    return CompressionEnv(problem, table.lookup(problem), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_gymnasiums_checker_finds_nothing(case: tuple[str, str]) -> None:
    from gymnasium.utils.env_checker import check_env

    problem = table.problem(*case)
    env = gym.make(f"automc.env:{ENV_ID}", problem=problem, evaluate=table.lookup(problem))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("case", CASES)
def test_stable_baselines3s_checker_finds_nothing(case: tuple[str, str]) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(make(*case), warn=False)


def test_an_episode_is_one_step_a_layer_and_pays_at_the_end() -> None:
    env = make()
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    rewards: list[float] = []
    done, info = False, dict[str, Any]()
    while not done:
        _, reward, done, truncated, info = env.step(rng.uniform(size=1).astype(np.float32))
        rewards.append(reward)
        assert not truncated
    assert len(rewards) == len(env.walk.steps)
    assert all(r == 0 for r in rewards[:-1])
    score = info["evaluation"].score
    assert rewards[-1] == pytest.approx((score - table.DENSE) / table.DENSE)
    with pytest.raises(PolicyError, match="call reset"):
        env.step(np.ones(1, dtype=np.float32))


def test_environment_and_searchers_walk_the_same_way() -> None:
    """Features, clip and policy of an episode in the environment are those of `run_episode`."""
    env = make("channels-bits", "macs<=60%,size<=25%")
    rng = np.random.default_rng(0)
    actions = [rng.uniform(size=env.walk.action_size).astype(np.float32) for _ in env.walk.steps]
    seen = [env.reset()[0]]
    for action in actions:
        observation, *_, info = env.step(action)
        seen.append(observation)
    states, queue = [], iter(actions)

    def act(state: np.ndarray) -> np.ndarray:
        states.append(state)
        return next(queue).astype(np.float64)

    levels = run_episode(env.walk, env.walk.space.largest, act)
    assert np.allclose(seen[:-1], states, atol=1e-6)
    assert env.walk.space.decode(levels) == info["policy"]
    assert env.walk.projector.feasible(levels)


def test_reset_starts_anew() -> None:
    env = make()
    first, _ = env.reset()
    for _ in range(3):
        env.step(np.zeros(1, dtype=np.float32))
    again, _ = env.reset()
    assert np.array_equal(first, again)


def test_a_reward_may_be_named_or_given() -> None:
    def finish(env: CompressionEnv) -> float:
        env.reset()
        reward = 0.0
        for _ in env.walk.steps:
            reward = env.step(np.ones(1, dtype=np.float32))[1]
        return reward

    assert finish(make(reward=lambda evaluation, dense: 7.0)) == 7.0
    assert finish(make(reward="accuracy-cost")) < finish(make(reward="accuracy")) < 0
    failed = finish(make(reward=lambda evaluation, dense: float("nan")))
    assert failed == -1.0


@pytest.mark.slow
def test_stable_baselines3_trains_on_it() -> None:
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    env = make()
    agent = stable_baselines3.PPO("MlpPolicy", env, n_steps=24, batch_size=24, seed=0, device="cpu")
    agent.learn(96)
    observation, _ = env.reset()
    assert env.action_space.contains(agent.predict(observation)[0])
