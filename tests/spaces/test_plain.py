"""Points whose models are equal are told apart no longer."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.registry import SPACES
from automc.space import SearchSpace
from tests.searchers import table


def space_of(name: str) -> SearchSpace:
    facts = table.facts(8)
    return SearchSpace(facts, SPACES.load(name)(facts))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(["criteria", "weights", "joint", "codebooks", "ranks"]))
def test_a_plain_point_decides_the_same_of_every_layer_and_is_its_own_plain_point(seed: int, name: str) -> None:
    space = space_of(name)
    rng = np.random.default_rng(seed)
    point = np.where(rng.random(len(space.axes)) < 0.4, space.largest, space.sample(rng))
    point = np.where(space.ordered, point, space.sample(rng))
    plain = space.plain(point)
    before, after = space.decode(point), space.decode(plain)
    assert np.array_equal(space.plain(plain), plain)
    assert {n: d.effective for n, d in before.layers} == {n: d.effective for n, d in after.layers}
    for (name, one), (_, two) in zip(before.groups, after.groups, strict=True):
        assert one.keep == two.keep, name
        assert one.keep == 1.0 or one == two


def test_only_what_means_nothing_is_changed() -> None:
    space = space_of("criteria")
    point = np.where(space.ordered, space.largest - 1, 2)
    assert np.array_equal(space.plain(point), point)
    dense = np.where(space.ordered, space.largest, 2)
    changed = space.plain(dense) != dense
    assert changed.any() and all(space.axes[i].field == "criterion" for i in np.flatnonzero(changed))
