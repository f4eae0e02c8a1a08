"""Agents on disk: complete at any moment, refused where they do not belong, never read damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from automc.agent import Agent, AgentSetting
from automc.agents.ddpg import DDPGAgent
from automc.episode import Walk, WalkSettings, run_episode, transitions
from automc.errors import ArtifactError
from automc.registry import AGENTS
from automc.searchers import checkpoint
from automc.searchers.rl import AgentSearch, AgentSearcher, make_agent
from automc.testing.contracts import same_state
from tests.searchers import table

WALK = Walk(table.problem("channels-bits", "macs<=60%,size<=30%", depth=8), WalkSettings(("keep", "weight_bits")))


def goes_on(agent: Agent, episodes: int, seed: int) -> list[list[float]]:
    """Further episodes of its own and of others, and every action before it is executed."""
    rng, done = np.random.default_rng(seed), list[list[float]]()

    def act(state: np.ndarray) -> np.ndarray:
        action = agent.act(state, rng, explore=len(done) % 3 > 0)
        done.append(action.tolist())
        return action

    for i in range(episodes):
        walked = run_episode(WALK, WALK.space.largest, act)
        agent.observe(transitions(WALK, walked, float(rng.normal())), rng, updates=(None, 1, 0)[i % 3])
    return done


@pytest.mark.parametrize("name", list(AGENTS))
@given(before=st.integers(0, 9), seed=st.integers(0, 100))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_saved_at_any_moment_an_agent_goes_on_bit_for_bit(name: str, before: int, seed: int, tmp_path: Path) -> None:
    search = AgentSearch(name, warmup=2, knobs={"episodes": 2} if name == "ppo" else {})
    first, second = make_agent(search, WALK, 0), make_agent(search, WALK, 1)
    goes_on(first, before, seed)
    path = tmp_path / "agent.safetensors"
    checkpoint.save(path, first, WALK)
    checkpoint.load(path, second, WALK)
    assert second.episode == before
    assert same_state(first.state_dict(), second.state_dict())
    assert goes_on(first, 4, seed + 1) == goes_on(second, 4, seed + 1)
    assert same_state(first.state_dict(), second.state_dict())


def saved(path: Path, walk: Walk = WALK) -> Path:
    agent = make_agent(AgentSearch(warmup=1, knobs={"hidden": 8}), walk, 0)
    goes_on(agent, 3, 0)
    checkpoint.save(path, agent, walk)
    return path


def fresh(walk: Walk = WALK, **knobs: object) -> DDPGAgent:
    return DDPGAgent(AgentSetting(walk.state_size, walk.action_size, len(walk.steps), knobs={"hidden": 8} | knobs))


@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans(), bit=st.integers(0, 7))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_a_sentence_and_the_agent_stays_as_it_was(
    place: float, cut: bool, bit: int, tmp_path: Path
) -> None:
    path = tmp_path / "agent.safetensors"
    data = bytearray((path if path.exists() else saved(path)).read_bytes())
    index = int(place * len(data))
    if cut:
        data = data[:index]
    else:
        data[index] ^= 1 << bit
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(bytes(data))
    agent = fresh()
    before = agent.online.clone()
    with pytest.raises(ArtifactError, match=r"must be as it was written; .*damaged.safetensors is damaged"):
        checkpoint.load(damaged, agent, WALK)
    assert torch.equal(agent.online, before) and agent.episode == 0


@pytest.mark.parametrize(
    "other",
    [
        Walk(table.problem("channels-bits", "macs<=60%,size<=30%", depth=14), WALK.settings),
        Walk(table.problem("criteria", depth=8), WALK.settings),
        Walk(WALK.problem, WalkSettings(("keep",))),
        Walk(WALK.problem, WalkSettings(("keep", "weight_bits"), clipped=False)),
    ],
)
def test_an_agent_of_another_space_is_refused(other: Walk, tmp_path: Path) -> None:
    path = saved(tmp_path / "agent.safetensors")
    with pytest.raises(ArtifactError, match="an agent checkpoint of another space"):
        checkpoint.load(path, fresh(other), other)


def test_another_agent_or_other_settings_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "agent.safetensors")
    for agent in (fresh(hidden=9), make_agent(AgentSearch("random"), WALK, 0)):
        with pytest.raises(ArtifactError, match="an agent checkpoint of another agent"):
            checkpoint.load(path, agent, WALK)


def test_the_agents_of_one_bridge_are_told_apart(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    one, other = (make_agent(AgentSearch(name), WALK, 0) for name in ("td3", "sac"))
    checkpoint.save(tmp_path / "agent", one, WALK)
    with pytest.raises(ArtifactError, match="an agent checkpoint of another agent"):
        checkpoint.load(tmp_path / "agent", other, WALK)


def test_another_budget_is_the_same_walk(tmp_path: Path) -> None:
    path = saved(tmp_path / "agent.safetensors")
    tighter = Walk(table.problem("channels-bits", "macs<=40%", depth=8), WALK.settings)
    checkpoint.load(path, fresh(), tighter)


def test_a_missing_and_a_foreign_file_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"must be readable; .*nowhere: name another"):
        checkpoint.load(tmp_path / "nowhere", fresh(), WALK)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ArtifactError, match="damaged or something else"):
        checkpoint.load(tmp_path / "foreign", fresh(), WALK)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "agent.safetensors")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("automc.files.os.fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        saved(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_it_is_one_file_of_tensors_and_json(tmp_path: Path) -> None:
    path = saved(tmp_path / "agent.safetensors")
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["format"] == "automc agent 1"
    assert {"online", "target", "replay.rows"} < header.keys()


def test_a_searchers_agent_survives_the_disk(tmp_path: Path) -> None:
    """Transfer: a trained agent begins another search of the same space."""
    problem = table.problem(depth=8)
    trained = AgentSearcher(problem, 0, AgentSearch(warmup=3))
    table.search(trained, table.lookup(problem), 8)
    checkpoint.save(tmp_path / "agent.safetensors", trained.agent, trained.walk)
    again = AgentSearcher(problem, 1, AgentSearch(warmup=3))
    checkpoint.load(tmp_path / "agent.safetensors", again.agent, again.walk)
    state = np.full(again.walk.state_size, 0.4)
    rngs = np.random.default_rng(0), np.random.default_rng(0)
    assert np.array_equal(trained.agent.act(state, rngs[0]), again.agent.act(state, rngs[1]))
    assert len(table.search(again, table.lookup(problem), 3)) == 3


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_a_warm_up_goes_with_the_agent(name: str, tmp_path: Path) -> None:
    if name == "td3":
        pytest.importorskip("stable_baselines3")
    first, second = (make_agent(AgentSearch(name, warmup=n), WALK, 0) for n in (2, 50))
    goes_on(first, 4, 0)
    checkpoint.save(tmp_path / "agent", first, WALK)
    checkpoint.load(tmp_path / "agent", second, WALK)
    state = np.full(WALK.state_size, 0.5)
    assert np.array_equal(first.act(state, np.random.default_rng(1)), second.act(state, np.random.default_rng(1)))
