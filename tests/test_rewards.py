"""Rewards: closed forms, and for every kind of score finite, rising with the score, never rising with the cost."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.rewards import BOUND, REWARDS, WIDTH, Dense, Reward, worth

DENSE_COST = 4e7
KINDS = {
    "accuracy": (0.93, st.floats(0.0, 1.0)),
    "percent": (93.0, st.floats(0.0, 100.0)),
    "kl": (0.0, st.floats(-12.0, 0.0)),
    "kl, measured": (-3e-9, st.floats(-12.0, 0.0)),
    "negative perplexity": (-20.0, st.floats(-1e9, 0.0)),
    "correlation": (0.7, st.floats(-1.0, 1.0)),
    "anything": (-2e5, st.floats(-1e100, 1e100)),
}
"""Dense score, and the scores candidates may have."""
COSTS = st.floats(0.0, 1.2 * DENSE_COST)


def of(score: float | None, cost: float, state: str = "ok") -> Evaluation:
    return Evaluation(Policy("f", (), ()), state, score, (("macs", cost), ("size", 9.0)))  # type: ignore[arg-type]


def dense(kind: str) -> Dense:
    return Dense(KINDS[kind][0], "macs", DENSE_COST)


@pytest.mark.parametrize("name", list(REWARDS))
@pytest.mark.parametrize("kind", list(KINDS))
@given(data=st.data())
def test_rewards_are_finite_and_monotone_and_nothing_scored_is_worse_than_a_failure(
    name: str, kind: str, data: st.DataObject
) -> None:
    scores, against, reward = KINDS[kind][1], dense(kind), REWARDS[name]
    low, high = sorted((data.draw(scores), data.draw(scores)))
    cheap, dear = sorted((data.draw(COSTS), data.draw(COSTS)))
    failed = worth(reward, of(None, DENSE_COST, "failed"), against)
    slack = 1e-12 * max(abs(worth(reward, of(s, c), against)) for s in (low, high) for c in (cheap, dear))
    for cost in (cheap, dear):
        assert math.isfinite(worth(reward, of(low, cost), against))
        assert worth(reward, of(low, cost), against) <= worth(reward, of(high, cost), against) + slack
    for score in (low, high):
        assert worth(reward, of(score, dear), against) <= worth(reward, of(score, cheap), against) + slack
    assert failed <= worth(reward, of(low, min(dear, DENSE_COST)), against) + slack


@pytest.mark.parametrize("name", list(REWARDS))
@given(scores=st.tuples(st.floats(0.3, 0.99), st.floats(0.3, 0.99)), cost=st.floats(1.0, 0.99 * DENSE_COST))
def test_a_better_accuracy_at_the_same_cost_is_worth_more(name: str, scores: tuple[float, float], cost: float) -> None:
    low, high = sorted(scores)
    assume(high - low > 1e-6)
    reward, against = REWARDS[name], dense("accuracy")
    assert worth(reward, of(low, cost), against) < worth(reward, of(high, cost), against)


@given(score=st.floats(0.5, 1.0), costs=st.tuples(st.floats(1.0, DENSE_COST), st.floats(1.0, DENSE_COST)))
def test_the_guaranteed_reward_always_prefers_the_cheaper_of_two_equal_scores(
    score: float, costs: tuple[float, float]
) -> None:
    cheap, dear = sorted(costs)
    assume(dear > 1.001 * cheap)
    reward, against = REWARDS["accuracy-cost"], dense("accuracy")
    assert worth(reward, of(score, dear), against) < worth(reward, of(score, cheap), against)


def test_closed_forms() -> None:
    against = dense("accuracy")

    def paid(name: str, score: float, cost: float) -> float:
        return worth(REWARDS[name], of(score, cost), against)

    assert paid("accuracy", 0.90, 1.0) == pytest.approx((0.90 - 0.93) / 0.93)
    assert paid("accuracy", 0.96, 1.0) == pytest.approx(0.03 / 0.93)
    assert paid("accuracy-cost", 0.93, 2e7) == pytest.approx(-WIDTH * math.log(2) * math.log1p(2e7))
    drop = 0.5  # where the error is the drop, but for a hundredth
    assert paid("accuracy-cost", 0.93 * (1 - drop), 2e7) == pytest.approx(-drop * math.log(2e7), rel=0.01)
    kept = 1.0 - 0.03 / 0.93 / BOUND
    assert paid("accuracy-efficiency", 0.90, DENSE_COST / 4) == pytest.approx(kept * math.log(4))
    assert paid("accuracy-efficiency", 0.93 * 0.9, 123.0) == pytest.approx((BOUND - 0.1) / BOUND)
    assert worth(REWARDS["accuracy"], of(-0.2, 1.0), dense("kl")) == pytest.approx(-0.2)  # nats, as they are


@pytest.mark.parametrize("name", list(REWARDS))
@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None])
def test_a_score_that_is_no_number_is_worth_what_a_failure_is(name: str, score: float | None) -> None:
    reward, against = REWARDS[name], dense("accuracy")
    failed = worth(reward, of(None, 1.0, "failed"), against)
    assert worth(reward, of(score, 1.0), against) == failed
    assert math.isfinite(failed)
    lost = worth(reward, of(0.0, DENSE_COST), against)
    assert failed <= lost < worth(reward, of(0.5, DENSE_COST), against)


def test_the_plain_failure_costs_the_whole_score() -> None:
    assert worth(REWARDS["accuracy"], of(None, 1.0, "infeasible"), dense("accuracy")) == -1.0
    assert worth(REWARDS["accuracy"], of(0.4, 1.0, "failed"), dense("kl")) == -1.0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_reward_of_ones_own_that_is_no_number_is_replaced(broken: float) -> None:
    good = of(0.9, 1.0)
    assert worth(lambda evaluation, dense: broken, good, dense("accuracy")) == -1.0
    fussy: Reward = lambda evaluation, dense: evaluation.cost("size") if evaluation.score == -math.inf else broken  # noqa: E731
    assert worth(fussy, good, dense("accuracy")) == 9.0


def test_an_estimate_is_worth_what_its_score_is() -> None:
    for reward in REWARDS.values():
        found = of(0.8, 1e6)
        assert worth(reward, replace(found, state="pruned", share=0.1), dense("accuracy")) == worth(
            reward, found, dense("accuracy")
        )


@pytest.mark.parametrize("name", list(REWARDS))
def test_losses_of_many_times_the_dense_one_are_told_apart_in_single_precision(name: str) -> None:
    against = Dense(-0.02, "macs", DENSE_COST)
    paid = [np.float32(worth(REWARDS[name], of(-0.02 * k, 1e7), against)) for k in (2, 5, 10, 15, 20, 30, 100)]
    assert all(a > b for a, b in pairwise(paid))
