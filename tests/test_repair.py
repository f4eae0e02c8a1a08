"""HAQ's repair: its published loop, on any ordered decisions, any monotone cost, several limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.episode import Walk, WalkSettings
from automc.errors import BudgetError
from automc.projection import Projector
from automc.repair import repaired
from automc.searcher import Problem
from automc.space import IntArray
from tests.searchers import table


def published(projector: Projector, levels: IntArray, order: list[int]) -> IntArray:
    """The loop of HAQ's `_final_action_wall`, one level at a time."""
    point = levels.copy()
    while not projector.feasible(point):
        before = point.copy()
        for axis in order:
            if point[axis] > 0:
                point[axis] -= 1
            if projector.feasible(point):
                return point
        assert (point < before).any()
    return point


CASES = {
    "bops": table.both_bits("bops<=4%"),
    "size and bops": table.both_bits("size<=30%,bops<=6%"),
    "channels": table.problem("channels", "macs<=50%"),
}


@pytest.mark.parametrize("case", list(CASES))
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_a_repair_is_the_published_loop(case: str, seed: int) -> None:
    problem, rng = CASES[case], np.random.default_rng(seed)
    levels = np.maximum(problem.space.sample(rng), problem.space.sample(rng))
    order = rng.permutation(len(levels)).tolist()
    found = repaired(problem.projector, levels, order)
    assert np.array_equal(found, published(problem.projector, levels, order))
    assert problem.projector.feasible(found) and (found <= levels).all()
    assert not problem.projector.feasible(levels) or np.array_equal(found, levels)


def test_the_last_layers_activations_fall_first_then_its_weights() -> None:
    problem = CASES["bops"]
    walk = Walk(problem, WalkSettings(stepwise=True, clipped=False))
    last = problem.space.facts.layers[-1].name
    keys = [problem.space.axes[i].key for i in walk._last_first]
    assert keys[:2] == [f"layer:{last}:activation_bits", f"layer:{last}:weight_bits"]
    assert len(keys) == len(problem.space.axes)
    top = problem.space.largest
    nearly = Problem(
        problem.space, problem.projector.limited("bops", problem.projector.costing.of(top)["bops"] - 1), 0.9
    )
    changed = np.flatnonzero(repaired(nearly.projector, top, walk._last_first) != top)
    assert [problem.space.axes[i].key for i in changed] == keys[:1]


def test_axes_that_are_not_named_stay_and_a_budget_below_them_is_refused() -> None:
    problem = CASES["channels"]
    top = problem.space.largest
    half = list(range(0, len(top), 2))
    with pytest.raises(BudgetError, match="must end within the budget"):
        repaired(problem.projector, top, half[:1])
    loose = table.problem("channels", "macs<=90%")
    found = repaired(loose.projector, top, half)
    rest = [i for i in range(len(top)) if i not in half]
    assert np.array_equal(found[rest], top[rest])
    assert loose.projector.feasible(found)


def test_a_projector_with_another_limit_keeps_the_rest() -> None:
    projector = CASES["size and bops"].projector
    tight = projector.limited("bops", 0.5 * projector.limits["bops"])
    assert tight.limits == {**projector.limits, "bops": 0.5 * projector.limits["bops"]}
    smallest = projector.costing.of(projector.space.smallest)
    lowest = projector.limited("bops", 0.0)
    assert lowest.limits["bops"] == smallest["bops"]
    assert lowest.feasible(projector.space.smallest)
    assert projector.limits["bops"] == tight.limits["bops"] * 2
