"""One decision for several places: who reads the same tensor, and what decoding, costs and records make of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.compression.compress import Compressor
from automc.errors import SpaceError, StudyError
from automc.evaluation import Evaluation
from automc.graph.trace import trace_model
from automc.policy import LayerDecision, Policy, Recipe
from automc.projection import Costing
from automc.registry import SPACES
from automc.report import decisions
from automc.space import Axis, SearchSpace
from automc.study import Study
from tests.spaces import models

NET = models.facts_of("transformer")
QKV = tuple(f"blocks.0.{name}_proj" for name in "qkv")


class Readers(nn.Module):
    """Linear layers that read one tensor, views of it, it again after a change in place, and another one."""

    def __init__(self, untraceable: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.view, self.late, self.other, self.twice = (nn.Linear(6, 6) for _ in range(6))
        self.conv = nn.Conv1d(6, 6, 1)
        self.untraceable = untraceable

    def forward(self, x: Tensor) -> Tensor:
        if self.untraceable and float(x.sum()) > 1e9:
            return x
        x = x * 2
        y = self.a(x) + self.b(x) + self.view(x.flatten(0, 1)).view_as(x)
        y = y + self.conv(x.transpose(1, 2)).transpose(1, 2)
        x.add_(y)
        y = self.late(x) + self.other(x + 0)
        return self.twice(self.twice(y))


@pytest.mark.parametrize("untraceable", [False, True])
def test_layers_are_fused_that_read_the_same_values_of_the_same_tensor(untraceable: bool) -> None:
    facts = trace_model(Readers(untraceable).eval(), (torch.randn(2, 4, 6),), verify=False).facts
    assert facts.traceable != untraceable
    assert facts.fused == (("a", "b"),)
    assert facts.layer("twice").reads == "" and facts.layer("late").reads == "late"


def test_query_key_and_value_and_the_gate_of_a_perceptron_are_fused() -> None:
    assert [names for names in NET.fused if names[0].startswith("blocks.0")] == [QKV, ("blocks.0.gate", "blocks.0.up")]
    assert models.facts_of("option_b").fused == ()  # convolutions beside each other run by themselves


def test_fingerprints_do_not_know_what_layers_read() -> None:
    other = replace(NET, layers=tuple(replace(x, reads="") for x in NET.layers))
    assert other.fused == () and other.fingerprint == NET.fingerprint


def tied_space(seed: int) -> SearchSpace:
    """Every kind of decision, some drawn at random to be made together."""
    rng = np.random.default_rng(seed)
    axes = []
    by_field: dict[tuple[Any, ...], list[Axis]] = {}
    for axis in SPACES.load("joint")(NET):
        by_field.setdefault((axis.kind, axis.field, axis.values), []).append(axis)
    for alike in by_field.values():
        for start in range(0, len(alike), 4):
            some = alike[start : start + 4]
            cut = int(rng.integers(len(some))) + 1
            places = [place for axis in some[:cut] for place in axis.places]
            axes += [replace(some[0], place=places[0], also=tuple(places[1:])), *some[cut:]]
    return SearchSpace(NET, tuple(axes))


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_a_tied_point_survives_decode_and_encode_and_decides_all_its_places_alike(seed: int) -> None:
    space = tied_space(seed)
    point = space.sample(np.random.default_rng(seed))
    policy = space.decode(point)
    assert np.array_equal(space.encode(policy), point)
    assert np.array_equal(space.encode(Policy.from_json(policy.to_json())), point)
    of = {"group": policy.group, "layer": policy.layer, "block": policy.block}
    for axis, level in zip(space.axes, point, strict=True):
        for place in axis.places:
            if axis.field != "pattern":
                assert getattr(of[axis.kind](place), axis.field) == axis.values[level]


def test_policies_name_layers_in_forward_order_whatever_is_tied() -> None:
    ends = NET.layers[0].name, NET.layers[-1].name
    first = Axis(ends[0], "layer", "weight_bits", (8, 32), (ends[1],))
    space = SearchSpace(NET, (first, Axis(QKV[1], "layer", "weight_bits", (4, 32))))
    assert [name for name, _ in space.decode([0, 0]).layers] == [ends[0], QKV[1], ends[1]]


def test_a_policy_that_decides_tied_places_differently_is_read_at_the_first() -> None:
    space = SearchSpace(NET, (Axis(QKV[0], "layer", "weight_bits", (2, 4, 8, 32), QKV[1:]),))
    layers = ((QKV[0], LayerDecision(weight_bits=5)), (QKV[1], LayerDecision(weight_bits=8)))
    assert space.encode(Policy(NET.fingerprint, (), layers)).tolist() == [1]


@pytest.mark.parametrize("field", ["weight_bits", "activation_bits", "sparsity"])
def test_a_tied_change_costs_what_single_changes_cost_together(field: Any) -> None:
    values = {"sparsity": (0.75, 0.5, 0.0)}.get(field, (4, 8, 32))
    tied = Costing(SearchSpace(NET, (Axis(QKV[0], "layer", field, values, QKV[1:]),)))
    alone = Costing(SearchSpace(NET, tuple(Axis(name, "layer", field, values) for name in QKV)))
    for level in range(3):
        dense, together = tied.of(np.array([2])), tied.of(np.array([level]))
        single = [alone.of(np.where(np.arange(3) == i, level, 2)) for i in range(3)]
        for cost in dense:
            assert dense[cost] - together[cost] == pytest.approx(sum(dense[cost] - s[cost] for s in single))
        assert together == tied.of_policy(tied.space.decode([level]))


def test_groups_of_different_width_may_keep_the_same_share() -> None:
    facts = models.wide()
    first, *others = (g.name for g in facts.groups if not g.coupled)
    space = SearchSpace(facts, (Axis(first, "group", "keep", (0.25, 0.5, 1.0), tuple(others)),))
    costing = Costing(space)
    units = costing.candidates(np.array([[0], [1], [2]])).units
    inner = np.array([not g.coupled for g in facts.groups])
    widths = np.array([g.units for g in facts.groups])
    assert np.array_equal(units[:, inner], np.outer([0.25, 0.5, 1.0], widths[inner]))
    assert (units[:, ~inner] == widths[~inner]).all()


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return models.compressor_of("option_b")


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
def test_errors_of_a_tied_axis_are_summed_and_its_thresholds_are_the_largest(compressor: Compressor) -> None:
    facts, recipe = models.facts_of("option_b"), Recipe(images=64, rows=512)
    inner = [g.name for g in facts.groups if not g.coupled]
    layers, blocks = [x.name for x in facts.layers[2:5]], [b.name for b in facts.blocks]
    kinds: list[tuple[Any, list[str], Any, tuple[Any, ...]]] = [
        ("group", inner, "keep", (0.25, 0.5, 1.0)),
        ("layer", layers, "weight_bits", (3, 8, 32)),
        ("layer", layers, "activation_bits", (4, 32)),
        ("layer", layers, "sparsity", (0.5, 0.0)),
        ("block", blocks, "keep", (0.0, 1.0)),
    ]
    for kind, names, field, values in kinds:
        tied = SearchSpace(facts, (Axis(names[0], kind, field, values, tuple(names[1:])),), recipe)
        alone = SearchSpace(facts, tuple(Axis(name, kind, field, values) for name in names), recipe)
        assert len(names) > 1
        [errors] = compressor.errors(tied)
        np.testing.assert_allclose(errors, np.sum(compressor.errors(alone), axis=0), rtol=1e-9)
        assert errors[-1] == 0 < errors[0]
        [found] = compressor.thresholds(tied, "l1")
        assert np.array_equal(found, np.max(compressor.thresholds(alone, "l1"), axis=0))


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
def test_compressing_a_tied_point_rounds_every_layer_and_the_report_names_each() -> None:
    space = SearchSpace(NET, (Axis(QKV[0], "layer", "weight_bits", (4, 32), QKV[1:]),), Recipe(images=64, rows=512))
    policy = space.decode([0])
    small = models.compressor_of("transformer").compress(policy)
    for name in QKV:
        holder: Any = small.get_submodule(name)
        assert all(len(row.unique()) <= 16 for row in holder.layer.weight)
    [table] = decisions.tables(policy)
    assert [str(cell) for cell in table.columns[0].cells] == list(QKV)


def test_a_study_goes_on_with_its_tied_decisions_and_refuses_others(tmp_path: Path) -> None:
    tied = Axis(QKV[0], "layer", "weight_bits", (4, 32), QKV[1:])
    plain = Axis("head", "layer", "weight_bits", (8, 32))
    meta = {"fingerprint": NET.fingerprint, "budget": "size<=50%", "recipe": {}, "limits": {"size": 1e6}}
    study = Study.create(tmp_path / "s.journal", "s", meta, (tied, plain))
    space = SearchSpace(NET, (tied, plain))
    study.record(Evaluation(space.decode([0, 1]), "ok", 0.5, (("size", 9e5),)))
    again = Study.open(tmp_path / "s.journal")
    assert again.axes == (tied, plain)
    assert again.evaluations[0].policy == space.decode([0, 1])
    assert again.meta["axes"][1] == ["head", "layer", "weight_bits", [8, 32]]  # as before there were ties
    with pytest.raises(StudyError, match="the space it began with"):
        Study.create(tmp_path / "s.journal", "s", meta, (replace(tied, also=()), plain))


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ((Axis("q", "layer", "weight_bits", (4, 32)),), "'q' is none"),
        ((Axis(QKV[0], "layer", "weight_bits", (4, 32), ("w",)),), "'w' is none"),
        ((Axis(QKV[0], "group", "keep", (0.5, 1.0)),), f"groups of the model; '{QKV[0]}'"),
        ((Axis(QKV[0], "layer", "weight_bits", (4, 32), QKV[:1]),), "opened twice"),
        (
            (Axis(QKV[0], "layer", "weight_bits", (4, 32), QKV[1:]), Axis(QKV[2], "layer", "weight_bits", (8, 32))),
            f"weight_bits of layer '{QKV[2]}' is opened twice",
        ),
    ],
)
def test_a_space_of_unknown_places_or_double_decisions_is_refused(axes: tuple[Axis, ...], said: str) -> None:
    with pytest.raises(SpaceError, match=said):
        SearchSpace(NET, axes)
