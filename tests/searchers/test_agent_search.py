"""An agent as a searcher: exact resumes, earlier trials, and one agent for a range of budgets."""

from dataclasses import replace

import numpy as np
import pytest

from automc.episode import WalkSettings
from automc.errors import PolicyError
from automc.evaluation import Evaluation
from automc.pareto import hypervolume, objectives
from automc.searcher import Problem, Searcher
from automc.searchers.rl import AgentSearch, AgentSearcher, amc_budgets
from automc.testing import check_searcher
from tests.searchers import table

LEARNING = {
    "ddpg": AgentSearch(warmup=3),
    "patient": AgentSearch(warmup=4, patient=True, fill=False, knobs={"steady": False}),
    "budgeted": AgentSearch(warmup=3, walk=WalkSettings(budgeted=True)),
    "haq": AgentSearch(warmup=3, walk=WalkSettings(("weight_bits",), stepwise=True, clipped=False)),
    "reinforce": AgentSearch("reinforce"),
    "td3": AgentSearch("td3", warmup=4, patient=True),
    "sac": AgentSearch("sac", warmup=4, patient=True),
    "ppo": AgentSearch("ppo", knobs={"episodes": 2}),
}


@pytest.mark.parametrize("case", list(LEARNING))
def test_a_search_that_learns_goes_on_exactly_after_a_resume(case: str) -> None:
    """The registered searchers are still warming up when the contract pack has them resume; these are not."""

    def make(problem: Problem, seed: int) -> Searcher:
        return AgentSearcher(problem, seed, LEARNING[case])

    check_searcher(make, table.problem("channels-bits", "macs<=60%,size<=30%", depth=8), trials=10)


def test_proposals_of_several_open_asks_are_told_in_any_number() -> None:
    """What a tell learns does not depend on how many asks are open."""
    problem = table.problem(depth=8)
    evaluate, searchers = table.lookup(problem), [AgentSearcher(problem, 0, AgentSearch(warmup=2)) for _ in range(2)]
    asked = [searchers[0].ask() for _ in range(4)]
    for policy in asked:
        told = evaluate(policy)
        for searcher in searchers:
            searcher.tell(Evaluation(policy, "ok", told.score, told.costs, proposer="ddpg"))
    assert searchers[0].ask() == searchers[1].ask()


def test_earlier_trials_fill_the_replay_and_the_warm_up() -> None:
    problem = table.problem(depth=8)
    evaluate = table.lookup(problem)
    earlier = table.search(AgentSearcher(problem, 5), evaluate, 12)
    searcher = AgentSearcher(problem, 0, AgentSearch(warmup=10))
    assert searcher.remember(earlier) == 12
    assert searcher.agent.episode == 12
    assert len(searcher.agent.replay) == 12 * len(searcher.walk.steps)  # type: ignore[attr-defined]
    assert searcher.agent.exploration.deviation == 0.5  # type: ignore[attr-defined]
    assert searcher.history.points == []
    again = AgentSearcher(problem, 0, AgentSearch(warmup=10))
    again.remember(earlier)
    assert again.ask() == searcher.ask()


def test_given_policies_and_trials_over_this_budget_are_told_apart() -> None:
    problem, wide = table.problem(depth=8), table.problem("criteria", "macs<=100%", depth=8)
    dense = table.lookup(wide)(wide.space.decode(wide.space.largest))
    low = table.lookup(problem)(problem.space.decode(problem.space.smallest))
    assert AgentSearcher(problem, 0).remember([dense, low]) == 1


def test_trials_of_another_model_are_refused() -> None:
    other = table.problem(depth=14)
    trial = table.lookup(other)(other.space.decode(other.space.smallest))
    with pytest.raises(PolicyError, match="model it was made for"):
        AgentSearcher(table.problem(depth=8), 0).remember([trial])


def test_budgets_are_spread_evenly_over_what_is_reachable() -> None:
    problem = table.problem("channels", "macs<=60%", depth=20)
    searcher = amc_budgets(problem, 0)
    dense = problem.projector.costing.dense()["macs"]
    told = table.search(searcher, table.lookup(problem), 40)
    low, high = searcher.walk.reach
    shares = np.array([e.cost("macs") / dense for e in told])
    counts, _ = np.histogram(shares, bins=5, range=(low, high))
    assert counts.min() >= 6  # 8 on average
    assert shares.max() > 0.95 * high


def test_one_trained_agent_gives_a_policy_for_any_budget() -> None:
    problem = table.problem("channels", "macs<=60%", depth=20)
    searcher = amc_budgets(problem, 0)
    table.search(searcher, table.lookup(problem), 20)
    dense = problem.projector.costing.dense()["macs"]
    shares = [0.2, 0.3, 0.4, 0.5, 0.6]
    policies = [searcher.policy_for(s) for s in shares]
    spent = [problem.projector.costing.of_policy(p)["macs"] / dense for p in policies]
    assert all(s - 0.02 < used <= s + 1e-12 for s, used in zip(shares, spent, strict=True))
    assert policies == [searcher.policy_for(s) for s in shares]  # nothing is drawn, nothing learnt
    assert searcher.policy_for(2.0) == policies[-1]  # never above the budget that was searched
    scores = [table.lookup(problem)(p).score for p in policies]
    assert scores == sorted(scores, key=lambda s: s or 0.0)


def test_an_agent_that_was_never_shown_budgets_serves_no_other() -> None:
    with pytest.raises(PolicyError, match="search with amc-budgets"):
        AgentSearcher(table.problem(depth=8), 0).policy_for(0.3)


def test_its_front_dominates_that_of_five_agents_with_as_many_evaluations() -> None:
    trials, depth = 50, 14
    problem = table.problem("channels", "macs<=60%", depth)
    dense = problem.projector.costing.dense()["macs"]
    one = table.search(amc_budgets(problem, 0), table.lookup(problem), trials)
    low, high = amc_budgets(problem, 0).walk.reach
    five = []
    for i, share in enumerate(np.linspace(low, high, 6)[1:]):
        single = table.problem("channels", f"macs<={100 * share:.4f}%", depth)
        five += table.search(AgentSearcher(single, i), table.lookup(single), trials // 5)
    worst = min(e.score or 0.0 for e in one + five)
    volumes = [hypervolume(objectives(told, ["macs"]), np.array([-worst, high * dense])) for told in (one, five)]
    assert volumes[0] > volumes[1]


def test_a_score_that_was_only_predicted_is_no_episode() -> None:
    problem = table.problem()
    searcher = AgentSearcher(problem, 0, AgentSearch(warmup=2))
    found = table.lookup(problem)(searcher.ask())
    searcher.tell(replace(found, state="pruned", share=0.0, proposer="ddpg"))
    assert (searcher.agent.episode, len(searcher.history.points)) == (0, 1)
    searcher.tell(replace(found, state="pruned", share=0.1, proposer="ddpg"))
    searcher.tell(replace(found, state="failed", score=None, proposer="ddpg"))
    assert searcher.agent.episode == 2


def test_what_an_agent_was_not_shown_is_not_counted() -> None:
    problem = table.problem()
    found = table.lookup(problem)(problem.space.decode(problem.space.smallest))
    searcher = AgentSearcher(problem, 0)
    assert searcher.remember([found, replace(found, state="pruned", share=0.0)]) == searcher.agent.episode == 1
