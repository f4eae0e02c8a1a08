"""The Gymnasium environment: both check_env suites, and the search's own rules inside an episode."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from automc.env import ENV_ID, CompressionEnv
from automc.episode import WalkSettings, run_episode
from automc.errors import PolicyError
from tests.searchers import table

CASES = [("channels", "macs<=50%"), ("channels-bits", "macs<=60%,size<=25%")]
MODES = {
    "stepwise": WalkSettings(stepwise=True),
    "haq": WalkSettings(("weight_bits",), stepwise=True, clipped=False, others=False),
    "budgeted": WalkSettings(budgeted=True),
    "all": WalkSettings(stepwise=True, clipped=False, budgeted=True),
}


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


@pytest.mark.parametrize("mode", list(MODES))
def test_both_checkers_find_nothing_in_any_mode(mode: str) -> None:
    from gymnasium.utils.env_checker import check_env

    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(*CASES[1], walk=MODES[mode]), skip_render_check=True)
    checker.check_env(make(*CASES[1], walk=MODES[mode]), warn=False)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_the_table_in_the_docstring_counts_the_observation(mode: str | None) -> None:
    env = make(*CASES[1], walk=MODES[mode] if mode else None)
    rows = [line.split("|")[1].strip() for line in (CompressionEnv.__doc__ or "").splitlines() if "|" in line][2:]
    fixed = sum(len(r.split(",")) for r in rows if r[0].isdigit() and not r.startswith("10"))
    assert rows[fixed - 1 :] == ["10 ...", "10 + A ...", "10 + A + O", "last"]
    settings = env.walk.settings
    actions, others = env.walk.action_size, len(env.walk.others)
    assert env.observation_space.shape == (fixed + actions + others + settings.stepwise + settings.budgeted,)
    assert others == 0 or settings.others


def test_an_unclipped_episode_ends_repaired() -> None:
    env = make("codebooks", "size<=20%", walk=MODES["haq"])
    env.reset()
    for _ in env.walk.steps:
        *_, done, _, info = env.step(np.ones(1, dtype=np.float32))
    assert done and info["executed"][0] > 0.5
    point = env.walk.space.encode(info["policy"])
    assert env.walk.projector.feasible(point) and (point < env.walk.space.largest).any()


def test_each_episode_of_a_budgeted_environment_has_a_budget_of_its_own() -> None:
    env = make("channels", "macs<=50%", walk=MODES["budgeted"])
    low, high = env.walk.reach
    drawn = [env.reset(seed=7 if i == 0 else None)[1]["budget"] for i in range(20)]
    assert 0 <= min(drawn) < 0.3 and 0.7 < max(drawn) <= 1
    assert env.reset(seed=7)[1]["budget"] == drawn[0]
    observation, info = env.reset(options={"budget": 0.3})
    assert info["budget"] == pytest.approx((0.3 - low) / (high - low)) == pytest.approx(observation[-1], abs=1e-6)
    for _ in env.walk.steps:
        *_, info = env.step(np.ones(1, dtype=np.float32))
    assert 0.25 < env.walk.share(env.walk.space.encode(info["policy"])) <= 0.3 + 1e-12


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
