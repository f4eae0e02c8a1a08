"""One walk over the layers: AMC's features, the budget's clip, and what is remembered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.episode import DYNAMIC_FEATURES, STATIC_FEATURES, Walk, WalkSettings, run_episode
from automc.errors import PolicyError
from tests.searchers import table

SPACES = [
    ("channels", "macs<=50%"),
    ("channels-bits", "macs<=60%,size<=25%"),
    ("channels-all", "params<=40%"),
    ("ranks", "macs<=60%"),
]
WALKS = {case: Walk(table.problem(*case)) for case in SPACES}


@pytest.mark.parametrize("case", SPACES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_any_walk_ends_within_the_budget(case: tuple[str, str], seed: int) -> None:
    walk, rng = WALKS[case], np.random.default_rng(seed)
    bold = rng.uniform() ** 0.3  # from timid walks to ones that want everything
    levels = run_episode(
        walk, walk.space.largest, lambda state: np.clip(rng.uniform(size=walk.action_size) * 2 * bold, 0, 1)
    )
    assert walk.projector.feasible(levels)


@pytest.mark.parametrize("case", SPACES)
def test_states_are_shares_and_see_only_what_was_decided(case: tuple[str, str]) -> None:
    walk, rng = WALKS[case], np.random.default_rng(0)
    levels = run_episode(walk, walk.space.largest, lambda state: rng.uniform(size=walk.action_size))
    states = walk.states(levels)
    assert states.shape == (len(walk.steps), walk.state_size)
    assert ((states >= 0) & (states <= 1)).all()
    for index in range(len(walk.steps)):
        later = levels.copy()
        for step in walk.steps[index:]:
            later[list(step.axes.values())] = 0
        assert np.array_equal(walk.states(later, index, index + 1)[0], states[index])


def test_the_agent_of_channels_alone_sees_amcs_eleven_features() -> None:
    walk = WALKS[SPACES[0]]
    assert len(STATIC_FEATURES) + len(DYNAMIC_FEATURES) == 10
    assert walk.state_size == 11 and walk.action_size == 1
    static = walk.states(walk.start(walk.space.largest))[:, : len(STATIC_FEATURES)]
    moving = static.max(axis=0) > static.min(axis=0)
    assert np.allclose(static.min(axis=0)[moving], 0) and np.allclose(static.max(axis=0)[moving], 1)
    assert np.allclose(static[:, 0], np.linspace(0, 1, len(walk.steps)))  # the step's index


def test_reduced_and_rest_are_counted_on_the_shrunk_model() -> None:
    walk = WALKS[SPACES[0]]
    levels = walk.start(walk.space.largest)
    costing, facts = walk.projector.costing, walk.space.facts
    for index, step in enumerate(walk.steps):
        reduced, rest = walk.states(levels, index, index + 1)[0, len(STATIC_FEATURES) : len(STATIC_FEATURES) + 2]
        so_far = walk.space.largest
        for done in walk.steps[:index]:
            so_far[list(done.axes.values())] = levels[list(done.axes.values())]
        dense, now = costing.by_layer(walk.space.largest, "macs"), costing.by_layer(so_far, "macs")
        assert reduced == pytest.approx((dense - now)[: step.layer].sum() / dense.sum())
        assert rest == pytest.approx(dense[step.layer + 1 :].sum() / dense.sum())
        assert dense.sum() == sum(x.macs for x in facts.layers)


def test_the_executed_action_is_what_the_next_state_holds() -> None:
    walk = WALKS[SPACES[0]]
    levels = walk.start(walk.space.largest)
    for index, step in enumerate(walk.steps[:-1]):
        levels = walk.execute(levels, step, np.ones(1))  # more than the budget allows, sooner or later
        following = walk.states(levels, index + 1, index + 2)[0]
        assert following[10] == pytest.approx(walk.executed(levels, step)[0])
    kept = [walk.executed(levels, s)[0] for s in walk.steps]
    assert min(kept) < 1.0 == max(kept)


def test_a_share_that_fits_is_executed_to_the_nearest_level() -> None:
    walk = WALKS[SPACES[0]]
    step = walk.steps[0]
    axis = walk.space.axes[step.axes["keep"]]
    for wanted in (0.3, 0.55, 0.81):
        done = walk.executed(walk.execute(walk.start(walk.space.largest), step, np.array([wanted])), step)[0]
        assert abs(done - wanted) == min(abs(float(v) - wanted) for v in axis.values)


def test_bits_are_bins_of_equal_width() -> None:
    walk = WALKS[SPACES[1]]
    entry = walk.owned.index("weight_bits")
    step = next(s for s in walk.steps if "weight_bits" in s.axes)
    index = step.axes["weight_bits"]
    count = len(walk.space.axes[index].values)
    for level in range(count):
        action = np.zeros(walk.action_size)
        action[entry] = (level + 0.5) / count
        levels = walk.execute(walk.start(walk.space.largest), step, action)
        assert levels[index] <= level
        if levels[index] == level:
            assert walk.executed(levels, step)[entry] == pytest.approx(action[entry])


def test_every_owned_decision_has_exactly_one_step() -> None:
    for walk in WALKS.values():
        decided = [i for step in walk.steps for i in step.axes.values()]
        assert sorted(decided) == np.flatnonzero(walk.owned_axes).tolist()


def test_decisions_of_others_are_part_of_the_state() -> None:
    problem = table.problem("criteria")
    walk = Walk(problem, WalkSettings(("keep",)))
    given = problem.space.largest
    plain = walk.states(walk.start(given))
    given[~problem.space.ordered] = 2
    assert walk.state_size == 12
    assert not np.array_equal(walk.states(walk.start(given)), plain)
    assert np.array_equal(run_episode(walk, given, lambda s: np.ones(1))[~walk.owned_axes], given[~walk.owned_axes])


@pytest.mark.parametrize("action", [np.array([np.nan]), np.array([0.5, 0.5]), np.array([])])
def test_an_action_that_is_none_is_refused(action: np.ndarray) -> None:
    walk = WALKS[SPACES[0]]
    with pytest.raises(PolicyError, match="An action must be 1 finite"):
        walk.execute(walk.start(walk.space.largest), walk.steps[0], action)


def test_an_agent_that_owns_nothing_is_refused() -> None:
    with pytest.raises(PolicyError, match="must own a field"):
        Walk(table.problem("channels"), WalkSettings(("weight_bits",)))
