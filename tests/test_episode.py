"""One walk over the layers: AMC's features, the budget's clip, and what is remembered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.episode import (
    DYNAMIC_FEATURES,
    RATIOS,
    STATIC_FEATURES,
    Walk,
    WalkSettings,
    _action,
    _level,
    run_episode,
    transitions,
)
from automc.errors import PolicyError
from automc.registry import SPACES as REGISTERED
from automc.space import Axis
from tests.searchers import table

SPACES = [
    ("channels", "macs<=50%"),
    ("channels-bits", "macs<=60%,size<=25%"),
    ("channels-all", "params<=40%"),
    ("ranks", "macs<=60%"),
]
WALKS = {case: Walk(table.problem(*case)) for case in SPACES}
HAQ = WalkSettings(("weight_bits", "activation_bits"), stepwise=True, clipped=False, others=False)
MODES = {
    "haq": Walk(table.both_bits("bops<=4%"), HAQ),
    "stepwise": Walk(table.problem("channels-bits", "macs<=60%,size<=25%"), WalkSettings(stepwise=True)),
    "unclipped": Walk(table.problem("channels-bits", "macs<=60%,size<=25%"), WalkSettings(clipped=False)),
    "budgeted": Walk(table.problem("channels", "macs<=60%,params<=70%"), WalkSettings(budgeted=True)),
    "amc": Walk(table.problem("criteria"), WalkSettings(("keep",), others=False)),
}


@pytest.mark.parametrize("case", SPACES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_any_walk_ends_within_the_budget(case: tuple[str, str], seed: int) -> None:
    walk, rng = WALKS[case], np.random.default_rng(seed)
    bold = rng.uniform() ** 0.3  # from timid walks to ones that want everything
    levels = run_episode(
        walk, walk.space.largest, lambda state: np.clip(rng.uniform(size=walk.action_size) * 2 * bold, 0, 1)
    )
    assert walk.projector.feasible(levels)


@pytest.mark.parametrize("space", list(REGISTERED))
def test_states_are_shares_and_see_only_what_was_decided(space: str) -> None:
    walk, rng = Walk(table.problem(space, "size<=70%")), np.random.default_rng(0)
    levels = run_episode(walk, walk.space.largest, lambda state: rng.uniform(size=walk.action_size))
    states = walk.states(levels)
    assert states.shape == (len(walk.steps), walk.state_size)
    assert ((states >= 0) & (states <= 1)).all()
    for index in range(len(walk.steps)):
        for undecided in (walk.space.smallest, walk.space.largest):
            later = levels.copy()
            for step in walk.steps[index:]:
                later[list(step.axes.values())] = undecided[list(step.axes.values())]
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


@given(action=st.floats(0.0, 1.0), least=st.integers(1, 9), count=st.integers(1, 9))
def test_a_level_is_haqs_rounding_between_the_edges_and_in_range_at_them(action: float, least: int, count: int) -> None:
    """round((max - min + 1) * a + min - 0.5): cells of equal width, but halves go to even numbers, out of range too."""
    axis = Axis("x", "layer", "weight_bits", tuple(range(least, least + count)))
    chosen = axis.values[_level(axis, action)]
    left, right = least - 0.5, least + count - 0.5
    place = (right - left) * action + left
    if abs(place % 1.0 - 0.5) > 1e-9:
        assert chosen == round(place)
    assert least <= int(chosen) < least + count


@pytest.mark.parametrize(("bits", "wrong"), [((1, 2, 3), 0), ((3, 4, 5, 6, 7), 2)])
def test_the_edges_stay_where_half_to_even_leaves_the_range(bits: tuple[int, ...], wrong: int) -> None:
    axis = Axis("x", "layer", "weight_bits", bits)
    assert round(bits[0] - 0.5) == wrong  # what the published formula gives for an action of 0
    assert round(bits[-1] + 0.5) == bits[-1] + 1  # and of 1
    assert (_level(axis, 0.0), _level(axis, 1.0)) == (0, len(bits) - 1)
    edges = [_level(axis, i / len(bits)) for i in range(1, len(bits))]
    assert edges == list(range(1, len(bits)))


def test_every_action_a_level_stands_for_leads_back_to_it() -> None:
    for walk in WALKS.values():
        for axis in (walk.space.axes[i] for step in walk.steps for i in step.axes.values()):
            assert [_level(axis, _action(axis, i)) for i in range(len(axis.values))] == list(range(len(axis.values)))


def test_every_owned_decision_has_exactly_one_step() -> None:
    for walk in (*WALKS.values(), *MODES.values()):
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


@pytest.mark.parametrize("mode", list(MODES))
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_any_walk_of_any_mode_ends_within_the_budget_and_its_states_are_shares(mode: str, seed: int) -> None:
    walk, rng = MODES[mode], np.random.default_rng(seed)
    bold = rng.uniform() ** 0.3
    levels = run_episode(walk, walk.space.largest, lambda s: (rng.uniform(size=walk.action_size) * 2 * bold).clip(0, 1))
    assert walk.projector.feasible(levels)
    states = walk.states(levels)
    assert states.shape == (len(walk.steps), walk.state_size)
    assert ((states >= 0) & (states <= 1)).all()
    assert np.array_equal(walk.settle(levels), levels)  # what was executed is executed again
    drawn = walk.settle(walk.space.sample(rng))
    assert walk.projector.feasible(drawn)


def test_haq_takes_two_steps_a_layer_and_the_state_says_which() -> None:
    walk = MODES["haq"]
    layers = len(walk.space.facts.layers)
    assert len(walk.steps) == 2 * layers and walk.action_size == 1 and walk.state_size == 12
    assert [next(iter(s.axes)) for s in walk.steps] == ["weight_bits", "activation_bits"] * layers
    assert [s.layer for s in walk.steps] == [i for i in range(layers) for _ in range(2)]
    levels = run_episode(walk, walk.space.largest, lambda state: np.full(1, 0.6))
    states = walk.states(levels)
    assert states[:, -1].tolist() == [0.0, 1.0] * layers
    executed = [walk.executed(levels, s)[0] for s in walk.steps]
    assert states[1:, 10].tolist() == executed[:-1]  # an activation's step sees the weights of the same layer


def test_an_unclipped_walk_executes_the_action_and_repairs_at_the_end() -> None:
    walk = MODES["haq"]
    seen = []

    def bold(state: np.ndarray) -> np.ndarray:
        seen.append(state)
        return np.ones(1)

    levels = run_episode(walk, walk.space.largest, bold)
    top = walk.space.largest
    assert np.array_equal(walk.execute(top, walk.steps[3], np.ones(1)), top)
    assert not walk.projector.feasible(top) and walk.projector.feasible(levels)
    assert all(s[10] == walk.executed(top, walk.steps[i])[0] for i, s in enumerate(seen[1:]))  # as chosen, at the walk
    remembered = transitions(walk, levels, 0.0)
    assert [t.action.tolist() for t in remembered] == [walk.executed(levels, s).tolist() for s in walk.steps]
    assert any(t.action[0] < 0.9 for t in remembered)  # as repaired, in memory


def test_what_the_agent_does_not_own_stays_as_given() -> None:
    problem = table.problem("codebooks", "size<=20%")
    walk = Walk(problem, HAQ)
    assert walk.owned == ("weight_bits",)
    levels = run_episode(walk, problem.space.largest, lambda state: np.full(1, 0.4))
    free = ~walk.owned_axes
    assert np.array_equal(levels[free], problem.space.largest[free])  # k-means everywhere
    assert problem.projector.feasible(levels)


def test_amcs_walk_shows_eleven_features_whatever_else_is_open() -> None:
    walk = MODES["amc"]
    assert walk.state_size == 11 and walk.action_size == 1
    given = walk.space.largest
    plain = walk.states(walk.start(given))
    given[~walk.space.ordered] = 2
    assert np.array_equal(walk.states(walk.start(given)), plain)


def test_a_budgeted_walk_shows_the_budget_and_keeps_it() -> None:
    walk, rng = MODES["budgeted"], np.random.default_rng(0)
    assert walk.priced == "macs"
    low, high = walk.reach
    dense = walk.projector.costing.dense()["macs"]
    assert low == pytest.approx(walk.projector.costing.of(walk.space.smallest)["macs"] / dense)
    assert high == pytest.approx(0.6)
    for share in (low, 0.3, 0.45, high, 0.0, 2.0):
        episode = walk.under(share)
        cut = min(max(share, low), high)
        assert episode.budget == pytest.approx((cut - low) / (high - low))
        levels = run_episode(episode, walk.space.largest, lambda state: rng.uniform(0.5, 1.0, size=1))
        assert episode.share(levels) <= cut + 1e-12
        assert walk.projector.feasible(levels)
        assert np.allclose(episode.states(levels)[:, -1], episode.budget)
    assert walk.budget == 1.0 and walk.projector is walk.problem.projector


def test_what_fits_one_budget_is_asked_anew_under_another() -> None:
    walk = MODES["budgeted"]
    start, step = walk.start(walk.space.largest), walk.steps[0]
    for share in (0.2, walk.reach[0]):
        roomy = walk.execute(start, step, np.ones(1))  # the last point that was weighed
        tight = walk.under(share)
        levels = tight.execute(start, step, np.ones(1))
        assert tight.projector.feasible(levels) and (levels < roomy).any()


def test_a_policy_is_remembered_for_the_budget_it_meets_exactly() -> None:
    """Hindsight: under that budget the walk executes the same policy, with nothing to spare."""
    walk, rng = MODES["budgeted"], np.random.default_rng(0)
    for _ in range(10):
        levels = run_episode(walk.under(rng.uniform(*walk.reach)), walk.space.largest, lambda s: rng.uniform(size=1))
        steps = transitions(walk, levels, 0.5)
        low, high = walk.reach
        assert steps[0].state[-1] == pytest.approx((walk.share(levels) - low) / (high - low))
        met = walk.under(walk.share(levels))
        assert np.array_equal(met.settle(levels), levels)


def test_a_digest_tells_walks_apart_that_an_agent_must_not_confuse() -> None:
    problem = table.problem("channels-bits", "macs<=60%,size<=25%")
    settings = [WalkSettings(), WalkSettings(stepwise=True), WalkSettings(("keep",)), WalkSettings(budgeted=True)]
    digests = {Walk(problem, s).digest for s in settings}
    digests |= {Walk(table.problem("channels")).digest, Walk(table.problem("channels", depth=20)).digest}
    assert len(digests) == len(settings) + 2
    assert Walk(table.problem("channels", "macs<=30%")).digest in digests  # another budget is the same walk
    assert Walk(table.problem("channels-bits", "size<=30%")).digest not in digests  # features of another cost


@pytest.mark.parametrize("space", list(REGISTERED))
def test_every_decision_of_others_is_shown_at_some_step(space: str) -> None:
    problem = table.problem(space, "size<=100%")
    owned = tuple(f for f in RATIOS if f in problem.space.fields)
    if not owned:
        return
    walk = Walk(problem, WalkSettings(owned))
    lowest = walk.space.smallest
    before = walk.states(lowest)
    columns = slice(10 + walk.action_size, 10 + walk.action_size + len(walk.others))
    for index in np.flatnonzero(~walk.owned_axes & (walk.space.sizes > 1)):
        other = lowest.copy()
        other[index] = walk.space.sizes[index] - 1
        assert not np.array_equal(walk.states(other)[:, columns], before[:, columns]), walk.space.axes[index].key


def test_criteria_of_a_group_and_of_a_layer_are_told_apart() -> None:
    walk = Walk(table.problem("joint", "size<=50%"), WalkSettings(("keep", "sparsity")))
    assert {("group", "criterion"), ("layer", "criterion")} <= set(walk.others)
    for step in walk.steps:
        places = {(walk.space.axes[i].kind, walk.space.axes[i].place) for i in step.axes.values()}
        for index in (i for indices in step.others.values() for i in indices):
            axis = walk.space.axes[index]
            assert (
                (axis.kind, axis.place) in places
                or not any(axis.kind == kind for kind, _ in places)
                or (axis.place not in {walk.space.axes[i].place for s in walk.steps for i in s.axes.values()})
            )


@pytest.mark.parametrize(
    ("budget", "priced"),
    [("size<=10MB", "size"), ("size<=10MB,macs<=50%", "macs"), ("macs<=80%,size<=30%", "size"), ("macs<=60%", "macs")],
)
def test_a_budget_is_about_the_limit_that_binds_most_and_reaches_no_further_than_the_model(
    budget: str, priced: str
) -> None:
    walk = Walk(table.problem("channels-bits", budget), WalkSettings(budgeted=True))
    assert walk.priced == priced
    assert walk.reach[1] <= walk.share(walk.space.largest)
    top = walk.under(walk.reach[1])
    assert top.budget == 1.0
    best, allowed = (p.project(walk.space.largest, fill=True) for p in (top.projector, walk.projector))
    assert np.array_equal(best, allowed)


@pytest.mark.parametrize("share", [np.nan, np.inf])
def test_a_budget_that_is_no_number_is_refused(share: float) -> None:
    with pytest.raises(PolicyError, match="must be a share of the dense cost"):
        MODES["budgeted"].under(share)
