"""What the searchers share: no repeats, determinism, failures that teach, and better results than chance."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from automc.episode import Walk, WalkSettings, transitions
from automc.errors import PolicyError
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.registry import SEARCHERS, SPACES
from automc.rewards import REWARDS, worth
from automc.searchers.baselines import uniform_point
from automc.searchers.history import History
from automc.searchers.rl import AgentSearch, AgentSearcher
from automc.space import Axis, SearchSpace
from tests.searchers import table

ALL = list(SEARCHERS)


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_trials_and_no_policy_twice(name: str) -> None:
    problem = table.problem_for(name)
    runs = [table.search(SEARCHERS.load(name)(problem, 3), table.lookup(problem), 14) for _ in range(2)]
    assert [e.policy for e in runs[0]] == [e.policy for e in runs[1]]
    assert len({e.policy for e in runs[0]}) == 14


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("uniform", "global", "global_magnitude")])
def test_another_seed_gives_other_trials(name: str) -> None:
    problem = table.problem_for(name)
    runs = [table.search(SEARCHERS.load(name)(problem, seed), table.lookup(problem), 8) for seed in (0, 1)]
    assert [e.policy for e in runs[0]] != [e.policy for e in runs[1]]


@pytest.mark.parametrize("name", ALL)
def test_a_search_of_failures_goes_on(name: str) -> None:
    problem = table.problem_for(name)

    def fails(policy: object) -> Evaluation:
        return replace(table.lookup(problem)(policy), state="failed", score=None, reason="out of memory")  # type: ignore[arg-type]

    assert len(table.search(SEARCHERS.load(name)(problem, 0), fails, 8)) == 8


def stopped(evaluate: Callable[[Policy], Evaluation], best: float = 0.0) -> Callable[[Policy], Evaluation]:
    """What comes of candidates in a race: the second and every later one below the best is an estimate."""

    def race(policy: Policy) -> Evaluation:
        nonlocal best
        found = evaluate(policy)
        assert found.score is not None
        lost, best = found.score < best, max(best, found.score)
        return replace(found, state="pruned", share=0.1) if lost else found

    return race


@pytest.mark.parametrize(  # but for joint, whose bandit takes an estimate for no gain
    "name", [table.soon_or_slow(n != "gp", n) for n in ALL if n != "joint"]
)
def test_estimates_teach_as_scores_do(name: str) -> None:
    problem = table.problem_for(name)
    plain = table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 20)
    raced = table.search(SEARCHERS.load(name)(problem, 0), stopped(table.lookup(problem)), 20)
    assert {e.state for e in raced} == {"ok", "pruned"}
    assert [(e.policy, e.score) for e in raced] == [(e.policy, e.score) for e in plain]


def test_an_estimate_is_rewarded_by_its_score_and_a_failure_is_not() -> None:
    problem = table.problem()
    good = table.lookup(problem)(problem.space.decode(uniform_point(problem, problem.projector)))
    dense = Walk(problem).dense
    for reward in REWARDS.values():
        assert worth(reward, replace(good, state="pruned"), dense) == worth(reward, good, dense)
        assert worth(reward, replace(good, state="failed", score=None), dense) < worth(reward, good, dense)


@pytest.mark.parametrize("name", ALL)
def test_a_space_with_a_handful_of_points_is_searched_to_its_end(name: str) -> None:
    """More trials than feasible points: proposals repeat, nothing hangs or raises."""
    group, layer = table.facts(8).groups[0].name, table.facts(8).layers[3].name
    axis = Axis(group, "group", "keep", (0.25, 0.5, 1.0))
    if not table.serves(name, SearchSpace(table.facts(8), (axis,))):
        axis = Axis(layer, "layer", "weight_bits", (4, 8, 32))
    problem = table.of_space(
        SearchSpace(table.facts(8), (axis,)), "macs<=99.9%" if axis.kind == "group" else "bops<=99%"
    )
    told = table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 8)
    assert {int(problem.space.encode(e.policy)[0]) for e in told} <= {0, 1}


@pytest.mark.parametrize("name", ALL)
def test_a_space_of_criteria_alone_is_searched_or_refused_in_a_sentence(name: str) -> None:
    axes = tuple(Axis(g.name, "group", "criterion", ("l1", "obs")) for g in table.facts(8).groups)
    space = SearchSpace(table.facts(8), axes)
    problem = table.of_space(space, "macs<=100%")
    if table.serves(name, space):
        assert len(table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 10)) == 10
    else:
        with pytest.raises(PolicyError, match=r"must (own|have) .*criterion.*: (open|choose) "):
            SEARCHERS.load(name)(problem, 0)


@pytest.mark.parametrize(
    ("name", "space"),
    [
        table.soon_or_slow(name in table.WIDELY or (i + j) % 3 == 0, name, space)
        for i, name in enumerate(ALL)
        for j, space in enumerate(SPACES)
    ],
)
def test_every_space_is_searched(name: str, space: str) -> None:
    problem = table.problem(space, "size<=70%")
    if not table.serves(name, problem.space):
        with pytest.raises(PolicyError, match=r"this space opens .*: choose a space with"):
            SEARCHERS.load(name)(problem, 0)
        return
    told = table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 6)
    assert all(e.cost("size") <= problem.projector.limits["size"] for e in told)
    assert len({e.policy for e in told}) == 6


@pytest.mark.parametrize("name", ["joint", "knapsack", "tpe"])
def test_beats_random_search_with_as_many_trials(name: str) -> None:
    problem = table.problem()

    def mean(searcher: str) -> float:
        evaluate = table.lookup(problem, noise=0.001)
        found = (table.search(SEARCHERS.load(searcher)(problem, seed), evaluate, 40) for seed in range(3))
        return float(np.mean([table.best(told) for told in found]))

    assert mean(name) > mean("random")


@pytest.mark.parametrize("name", ALL)
def test_several_open_asks_differ(name: str) -> None:
    searcher = SEARCHERS.load(name)(table.problem_for(name), 0)
    assert len({searcher.ask() for _ in range(5)}) == 5


def test_history_moves_a_repeated_proposal_to_a_feasible_neighbour() -> None:
    problem = table.problem()
    history = History(problem, 0)
    point = uniform_point(problem, problem.projector)
    seen = [history.propose(point, np.random.default_rng(i)) for i in range(6)]
    assert len(set(seen)) == 6
    assert all(problem.projector.feasible(problem.space.encode(p)) for p in seen)


def test_uniform_is_the_same_share_everywhere() -> None:
    problem = table.problem("channels")
    point = uniform_point(problem, problem.projector)
    shares = point / problem.space.largest
    assert shares.max() - shares.min() < 2 / problem.space.sizes.min()
    assert not problem.projector.feasible(np.minimum(point + 1, problem.space.largest))


def test_any_policy_becomes_an_episode_of_executed_actions() -> None:
    problem = table.problem()
    searcher = AgentSearcher(problem, 0, AgentSearch(walk=WalkSettings(("keep",))))
    point = uniform_point(problem, problem.projector)
    steps = transitions(searcher.walk, point, 0.25)
    assert [t.done for t in steps] == [False] * (len(steps) - 1) + [True]
    assert all(t.reward == 0.25 for t in steps)
    for before, after in itertools.pairwise(steps):
        assert np.array_equal(before.next_state, after.state)
    keeps = [problem.space.axes[s.axes["keep"]].values[point[s.axes["keep"]]] for s in searcher.walk.steps]
    assert [float(t.action[0]) for t in steps] == [float(k) for k in keeps]


@pytest.mark.parametrize("name", ["random", "tpe", "evolution", "dp"])
def test_one_decision_is_searched_to_its_end(name: str) -> None:
    whole = table.problem("channels", "macs<=100%")
    [axis] = [a for a in whole.space.axes if len(a.values) == max(whole.space.sizes)][:1]
    problem = table.of_space(SearchSpace(whole.space.facts, (axis,)), "macs<=100%")
    told = table.search(SEARCHERS.load(name)(problem, 0), table.lookup(problem), 3 * len(axis.values))
    assert len({e.policy.digest for e in told}) >= 0.9 * len(axis.values)
