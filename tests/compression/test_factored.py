"""Factored layers in the whole pipeline: what is counted, scored, saved and loaded is one and the same."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import automc
from automc import artifact
from automc.compression.chains import FactoredLayer
from automc.compression.quantize import ActivationQuantizer, bare
from automc.errors import PolicyError
from automc.graph.ranks import Shape, least_share, offered
from automc.pattern import parse
from automc.policy import PAIRS, GroupDecision, LayerDecision, Policy, Recipe
from automc.search_spaces.ranks import factored
from automc.space import SearchSpace

METHODS = ["svd", "spatial", "tucker2", "cp", "eigendamage", "tt"]


def policy_of(setup, method: str, share: float, recipe: Recipe, keep: float = 1.0) -> Policy | None:
    """Every layer the method is defined on, at this share; channels pruned on the way where keep < 1."""
    facts = setup.graph.facts
    shapes = [Shape.of(layer) for layer in facts.layers]
    narrow = [s.narrowed(3, 3) if keep < 1 else s for s in shapes]
    least = [least_share(n, method) if offered(s, method) else 2.0 for s, n in zip(shapes, narrow, strict=True)]
    fitting = [s.name for s, needed in zip(shapes, least, strict=True) if needed <= share]
    layers = tuple((n, LayerDecision(rank=share, factorization=method)) for n in fitting)
    groups = tuple((g.name, GroupDecision(keep)) for g in facts.groups) if keep < 1 else ()
    return Policy(facts.fingerprint, groups, layers, recipe) if layers else None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reconstruct", ["none", "layerwise", "sequential"])
def test_apply_score_costs_and_reload_are_equal(setup, method: str, reconstruct: str, tmp_path: Path) -> None:
    keep = 0.7 if method in PAIRS and setup.task.name == "resnet" else 1.0
    policy = policy_of(setup, method, 0.6, Recipe(reconstruct=reconstruct), keep)  # type: ignore[arg-type]
    if policy is None:
        pytest.skip(f"{setup.task.name} has no layer for {method}")
    evaluation = setup.evaluator.evaluate(policy)
    assert evaluation.ok, evaluation.reason
    small = setup.compressor.compress(policy)
    size = artifact.save(small, tmp_path)
    again = artifact.load(tmp_path, setup.task.factory)
    assert setup.evaluator.score(small) == evaluation.score == setup.evaluator.score(again)
    assert all(torch.equal(x, again.state_dict()[n]) for n, x in small.state_dict().items())
    predicted = dict(evaluation.costs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(*(x[:1] for x in setup.task.example_inputs))
    assert counter.get_total_flops() / 2 == predicted["macs"]
    assert sum(p.numel() for p in small.parameters()) == predicted["params"]
    assert size <= predicted["size"]


def test_a_higher_share_of_the_same_layers_loses_less_and_costs_more(setup) -> None:
    x = setup.task.validation[0][0][0]
    lowest = policy_of(setup, "svd", 0.3, Recipe())
    assert lowest is not None
    gaps, macs = [], []
    for share in (0.3, 0.6, 0.9):
        layers = tuple((name, LayerDecision(rank=share)) for name, _ in lowest.layers)
        policy = Policy(lowest.fingerprint, (), layers)
        with torch.no_grad():
            gaps.append(float((setup.compressor.compress(policy)(x) - setup.task.model(x)).square().mean()))
        macs.append(setup.costing.of_policy(policy)["macs"])
    assert gaps[0] > gaps[1] > gaps[2]
    assert macs[0] < macs[1] < macs[2] < setup.costing.dense()["macs"]


def test_spaces_offer_only_what_costs_less_than_dense(setup) -> None:
    facts = setup.graph.facts
    for method in METHODS:
        axes = factored(facts, method)
        space = SearchSpace(facts, axes)
        for axis, layer in zip(axes, space.layers, strict=True):
            if axis.field == "rank":
                assert facts.layers[layer].weight_numel >= 1024 and axis.values[-1] == 1.0
        if axes:
            assert setup.compressor.errors(space)[0][-1] == 0
            assert np.all(np.diff(setup.compressor.errors(space)[0]) <= 1e-9)


def test_factors_are_plain_layers_of_the_module(setup) -> None:
    policy = policy_of(setup, "svd", 0.5, Recipe())
    assert policy is not None
    small = setup.compressor.compress(policy)
    for name, _ in policy.layers:
        assert isinstance(small.get_submodule(name), FactoredLayer)


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_that_looks_at_a_factored_layers_weight_sees_what_it_stands_for(setup, method: str) -> None:
    policy = policy_of(setup, method, 0.6, Recipe())
    if policy is None:
        pytest.skip(f"{setup.task.name} has no layer for {method}")
    small = setup.compressor.compress(policy)
    for name, chain in ((n, m) for n, m in small.named_modules() if isinstance(m, FactoredLayer)):
        dense = copy.deepcopy(setup.task.model.get_submodule(name)).double()
        with torch.no_grad():
            assert chain.weight.shape == dense.weight.shape and chain.weight.dtype == torch.float32
            dense.weight.copy_(chain.weight)
            dense.bias = None if chain.bias is None else torch.nn.Parameter(chain.bias.double())
            layer, sizes = setup.graph.facts.layer(name), (7, 9) if dense.weight.dim() == 4 else ()
            x = torch.randn(2, layer.in_channels, *sizes)
            torch.testing.assert_close(chain(x), dense(x.double()).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in PAIRS])
@pytest.mark.parametrize("other", [{"weight_bits": 8}, {"activation_bits": 8}, {"sparsity": 0.5}])
def test_more_than_two_factors_take_no_other_decision(method: str, other: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="take svd or spatial"):
        Policy("x", (), (("x", LayerDecision(rank=0.5, factorization=method, **other)),))


@pytest.mark.parametrize("method", PAIRS)
@pytest.mark.parametrize("reconstruct", ["none", "layerwise", "sequential"])
@pytest.mark.parametrize(
    "other",
    [
        {"weight_bits": 3, "activation_bits": 6},
        {"weight_bits": 4, "codebook": "kmeans"},
        {"sparsity": 0.75, "criterion": "obs", "activation_bits": 8},
        {"sparsity": 0.5, "criterion": "activation", "pattern": "1x4", "weight_bits": 8},
    ],
    ids=lambda other: " ".join(map(str, other.values())),
)
def test_each_of_two_factors_takes_the_layers_zeros_and_bits(
    setup, other: dict[str, Any], reconstruct: Any, method: str, tmp_path: Path
) -> None:
    facts = setup.graph.facts
    decision = LayerDecision(rank=0.6, factorization=method, **other)
    fitting = [s.name for s in map(Shape.of, facts.layers) if offered(s, method) and least_share(s, method) <= 0.6]
    layers = tuple((n, decision) for n in fitting if facts.layer(n).in_channels >= parse(decision.pattern).span)
    if not layers:
        pytest.skip(f"no layer that {method} is defined on")
    policy = Policy(facts.fingerprint, (), layers, Recipe(reconstruct=reconstruct))
    small = setup.compressor.compress(policy)
    for name, _ in layers:
        factored: Any = small.get_submodule(name)
        assert [x.bits for x in factored.modules() if isinstance(x, ActivationQuantizer)] == (
            [decision.activation_bits] * 2 if decision.activation_bits < 32 else []
        )
        for part in factored.parts:
            weight: Any = bare(part).weight
            assert int((weight == 0).sum()) >= int(weight.numel() * decision.sparsity)
            if decision.weight_bits < 32:
                assert all(len(row.unique()) <= 2**decision.weight_bits for row in weight)
    counted = automc.cost(small, setup.task.example_inputs)
    predicted = setup.costing.of_policy(policy)
    assert (counted["macs"], counted["params"]) == (predicted["macs"], predicted["params"])
    assert artifact.save(small, tmp_path) <= predicted["size"]
    again, evaluation = artifact.load(tmp_path, setup.task.factory), setup.evaluator.evaluate(policy)
    assert setup.evaluator.score(small) == evaluation.score == setup.evaluator.score(again)


@pytest.mark.parametrize("method", PAIRS)
def test_what_the_first_factor_loses_to_rounding_the_second_makes_up_for(setup, method: str) -> None:
    fitting = [x for x in setup.graph.facts.layers if offered(Shape.of(x), method)]
    if not fitting:
        pytest.skip(f"no layer that {method} is defined on")
    largest = max(fitting, key=lambda x: x.weight_numel).name
    lost = {}
    for name, recipe in {
        "nearest, not refitted": Recipe(reconstruct="none", rounding="nearest"),
        "nearest": Recipe(reconstruct="layerwise", rounding="nearest"),
        "compensated": Recipe(reconstruct="layerwise"),
    }.items():
        decision = LayerDecision(rank=0.6, factorization=method, weight_bits=3)
        lost[name] = setup.compressor.bank(recipe).variant(largest, decision).error
    floats = LayerDecision(rank=0.6, factorization=method)
    assert setup.compressor.bank(Recipe()).variant(largest, floats).error < min(lost.values())
    assert lost["compensated"] <= lost["nearest"] < lost["nearest, not refitted"]


@pytest.mark.parametrize(("rank", "method", "words"), [(0.0, "svd", "rank"), (1.5, "svd", "rank")])
def test_ranks_outside_their_range_are_refused(setup, rank: float, method: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        Policy("x", (), (("x", LayerDecision(rank=rank, factorization=method)),))


def test_an_unknown_or_unfitting_method_is_refused(setup) -> None:
    first = setup.graph.facts.layers[0].name
    for method, words in (("sdv", "did you mean 'svd'"), ("tt" if setup.graph.facts.layers[0].kernel else "cp", "fit")):
        policy = Policy(setup.graph.facts.fingerprint, (), ((first, LayerDecision(rank=0.9, factorization=method)),))
        with pytest.raises(PolicyError, match=words):
            setup.costing.of_policy(policy)
