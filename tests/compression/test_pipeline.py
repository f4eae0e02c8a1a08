"""Policy to module: what is counted, scored, saved and loaded is one and the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from automc import artifact
from automc.budget import Budget
from automc.compression.quantize import bare
from automc.errors import ArtifactError, BudgetError, PolicyError
from automc.policy import GroupDecision, LayerDecision, Policy, Recipe
from automc.projection import Projector
from automc.space import SearchSpace

RECIPES = [Recipe(reconstruct=kind) for kind in ("none", "layerwise", "sequential")]


def test_dense_policy_gives_the_dense_model_bit_by_bit(setup):
    small = setup.compressor.compress(setup.space.decode(setup.space.largest))
    for name, tensor in setup.task.model.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name]), name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.reconstruct)
def test_apply_score_and_reload_are_equal(setup, recipe, tmp_path: Path):
    space = SearchSpace(setup.space.facts, setup.space.axes, recipe)
    for seed in range(3):
        policy = space.decode(space.sample(np.random.default_rng(seed)))
        evaluation = setup.evaluator.evaluate(policy)
        assert evaluation.ok, evaluation.reason
        small = setup.compressor.compress(policy)
        artifact.save(small, tmp_path)
        again = artifact.load(tmp_path, setup.task.factory)
        assert setup.evaluator.score(small) == evaluation.score == setup.evaluator.score(again)
        x = setup.task.validation[0][0][0]
        assert torch.equal(small(x), again(x))
        assert all(
            torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.reconstruct)
def test_rounding_what_a_layer_reads_leaves_what_is_decided_of_its_weights(setup, recipe):
    facts = setup.graph.facts
    decisions = [LayerDecision(sparsity=0.5, criterion="l1", activation_bits=bits) for bits in (32, 8)]
    for decision in decisions:  # the second may find what the first left behind
        layers = tuple((x.name, decision) for x in facts.layers)
        small = setup.compressor.compress(Policy(facts.fingerprint, (), layers, recipe))
        for x in facts.layers:
            weight: Any = bare(small.get_submodule(x.name)).weight
            assert int((weight == 0).sum()) >= weight.numel() // 2, x.name


def test_predicted_costs_equal_those_counted_on_the_module(setup, tmp_path: Path):
    rng = np.random.default_rng(0)
    for _ in range(5):
        policy = setup.space.decode(setup.space.sample(rng))
        predicted = setup.costing.of_policy(policy)
        small = setup.compressor.compress(policy)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            small(*(x[:1] for x in setup.task.example_inputs))
        assert counter.get_total_flops() / 2 == predicted["macs"]
        assert sum(p.numel() for p in small.parameters()) == predicted["params"]
        size = artifact.save(small, tmp_path)
        assert size == (tmp_path / artifact.MODEL).stat().st_size <= predicted["size"]


def budgets(setup) -> list[str]:
    """Limits half-way between the smallest reachable value and the dense one, alone and together."""
    least, dense = setup.costing.of(setup.space.smallest), setup.costing.dense()
    halves = {name: f"{name}<={(least[name] + dense[name]) / 2:.0f}" for name in dense}
    return [
        halves["macs"],
        halves["size"],
        f"{halves['params']},{halves['macs']}",
        f"{halves['bops']},{halves['size']}",
    ]


def test_projection_never_exceeds_a_budget_after_rounding(setup):
    rng = np.random.default_rng(0)
    for text in budgets(setup):
        projector = Projector(setup.space, Budget.parse(text))
        for i in range(850):  # three nets, four budgets: 10,200 random policies
            point = projector.project(setup.space.sample(rng), fill=bool(i % 2))
            costs = setup.costing.of_policy(setup.space.decode(point))
            assert all(costs[name] <= bound for name, bound in projector.limits.items())


def test_projection_keeps_what_fits_and_fill_leaves_no_step_open(setup):
    projector = Projector(setup.space, Budget.parse(budgets(setup)[0]))
    rng = np.random.default_rng(3)
    for _ in range(20):
        point = projector.project(setup.space.sample(rng), fill=True)
        assert np.array_equal(projector.project(point), point)
        for axis in np.flatnonzero(setup.space.ordered):
            higher = point.copy()
            higher[axis] += 1
            if higher[axis] < setup.space.sizes[axis]:
                assert not projector.feasible(higher)


def test_highest_is_the_highest_feasible_level_by_brute_force(setup):
    projector = Projector(setup.space, Budget.parse(budgets(setup)[3]))
    rng = np.random.default_rng(5)
    for _ in range(10):
        point = projector.project(setup.space.sample(rng))
        axis = int(rng.integers(len(point)))
        levels = [point.copy() for _ in range(setup.space.sizes[axis])]
        for level, other in enumerate(levels):
            other[axis] = level
        assert projector.highest(point, axis) == max(i for i, x in enumerate(levels) if projector.feasible(x))


def test_an_unreachable_budget_names_the_smallest_value_and_what_binds_it(setup):
    with pytest.raises(BudgetError, match=r"smallest reachable value is .*% of dense\), bound by .*: raise the limit"):
        Projector(setup.space, Budget.parse("macs<=0.001%"))


def test_a_policy_of_another_model_or_with_an_unknown_place_is_refused(setup):
    with pytest.raises(PolicyError, match="must be applied to the model it was made for"):
        setup.compressor.compress(Policy("0" * 64))
    print_ = setup.graph.facts.fingerprint
    with pytest.raises(PolicyError, match="'nowhere' is none"):
        setup.compressor.compress(Policy(print_, layers=(("nowhere", LayerDecision(weight_bits=4)),)))
    with pytest.raises(PolicyError, match="'nowhere' is none"):
        setup.compressor.compress(Policy(print_, groups=(("nowhere", GroupDecision(0.5)),)))


def test_the_dense_model_is_untouched(setup):
    before = {k: v.clone() for k, v in setup.task.model.state_dict().items()}
    setup.compressor.compress(setup.space.decode(setup.space.sample(np.random.default_rng(9))))
    assert all(torch.equal(v, before[k]) for k, v in setup.task.model.state_dict().items())


def test_a_sequential_refit_is_closer_to_the_dense_outputs_than_none(setup):
    x = setup.task.validation[0][0][0]
    level = np.where([a.field == "keep" for a in setup.space.axes], setup.space.largest * 7 // 10, setup.space.largest)
    gaps = {}
    with torch.no_grad():
        dense = setup.task.model(x)
        for recipe in RECIPES:
            policy = setup.space.decode(level).with_recipe(recipe)
            gaps[recipe.reconstruct] = float((setup.compressor.compress(policy)(x) - dense).square().mean())
    assert gaps["sequential"] < 0.95 * gaps["none"]


def test_damage_of_any_file_is_refused(setup, tmp_path: Path):
    small = setup.compressor.compress(setup.space.decode(setup.space.smallest))
    artifact.save(small, tmp_path)
    rng = np.random.default_rng(0)
    for name in (artifact.MODEL, artifact.POLICY, artifact.REPORT):
        whole = (tmp_path / name).read_bytes()
        for _ in range(20):
            broken = bytearray(whole)
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
            (tmp_path / name).write_bytes(bytes(broken))
            with pytest.raises(ArtifactError, match="must match its manifest"):
                artifact.load(tmp_path, setup.task.factory)
            (tmp_path / name).write_bytes(whole[: rng.integers(len(whole))])
            with pytest.raises(ArtifactError):
                artifact.load(tmp_path, setup.task.factory)
        (tmp_path / name).write_bytes(whole)
    artifact.load(tmp_path, setup.task.factory)
    with pytest.raises(ArtifactError, match=r"pass the (factory|right one)"):
        artifact.load(tmp_path, lambda: torch.nn.Linear(2, 2))
