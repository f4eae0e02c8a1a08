"""Points whose models are equal are told apart no longer."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.errors import SpaceError
from automc.projection import Costing
from automc.registry import SPACES
from automc.space import Axis, SearchSpace, Value, _layers_of
from tests.searchers import table


def space_of(name: str) -> SearchSpace:
    facts = table.facts(8)
    return SearchSpace(facts, SPACES.load(name)(facts))


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(["criteria", "weights", "joint", "codebooks", "ranks"]))
def test_a_plain_point_decides_the_same_of_every_layer_and_is_its_own_plain_point(seed: int, name: str) -> None:
    space = space_of(name)
    rng = np.random.default_rng(seed)
    point = np.where(rng.random(len(space.axes)) < 0.4, space.largest, space.sample(rng))
    point = np.where(space.ordered, point, space.sample(rng))
    plain = space.plain(point)
    before, after = space.decode(point), space.decode(plain)
    assert np.array_equal(space.plain(plain), plain)
    gone = {layer for block in before.dropped for layer in space.facts.block(block).layers}
    assert before.blocks == after.blocks
    effective = [{n: d.effective for n, d in p.layers if n not in gone} for p in (before, after)]
    assert effective[0] == effective[1]
    for (name, one), (_, two) in zip(before.groups, after.groups, strict=True):
        if {*space.facts.group(name).producers, *space.facts.group(name).consumers} <= gone:
            continue
        assert one.keep == two.keep, name
        assert one.keep == 1.0 or one == two


def test_only_what_means_nothing_is_changed() -> None:
    space = space_of("criteria")
    point = np.where(space.ordered, space.largest - 1, 2)
    assert np.array_equal(space.plain(point), point)
    dense = np.where(space.ordered, space.largest, 2)
    changed = space.plain(dense) != dense
    assert changed.any() and all(space.axes[i].field == "criterion" for i in np.flatnonzero(changed))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(["depth-channels", "joint"]))
def test_what_is_inside_a_block_that_is_left_out_says_nothing(seed: int, name: str) -> None:
    space, rng = space_of(name), np.random.default_rng(seed)
    gone = {b.name for b in space.facts.blocks if rng.random() < 0.5}
    blocks = np.array([a.kind == "block" for a in space.axes])
    out = np.array([a.place in gone for a in space.axes]) & blocks
    point = np.where(blocks, np.where(out, 0, 1), space.sample(rng))
    layers = {layer for b in space.facts.blocks if b.name in gone for layer in b.layers}
    touched = [set(_layers_of(a, space.facts)) for a in space.axes]
    inside = np.array([bool(t) and t <= layers for t in touched])
    other = np.where(inside, space.sample(rng), point)
    assert np.array_equal(space.plain(point), space.plain(other))
    assert (space.plain(point)[inside] == 0).all()
    costs = [Costing(space).of(p) for p in (point, other, space.plain(point))]
    assert costs[0] == costs[1] == costs[2]


def test_a_tied_axis_means_something_while_one_of_its_places_does() -> None:
    facts = table.facts(8)
    first, second = (x.name for x in facts.layers[1:3])
    axes = (
        Axis(first, "layer", "sparsity", (0.5, 0.0)),
        Axis(first, "layer", "criterion", ("obs", "l1"), also=(second,)),
        Axis(second, "layer", "sparsity", (0.5, 0.0)),
    )
    space = SearchSpace(facts, axes)
    assert space.plain(np.array([1, 1, 0])).tolist() == [1, 1, 0]
    assert space.plain(np.array([0, 1, 1])).tolist() == [0, 1, 1]
    assert space.plain(np.array([1, 1, 1])).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("field", "values", "said"),
    [
        ("weight_bits", (), "each once"),
        ("weight_bits", (4, 4, 32), "each once"),
        ("weight_bits", (32, 4), "cheapest first"),
        ("sparsity", (0.0, 0.5), "cheapest first"),
        ("codebook", ("kmeans", "uniform"), "cheapest first"),
        ("factorization", ("svd", "cp"), "factored in one way"),
    ],
)
def test_an_axis_out_of_order_is_refused(field: Any, values: tuple[Value, ...], said: str) -> None:
    facts = table.facts(8)
    with pytest.raises(SpaceError, match=said):
        SearchSpace(facts, (Axis(facts.layers[1].name, "layer", field, values),))
