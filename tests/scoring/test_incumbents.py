"""Whom a candidate runs against: the same as brute force over everything recorded, and never a dearer one."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automc.errors import TaskError
from automc.evaluation import Evaluation
from automc.pareto import front
from automc.policy import GroupDecision, Policy
from automc.scoring.incumbents import Incumbents

COSTS = ("macs", "size")


def scored(number: int, score: float | None, macs: float, size: float, **changes: Any) -> Evaluation:
    policy = Policy("f" * 64, (("stem", GroupDecision((number + 1) / 1000)),))
    found = Evaluation(policy, "ok", score, (("macs", macs), ("size", size)), number=number)
    return replace(found, **changes)


small = st.integers(0, 5).map(float)
records = st.lists(st.tuples(small, small, small), max_size=40).map(
    lambda rows: [scored(i, *row) for i, row in enumerate(rows)]
)


def brute(recorded: list[Evaluation], costs: dict[str, float], keep: int) -> Evaluation | None:
    eligible = [e for e in recorded if e.ok and all(e.cost(c) <= costs[c] for c in COSTS)]
    ranked = sorted(eligible, key=lambda e: (-(e.score or 0.0), *(e.cost(c) for c in COSTS), e.number))
    return ranked[keep - 1] if len(ranked) >= keep else None


@given(records, small, small, st.integers(1, 4))
def test_the_rival_is_the_keepth_best_of_those_that_cost_no_more(
    recorded: list[Evaluation], macs: float, size: float, keep: int
) -> None:
    incumbents = Incumbents(COSTS, keep)
    for evaluation in recorded:
        incumbents.add(evaluation)
    costs = {"macs": macs, "size": size}
    assert incumbents.rival(costs) == brute(recorded, costs, keep)


@given(records)
def test_with_one_to_keep_the_front_is_held(recorded: list[Evaluation]) -> None:
    incumbents = Incumbents(COSTS)
    for evaluation in recorded:
        incumbents.add(evaluation)
    assert {e.number for e in incumbents.held} == {e.number for e in front(recorded, COSTS)}


@given(records, st.integers(2, 6), st.integers(1, 2))
def test_a_bound_on_how_many_makes_rivals_weaker_never_dearer(recorded: list[Evaluation], most: int, keep: int) -> None:
    incumbents = Incumbents(COSTS, keep, most)
    for evaluation in recorded:
        incumbents.add(evaluation)
        assert len(incumbents.held) <= most
    for costs in ({"macs": m, "size": s} for m in (0.0, 2.0, 5.0) for s in (1.0, 5.0)):
        found, true = incumbents.rival(costs), brute(recorded, costs, keep)
        if found is not None:
            assert true is not None and (found.score or 0) <= (true.score or 0)
            assert all(found.cost(c) <= costs[c] for c in COSTS)


def test_the_one_with_the_nearest_stand_in_is_forgotten_first() -> None:
    incumbents = Incumbents(("macs",), most=3)
    for evaluation in (scored(0, 1.0, 10, 0), scored(1, 5.0, 20, 0), scored(2, 5.1, 30, 0), scored(3, 9.0, 40, 0)):
        incumbents.add(evaluation)
    assert [e.number for e in incumbents.held] == [3, 1, 0]


def test_only_what_was_scored_in_full_counts_and_a_policy_counts_once() -> None:
    incumbents = Incumbents(COSTS, keep=2)
    for state in ("pruned", "infeasible", "failed"):
        incumbents.add(scored(1, 9.0, 0, 0, state=state))
    good = scored(2, 1.0, 0, 0)
    incumbents.add(good)
    incumbents.add(replace(good, number=3))
    assert incumbents.held == (good,)
    assert incumbents.rival({"macs": 9.0, "size": 9.0}) is None


@pytest.mark.parametrize("keep", [0, -1, 65, True, 1.5, "1"])
def test_a_race_cannot_keep_that_many(keep: Any) -> None:
    with pytest.raises(TaskError, match="keeps the best 1 to 64"):
        Incumbents(COSTS, keep)
