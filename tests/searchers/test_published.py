"""AMC and HAQ as published: warm-up, noise, what is remembered, what is owned, what a budget leaves over."""

from dataclasses import replace

import numpy as np
import pytest

from automc.agents.ddpg import DDPGAgent
from automc.errors import PolicyError
from automc.evaluation import Evaluation
from automc.registry import SEARCHERS
from automc.searchers.published import amc, amc_guaranteed, haq
from automc.searchers.rl import AgentSearcher
from automc.space import SearchSpace
from tests.searchers import table


def agent_of(searcher: AgentSearcher) -> DDPGAgent:
    assert isinstance(searcher.agent, DDPGAgent)
    return searcher.agent


def updates(searcher: AgentSearcher) -> int:
    state = agent_of(searcher).critic_optimizer.state_dict()["state"]
    return int(state[0]["step"]) if state else 0


def test_amc_fills_its_replay_for_a_hundred_episodes_then_learns_once_a_step_and_calms_down() -> None:
    problem = table.problem(depth=8)
    searcher = amc(problem, 0)
    steps, agent = len(searcher.walk.steps), agent_of(searcher)
    assert (searcher.walk.state_size, searcher.walk.action_size) == (11, 1)
    assert agent.replay.capacity == 100 * steps and not agent.settings.steady
    table.search(searcher, table.lookup(problem), 100)
    assert updates(searcher) == 0 and len(agent.replay) == 100 * steps
    assert agent.exploration.deviation == 0.5 and not agent.exploration.warming_up
    for k in range(1, 4):
        table.search(searcher, table.lookup(problem), 1)
        assert updates(searcher) == k * steps
        assert agent.exploration.deviation == pytest.approx(0.5 * 0.95**k)


def test_amcs_warm_up_is_uniform_over_what_the_clip_allows() -> None:
    problem = table.problem("channels", "macs<=100%")
    told = table.search(amc(problem, 0), table.lookup(problem), 100)
    first = problem.space.axes[0]
    drawn = [first.values[problem.space.encode(e.policy)[0]] for e in told]
    uniform = np.random.default_rng(0).uniform(size=10_000)
    expected = np.mean([float(first.values[first.level(u)]) for u in uniform])
    assert np.mean([float(v) for v in drawn]) == pytest.approx(expected, abs=0.09)


@pytest.mark.parametrize(
    ("space", "field"),
    [("criteria", "keep"), ("joint", "keep"), ("depth-channels", "keep"), ("weights", "sparsity"), ("ranks", "rank")],
)
def test_amc_owns_one_share_a_layer_and_leaves_the_rest_alone(space: str, field: str) -> None:
    problem = table.problem(space, "size<=70%")
    searcher = amc(problem, 0)
    assert searcher.walk.owned == (field,) and searcher.walk.others == ()
    free = ~searcher.walk.owned_axes
    for e in table.search(searcher, table.lookup(problem), 12):
        point = problem.space.encode(e.policy)
        untouched = np.where(free, problem.space.largest, point)
        assert np.array_equal(point, problem.space.plain(untouched))  # what a block takes along means nothing


def test_amc_leaves_a_budget_unspent_where_the_agent_does() -> None:
    problem = table.problem("channels", "macs<=70%")
    shares = {
        name: [
            e.cost("macs") / problem.projector.limits["macs"]
            for e in table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 12)
        ]
        for name in ("amc", "ddpg")
    }
    assert min(shares["amc"]) < 0.6 < 0.97 < min(shares["ddpg"])


def test_a_policy_told_before_is_moved_within_the_agents_own_decisions() -> None:
    problem = table.problem("criteria", "macs<=100%", depth=8)
    searcher = amc_guaranteed(problem, 0)
    searcher.agent.act = lambda state, rng, *, explore=True: np.full(1, 0.5)  # type: ignore[method-assign]
    points = np.array([problem.space.encode(searcher.ask()) for _ in range(8)])
    assert len(np.unique(points, axis=0)) == 8
    owned = searcher.walk.owned_axes
    assert (points[:, ~owned] == 0).all()  # criteria
    assert (points[:, owned] < problem.space.largest[owned]).any(axis=1).all()  # no jump to what the budget allows


def test_the_guaranteed_search_is_paid_for_cheapness() -> None:
    problem = table.problem("channels", "macs<=100%")
    searcher = amc_guaranteed(problem, 0)
    for scale in (1.0, 0.5):
        costs = tuple((n, scale * v) for n, v in problem.projector.costing.dense().items())
        searcher.tell(Evaluation(searcher.ask(), "ok", 0.9, costs))
    dear, cheap = agent_of(searcher).replay._rows[[0, len(searcher.walk.steps)], 11 + 1]  # behind state and action
    assert dear < cheap < 0


def test_haq_has_its_own_warm_up_noise_and_replay() -> None:
    problem = table.both_bits("bops<=5%", depth=8)
    searcher = haq(problem, 0)
    agent, layers = agent_of(searcher), len(problem.space.facts.layers)
    assert agent.replay.capacity == 128 * layers and len(searcher.walk.steps) == 2 * layers
    table.search(searcher, table.lookup(problem), 20)
    assert updates(searcher) == 0
    table.search(searcher, table.lookup(problem), 2)
    assert updates(searcher) == 2 * 2 * layers
    assert agent.exploration.deviation == pytest.approx(0.5 * 0.99**2)
    weights_alone = haq(table.problem("codebooks", "size<=20%"), 0)
    assert agent_of(weights_alone).replay.capacity == 128 * len(weights_alone.walk.steps)


def test_haq_remembers_the_repaired_bits() -> None:
    problem = table.both_bits("bops<=3%", depth=8)
    searcher = haq(problem, 0)
    told = table.search(searcher, table.lookup(problem), 5)
    rows = agent_of(searcher).replay._rows[: 5 * len(searcher.walk.steps)]
    stored = rows[:, searcher.walk.state_size].reshape(5, -1)
    for episode, e in zip(stored, told, strict=True):
        point = problem.space.encode(e.policy)
        executed = [searcher.walk.executed(point, s)[0] for s in searcher.walk.steps]
        assert np.allclose(episode, executed, atol=1e-6)


def test_haq_leaves_other_decisions_at_their_top_where_bits_can_meet_the_budget() -> None:
    problem = table.problem("channels-bits", "size<=40%")
    for e in table.search(haq(problem, 0), table.lookup(problem), 6):
        assert all(d.keep == 1.0 for _, d in e.policy.groups)
    tight = table.problem("channels-bits", "macs<=50%")  # no bits help there
    for e in table.search(haq(tight, 0), table.lookup(tight), 6):
        assert any(d.keep < 1.0 for _, d in e.policy.groups) and e.cost("macs") <= tight.projector.limits["macs"]


@pytest.mark.parametrize(
    ("make", "space", "message"),
    [
        (haq, "criteria", r"HAQ must have bits to decide; this space opens criterion, keep: choose a space with"),
        (
            amc,
            "bits",
            r"AMC must have keep, sparsity, rank .*; this space opens activation_bits, weight_bits: .* --searcher ddpg",
        ),
    ],
)
def test_a_space_without_its_decisions_is_refused_in_a_sentence(make: object, space: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make(table.problem(space, "size<=70%"), 0)  # type: ignore[operator]


def test_a_score_that_is_no_number_reaches_no_agent() -> None:
    problem = table.problem(depth=8)
    searcher = amc(problem, 0)
    good = table.lookup(problem)(searcher.ask())
    searcher.tell(replace(good, score=float("nan")))
    searcher.tell(replace(good, score=float("-inf")))
    rows = agent_of(searcher).replay._rows[: 2 * len(searcher.walk.steps)]
    assert np.isfinite(rows).all()
    assert set(rows[:, 11 + 1].tolist()) == {-1.0}  # behind state and action: the reward of a failure


def test_spaces_of_other_shapes_have_steps_for_every_own_decision() -> None:
    facts = table.facts(8)
    space = SearchSpace(facts, tuple(reversed(table.both_bits("bops<=50%", 8).space.axes)))
    searcher = haq(table.of_space(space, "bops<=5%"), 0)
    assert [s.layer for s in searcher.walk.steps] == sorted(s.layer for s in searcher.walk.steps)
    assert [next(iter(s.axes)) for s in searcher.walk.steps[:2]] == ["weight_bits", "activation_bits"]
