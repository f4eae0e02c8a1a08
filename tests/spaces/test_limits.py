"""Limits that fall between two reachable values, that exclude each other, or that a space cannot move."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.budget import Budget
from automc.errors import BudgetError
from automc.projection import Projector
from automc.registry import SPACES
from automc.search_spaces.options import Bits, Widths
from automc.space import SearchSpace
from tests.spaces import models

NET = models.facts_of("option_a")


def small_space() -> SearchSpace:
    """Few enough points to try them all: three groups, two kinds of bits."""
    widths = Widths(multiple_of=8)
    kept = SPACES.load("channels-all")(NET, widths=widths)
    levels = SPACES.load("weight-bits")(NET, levels=Bits(weights=(4, 8), ends=()))
    return SearchSpace(NET, (*kept[:3], *levels[2:5]))


SPACE = small_space()
POINTS = np.array(list(itertools.product(*(range(n) for n in SPACE.sizes))))


@given(share=st.floats(0.0, 1.0), metric=st.sampled_from(["macs", "params", "size", "bops"]), seed=st.integers(0, 999))
@settings(max_examples=60)
def test_a_limit_between_two_reachable_values_gives_the_nearest_policy_below(
    share: float, metric: str, seed: int
) -> None:
    """Of one axis exactly; of several no single step up is left."""
    costs = Projector(SPACE, Budget.parse(f"{metric}<=1e18")).costing.batch(POINTS, (metric,))[:, 0]
    bound = float(costs.min() + share * (costs.max() - costs.min()))
    projector = Projector(SPACE, Budget.parse(f"{metric}<={bound!r}"))
    start = SPACE.sample(np.random.default_rng(seed))
    point = projector.project(start, fill=True)
    found = float(projector.costing.batch(point[None], (metric,))[0, 0])
    assert found <= bound
    above = POINTS[(np.abs(POINTS - point).sum(axis=1) == 1) & (point <= POINTS).all(axis=1)]
    assert (projector.costing.batch(above, (metric,)) > bound).all()
    for axis in range(len(SPACE.axes)):
        levels = np.repeat(point[None], SPACE.sizes[axis], axis=0)
        levels[:, axis] = np.arange(len(levels))
        fitting = np.flatnonzero(projector.costing.batch(levels, (metric,))[:, 0] <= bound)
        assert projector.highest(point, axis) == fitting[-1]


def test_a_limit_just_below_a_reachable_value_takes_the_one_before_it() -> None:
    one = SearchSpace(NET, SPACE.axes[-1:])
    projector = Projector(one, Budget.parse("size<=1e18"))
    sizes = projector.costing.batch(np.arange(3)[:, None], ("size",))[:, 0].tolist()
    for level in (1, 2):
        tight = Projector(one, Budget.parse(f"size<={sizes[level] - 0.5!r}"))
        assert tight.project(one.largest, fill=True).tolist() == [level - 1]
        exact = Projector(one, Budget.parse(f"size<={sizes[level]!r}"))
        assert exact.project(one.largest, fill=True).tolist() == [level]


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("macs<=50%,macs<=30%", "limited once; 'macs<=50%,macs<=30%' repeats one: keep the smaller limit"),
        ("MACS<=30%,macs<=30%", "limited once"),
    ],
)
def test_two_limits_of_one_metric_are_refused(budget: str, said: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(said)):
        Budget.parse(budget)


@pytest.mark.parametrize("name", ["weight-bits", "bits", "weights", "n:m", "codebooks"])
def test_a_limit_that_a_space_cannot_move_is_refused_with_where_it_stands(name: str) -> None:
    """Fewer bits and zeros leave as many multiply-accumulates; the other limit could be met."""
    space = SearchSpace(NET, SPACES.load(name)(NET))
    Projector(space, Budget.parse("size<=75%"))
    said = r"^macs must be at most .*smallest reachable value is .* \(100.00% of dense\), bound by .*: raise the limit"
    with pytest.raises(BudgetError, match=said):
        Projector(space, Budget.parse("size<=75%,macs<=99%"))
    Projector(space, Budget.parse("macs<=100%,size<=75%"))


@given(seed=st.integers(0, 9999))
@settings(max_examples=30)
def test_limits_that_can_be_met_can_be_met_together(seed: int) -> None:
    """The smallest point is the smallest by every cost, so limits never exclude each other."""
    rng = np.random.default_rng(seed)
    metrics = ("macs", "params", "size", "bops")
    costs = Projector(SPACE, Budget.parse("macs<=1e18")).costing.batch(POINTS, metrics)
    assert (costs.min(axis=0) == costs[0]).all()
    bounds = [float(rng.choice(costs[:, i])) for i in range(4)]
    projector = Projector(SPACE, Budget.parse(",".join(f"{m}<={b!r}" for m, b in zip(metrics, bounds, strict=True))))
    point = projector.project(SPACE.sample(rng), fill=True)
    assert (projector.costing.batch(point[None], metrics)[0] <= bounds).all()
