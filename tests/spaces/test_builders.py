"""What each space opens, and that everything it opens is legal."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from automc.errors import PolicyError, SpaceError
from automc.graph.facts import Group, ModelFacts
from automc.pattern import family, member, parse
from automc.policy import FULL_BITS, Policy
from automc.projection import Costing
from automc.registry import SPACES
from automc.search_spaces.bits import bits, shared_bits, weight_bits
from automc.search_spaces.channels import all_channels, channels, keep_axis
from automc.search_spaces.criteria import criteria
from automc.search_spaces.joint import SINGLE, channels_bits, channels_bops, channels_ranks, joint, zeros_bits
from automc.search_spaces.options import Bits, Codebooks, Factors, Ranking, Widths, Zeros
from automc.search_spaces.ranks import ranks
from automc.search_spaces.weights import semi_structured, weights
from automc.space import SearchSpace, in_forward_order
from tests.spaces import models

NETS = ("option_a", "option_b", "depthwise", "transformer", "wide")


def facts_of(name: str) -> ModelFacts:
    return models.wide() if name == "wide" else models.facts_of(name)


def group_of(units: int) -> Group:
    return replace(models.wide().groups[0], units=units)


@given(
    units=st.integers(2, 700),
    multiple=st.integers(1, 64),
    least=st.floats(0.01, 1.0),
    most=st.integers(2, 80),
)
def test_kept_counts_are_multiples_or_all_of_them(units: int, multiple: int, least: float, most: int) -> None:
    axis = keep_axis(group_of(units), Widths(multiple_of=multiple, least_keep=least, most_levels=most))
    counts = [round(float(share) * units) for share in axis.values]
    assert counts[-1] == units and axis.values[-1] == 1.0
    assert all(n % multiple == 0 for n in counts[:-1])
    assert counts == sorted(set(counts)) and len(counts) <= most
    assert min(counts) >= min(units, max(1, round(least * units)))
    legal = [n for n in range(max(1, round(least * units)), units) if n % multiple == 0]
    assert (len(counts) > 1) == bool(legal)
    if len(legal) < most:
        assert counts == [*legal, units]


@pytest.mark.parametrize("name", ["channels", "channels-all", "criteria", "channels-bits", "joint"])
@pytest.mark.parametrize("net", NETS)
@given(seed=st.integers(0, 2**31), multiple=st.sampled_from([2, 4, 8]))
@settings(max_examples=10)
def test_sampled_policies_keep_multiples_after_rounding(net: str, name: str, seed: int, multiple: int) -> None:
    facts = facts_of(net)
    space = SearchSpace(facts, SPACES.load(name)(facts, widths=Widths(multiple_of=multiple)))
    costing = Costing(space)
    units = costing.candidates(space.sample(np.random.default_rng(seed))[None]).units[0]
    dense = np.array([g.units for g in facts.groups])
    assert ((units % multiple == 0) | (units == dense)).all()


def test_a_group_without_a_smaller_legal_count_has_no_axis() -> None:
    facts = models.facts_of("option_a")  # groups of 8, 16 and 32
    opened = channels(facts, widths=Widths(multiple_of=8))
    assert {facts.group(a.place).units for a in opened} == {16, 32}
    assert channels(facts, widths=Widths(multiple_of=32)) == ()
    assert len(all_channels(facts)) == len(facts.groups)
    assert all_channels(facts) == channels(facts, widths=Widths(coupled=True))


@pytest.mark.parametrize("net", NETS)
def test_bits_of_weights_and_inputs_stand_beside_each_other_and_ends_keep_eight(net: str) -> None:
    facts = facts_of(net)
    axes = bits(facts)
    assert [a.field for a in axes] == ["weight_bits", "activation_bits"] * (len(axes) // 2)
    assert [a.places for a in axes[::2]] == [a.places for a in axes[1::2]]
    assert sorted(p for a in axes[::2] for p in a.places) == sorted(x.name for x in facts.layers)
    ends = {facts.layers[0].name, facts.layers[-1].name}
    for axis in axes:
        wanted = (8, 32) if ends & set(axis.places) else (2, 3, 4, 5, 6, 7, 8, 32)
        assert axis.values == wanted
    assert {a.places for a in axes if a.also} == set(facts.fused)
    assert not any(a.also for a in weight_bits(facts))


def test_what_is_left_out_of_a_list_is_float_and_nothing_else() -> None:
    facts = models.facts_of("transformer")
    assert {a.field for a in bits(facts, levels=Bits(activations=()))} == {"weight_bits"}
    assert bits(facts, levels=Bits(weights=(), activations=())) == ()
    assert bits(facts, levels=Bits(weights=(32,), activations=(), ends=(8,)))[0].values == (8, 32)
    few = bits(facts, levels=Bits(weights=(8, 4, 8), ends=()))
    assert {a.values for a in few if a.field == "weight_bits"} == {(4, 8, FULL_BITS)}
    assert {a.values for a in shared_bits(facts, codebooks=Codebooks(("kmeans",)))[1::2]} == {("kmeans",)}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["weights", "n:m", "halves", "cpu-blocks", "sparse-tensor-cores"])
def test_every_share_is_legal_in_every_pattern(net: str, name: str) -> None:
    """A policy checks its patterns' shares; single, N:M and blocks are open in one space."""
    facts = facts_of(net)
    space = SearchSpace(facts, SPACES.load(name)(facts))
    for levels in itertools.product(range(max(space.sizes)), repeat=2):
        chosen = np.array([levels[a.field == "pattern"] for a in space.axes]) % space.sizes
        policy = space.decode(chosen)
        assert np.array_equal(space.encode(policy), chosen)
        for place, decision in policy.layers:
            pattern, layer = parse(decision.pattern), facts.layer(place)
            assert pattern.share is None or decision.sparsity in (0.0, pattern.share)
            assert pattern.fits(layer.out_channels // layer.groups, layer.in_channels // layer.groups)


@given(m=st.integers(2, 16), data=st.data())
def test_a_family_has_one_member_at_each_share_and_no_other(m: int, data: st.DataObject) -> None:
    gone = data.draw(st.integers(1, m - 1))
    found = member(f"N:{m}", gone / m)
    assert found == f"{m - gone}:{m}" and parse(found).share == pytest.approx(gone / m)
    assert family(found) == f"N:{m}" == family(f"N:{m}")
    with pytest.raises(PolicyError, match=f"multiple of 1/{m}"):
        member(f"N:{m}", (gone + 0.5) / m)


def test_other_names_are_families_of_themselves() -> None:
    for name in ("element", "1x4", "16x1"):
        assert family(name) == name == member(name, 0.3)
    with pytest.raises(PolicyError, match="choose one"):
        family("cross")


def test_a_space_of_weights_opens_single_ones_n_of_m_and_blocks_together() -> None:
    facts = models.wide()
    patterns = {p for a in weights(facts) if a.field == "pattern" for p in a.values}
    assert {"element", "N:8", "4x1"} <= patterns
    assert {a.values for a in semi_structured(facts) if a.field == "sparsity"} == {(0.5, 0.0)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsities": (0.3,)}, "multiple of 1/8; 0.3 is none: choose 0.25"),
        ({"sparsities": (0.99,), "patterns": ("N:4",)}, "choose 0.75"),
        ({"patterns": ("2:4",)}, "open at 0.5 alone"),
        ({"sparsities": (0.5,), "patterns": ("N:4", "2:4")}, "told apart"),
        ({"patterns": ("2:2",)}, "fewer than M of M"),
        ({"criteria": ("obss",)}, "did you mean 'obs'"),
        ({"sparsities": (1.0,)}, "less than 1"),
    ],
)
def test_illegal_zeros_are_refused_before_there_is_a_model(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Zeros(**options)


@pytest.mark.parametrize("net", NETS)
def test_joined_spaces_go_forward_and_hold_the_decisions_of_a_layer_side_by_side(net: str) -> None:
    facts = facts_of(net)
    for axes in (joint(facts), channels_bits(facts), channels_bops(facts)):
        layers = SearchSpace(facts, axes).layers
        assert (np.diff(layers) >= 0).all()
        assert in_forward_order(axes, facts) == axes


def test_the_joint_space_opens_every_kind_of_decision() -> None:
    kinds = {(a.kind, a.field) for a in joint(models.wide())}
    layer = ("rank", "factorization", "sparsity", "pattern", "criterion", "weight_bits", "activation_bits")
    assert kinds == {("block", "keep"), ("group", "keep"), ("group", "criterion"), *(("layer", f) for f in layer)}


def test_smaller_spaces_are_what_their_names_say() -> None:
    facts = models.wide()
    assert set(channels_bits(facts)) == {*criteria(facts), *weight_bits(facts)}
    assert set(channels_bops(facts)) == {*criteria(facts), *bits(facts)}
    assert set(zeros_bits(facts)) == {*weights(facts, zeros=SINGLE), *bits(facts)}


def test_of_several_methods_each_layer_takes_the_first_that_is_defined_on_it() -> None:
    facts = models.wide()
    kernels = {x.name: x.kernel for x in facts.layers}
    methods = {a.place: a.values for a in channels_ranks(facts) if a.field == "factorization"}
    assert set(methods.values()) == {("spatial",), ("svd",)}
    assert all((values == ("spatial",)) == (kernels[name] == (3, 3)) for name, values in methods.items())
    assert {a.field for a in channels_ranks(facts)} == {"keep", "criterion", "rank", "factorization"}


def test_factors_that_must_be_float_are_not_opened_beside_bits() -> None:
    facts = models.wide()
    for method in ("tucker2", "cp"):
        with pytest.raises(SpaceError, match=r"must be dense and float; \w+ of layer .* is open, too: factor by svd"):
            joint(facts, factors=Factors(method=method))
    assert any(a.values == ("spatial",) for a in joint(facts, factors=Factors(method="spatial")))


@pytest.mark.parametrize("net", NETS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_ranks_can_be_had_with_the_fewest_channels(net: str, seed: int) -> None:
    facts = facts_of(net)
    space = SearchSpace(facts, joint(facts, widths=Widths(coupled=True, least_keep=0.3)))
    rng = np.random.default_rng(seed)
    low = np.array([a.field in ("keep", "rank") and a.kind != "block" for a in space.axes])
    point = np.where(low & (rng.random(len(low)) < 0.8), 0, space.sample(rng))
    assert all(np.isfinite(v) for v in Costing(space).of(point).values())  # PolicyError where a rank cannot be had


def test_options_reach_every_part_of_a_joined_space() -> None:
    facts = models.wide()
    axes = joint(
        facts,
        widths=Widths(least_keep=0.5, multiple_of=16),
        ranking=Ranking(("l2",)),
        factors=Factors(shares=(0.25,)),
        zeros=Zeros(sparsities=(0.5,), patterns=("element", "2:4")),
        levels=Bits(weights=(4,), activations=(8,)),
    )
    values = {(a.kind, a.field): a.values for a in axes if a.place == "layer2.0.conv2" or a.kind == "group"}
    assert min(values["group", "keep"]) == 0.5 and values["group", "criterion"] == ("l2",)
    assert values["layer", "rank"] == (0.25, 1.0) and values["layer", "sparsity"] == (0.5, 0.0)
    assert values["layer", "pattern"] == ("element", "2:4")
    assert values["layer", "weight_bits"] == (4, 32) and values["layer", "activation_bits"] == (8, 32)


def test_ranks_outside_of_a_layers_reach_are_no_levels() -> None:
    facts = models.facts_of("option_a")
    assert all(1.0 in a.values and len(a.values) > 1 for a in ranks(facts) if a.field == "rank")
    assert ranks(facts, factors=Factors(shares=(0.001,))) == ()


def test_untraceable_models_keep_what_needs_no_channels() -> None:
    facts = replace(models.facts_of("option_a"), groups=(), blocks=(), traceable=False)
    assert channels(facts) == () and {a.kind for a in joint(facts)} == {"layer"}
    assert {
        a.values for a in weights(facts) if a.field == "criterion"
    } == set()  # magnitude alone, which is the default
    assert Policy(facts.fingerprint) == SearchSpace(facts, ()).decode([])
