"""The table of one layer's variants: the weights a policy would give it, and errors measured on the data themselves."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression import bank as module
from automc.compression.bank import LayerBank
from automc.compression.calibration import watched
from automc.compression.quantize import ActivationQuantizer, Observed
from automc.compression.regression import rows_of
from automc.compression.structure import Sides, opened
from automc.compression.variants import Variant, factors_of, settled
from automc.graph.facts import LayerFacts
from automc.policy import LayerDecision, Policy, Recipe
from tests.compression.conftest import Setup

RECIPE = Recipe(reconstruct="layerwise", rows=1 << 20)
DECISIONS = [
    LayerDecision(sparsity=0.5, criterion="obs"),
    LayerDecision(sparsity=0.5, criterion="l1"),
    LayerDecision(sparsity=0.5, criterion="sparsegpt", pattern="2:4"),
    LayerDecision(sparsity=0.6, criterion="activation", pattern="4x1"),
    LayerDecision(sparsity=0.5, criterion="obs", weight_bits=4),
    LayerDecision(weight_bits=3),
    LayerDecision(weight_bits=3, codebook="kmeans"),
    LayerDecision(rank=0.5),
    LayerDecision(rank=0.6, factorization="tucker2"),
]
PLAIN = {"resnet": "layer2.0.conv2", "branches": "left", "mlp": "3"}
"""A layer of one conv-group in each of the models."""


def input_of(setup: Setup, name: str) -> Tensor:
    seen: list[Tensor] = []
    with torch.no_grad(), watched(setup.task.model, (name,), lambda _, __, x: seen.append(x)):
        setup.task.model(*setup.compressor.inputs(RECIPE))
    return seen[0]


def rows_that_enter(layer: nn.Module, x: Tensor) -> Tensor:
    """(rows, n) by torch's own unfold."""
    if isinstance(layer, nn.Linear):
        return x
    assert isinstance(layer, nn.Conv2d)
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).movedim(1, 2).flatten(0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda d: f"{d.sparsity}{d.pattern}{d.weight_bits}{d.rank}")
def test_the_error_is_the_one_on_the_data_and_the_weights_are_those_a_policy_gives(
    setup: Setup, decision: LayerDecision
) -> None:
    name = PLAIN[setup.task.name]
    facts, dense = setup.graph.facts.layer(name), setup.task.model.get_submodule(name)
    if isinstance(dense, nn.Linear) and decision.factorization == "tucker2":
        pytest.skip("defined on convolutions")
    if facts.in_channels < 4 and "4" in decision.pattern:
        pytest.skip("too few inputs for the pattern")
    bank = setup.compressor.bank(RECIPE)
    found = bank.variant(name, decision)

    bits = (decision.weight_bits, 32, decision.codebook)
    alone = opened(copy.deepcopy(dense), bits, factors_of(facts, decision))
    found.settle_(alone)
    inner = getattr(alone, "layer", alone)
    x = rows_that_enter(dense, input_of(setup, name)).to(torch.float64)
    x = x - x.mean(dim=0)
    weight = dense.weight.detach().flatten(1).to(torch.float64)  # type: ignore[operator]
    gap = rows_of(inner).detach().to(torch.float64) - weight
    expected = (x @ gap.T).square().sum() / (x @ weight.T).square().sum()
    assert found.error == pytest.approx(float(expected), rel=1e-3, abs=1e-7)

    policy = Policy(setup.graph.facts.fingerprint, (), ((name, decision),), RECIPE)
    small = setup.compressor.compress(policy)
    applied = small.get_submodule(name)
    assert torch.equal(rows_of(getattr(applied, "layer", applied)), rows_of(inner))


def test_one_elimination_tells_the_error_of_every_level(setup: Setup) -> None:
    """OBC's losses add up to the error of the masked refit, level by level."""
    name = PLAIN[setup.task.name]
    bank = setup.compressor.bank(replace(RECIPE, ridge=1e-9))
    losses = bank.traces(name, "element").loss.flatten().sort().values.cumsum(0)
    weight = setup.task.model.get_submodule(name).weight.detach().flatten(1)  # type: ignore[operator]
    energy = float(bank.regression(name, Sides.whole(bank.facts.layer(name))).output(weight)[1].sum())
    for sparsity in (0.3, 0.5, 0.8):
        gone = int(sparsity * len(losses))
        found = bank.variant(name, LayerDecision(sparsity=sparsity, criterion="obs")).error
        assert found == pytest.approx(float(losses[gone - 1]) / energy, rel=0.2, abs=1e-5)


def test_errors_fall_as_levels_rise_and_the_dense_level_has_none(setup: Setup) -> None:
    bank = setup.compressor.bank(RECIPE)
    for axis, errors in zip(setup.space.axes, bank.errors(setup.space), strict=True):
        if axis.field in ("sparsity", "weight_bits"):
            assert errors[-1] == 0 and (errors[:-1] >= errors[1:] - 0.02).all(), axis.key


def test_a_variant_is_made_once_and_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup("mlp")
    made: list[str] = []

    def counted(layer: nn.Module, facts: LayerFacts, *others: Any) -> Variant:
        made.append(facts.name)
        return settled(layer, facts, *others)

    monkeypatch.setattr(module, "settled", counted)

    def bank() -> LayerBank:
        inputs = setup.compressor.inputs(RECIPE)
        return LayerBank(setup.graph.facts, setup.task.model, inputs, RECIPE, folder=tmp_path)

    first, decision = bank(), LayerDecision(sparsity=0.5, criterion="obs", weight_bits=4, activation_bits=8)
    found = first.variant("3", decision)
    first.variant("3", replace(decision, activation_bits=32))  # says nothing of the weights
    again = bank().variant("3", decision)
    assert made == ["3"] and again.error == found.error
    assert all(torch.equal(again.state[key], value) for key, value in found.state.items())
    first.variant("3", replace(decision, weight_bits=3))
    assert made == ["3", "3"]


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_the_error_of_a_rounded_input_is_about_the_one_on_the_data(setup: Setup, bits: int) -> None:
    name = PLAIN[setup.task.name]
    layer, x = setup.task.model.get_submodule(name), input_of(setup, name)
    quantizer = ActivationQuantizer(bits)
    quantizer.calibrate(Observed.of([x]))
    channels = 0 if isinstance(layer, nn.Linear) else 1
    with torch.no_grad():
        whole, rounded = layer(x), layer(quantizer(x))
    whole, lost = (y.movedim(channels, -1).flatten(0, -2).double() for y in (whole, rounded - whole))
    true = float((lost - lost.mean(dim=0)).square().sum() / (whole - whole.mean(dim=0)).square().sum())
    assert 0.5 < setup.compressor.bank(RECIPE).activation_error(name, bits) / true < 2.0


def test_fewer_bits_of_an_input_never_err_less(setup: Setup) -> None:
    bank = setup.compressor.bank(RECIPE)
    for layer in setup.graph.facts.layers:
        errors = [bank.activation_error(layer.name, bits) for bits in range(2, 9)]
        assert errors == sorted(errors, reverse=True) and errors[-1] > 0
