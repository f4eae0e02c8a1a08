"""Criteria against their papers' formulas, written out by hand for small layers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.bank import LayerBank
from automc.compression.calibration import moments
from automc.compression.place import Place
from automc.compression.settle import settle
from automc.criteria.criterion import LayerView
from automc.errors import PolicyError
from automc.graph.trace import trace_model
from automc.policy import LayerDecision, Policy, Recipe
from automc.registry import CRITERIA


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def view_of(weight: Tensor, rows: Tensor) -> LayerView:
    """A layer with these input rows (groups, rows, n)."""
    known = moments(rows)
    return LayerView(weight, known.gram.float(), known.mean.float(), known.active.float())


def test_lamp_is_the_share_of_what_is_left_when_smaller_weights_are_gone() -> None:
    weight = rand(4, 3, 2)
    score = CRITERIA.load("lamp").score(LayerView(weight)).flatten()
    squares = weight.flatten().double().square()
    for i, own in enumerate(squares):
        assert float(score[i]) == pytest.approx(float(own / squares[squares >= own].sum()), rel=1e-5)
    assert float(score.max()) == pytest.approx(1.0)  # the largest weight of a layer stays last


def test_lamp_of_an_empty_layer_is_zero() -> None:
    assert CRITERIA.load("lamp").score(LayerView(torch.zeros(2, 3))).eq(0).all()


def test_probabilistic_draws_first_places_in_proportion_to_magnitude() -> None:
    weight = torch.tensor([[1.0, -2.0], [4.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    firsts = np.zeros(4)
    for _ in range(4000):
        score = CRITERIA.load("probabilistic").score(LayerView(weight, generator=generator))
        firsts[int(score.argmax())] += 1
    assert firsts / 4000 == pytest.approx(np.array([1, 2, 4, 1]) / 8, abs=0.025)


@pytest.mark.parametrize("groups", [1, 2])
def test_obd_is_the_output_error_of_losing_one_weight(groups: int) -> None:
    """The layer's output error is quadratic, so the diagonal term is exact for a single weight without adjustment."""
    conv = nn.Conv2d(4, 6, 3, groups=groups, bias=False)
    weight = rand(6, 4 // groups, 3, 3).requires_grad_(False)
    x = rand(5, 4, 3, 3, seed=1)  # one output position: rows are the flattened images
    rows = x.reshape(5, groups, -1).transpose(0, 1)
    score = CRITERIA.load("obd").score(view_of(weight, rows))
    dense = F.conv2d(x, weight, groups=groups)
    for at in [(0, 0, 0, 0), (2, 1, 2, 1), (5, 4 // groups - 1, 1, 1)]:
        changed = weight.clone()
        changed[at] = 0
        error = (F.conv2d(x, changed, groups=conv.groups) - dense).square().sum() / 5
        assert float(score[at]) == pytest.approx(float(error), rel=1e-4)


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 6, 3, padding=1), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 3)).eval()


def labels(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % 3


def bank_of(model: nn.Module, x: Tensor) -> LayerBank:
    facts = trace_model(model, (x[:2],)).facts
    return LayerBank(facts, model, (x,), Recipe(rows=10**6), targets=labels(x))


@pytest.mark.parametrize("name", ["mean_activation", "apoz"])
def test_activation_criteria_rank_channels_by_what_the_reader_sees(name: str) -> None:
    model, x = net(), rand(32, 3, 4, 4)
    with torch.no_grad():
        activation = model[1](model[0](x)).transpose(0, 1).flatten(1)  # (channels, samples * positions)
    statistic = {"mean_activation": activation.mean(dim=1), "apoz": (activation > 0).float().mean(dim=1)}[name]
    bank = bank_of(model, x)
    order, errors = bank.elimination(bank.facts.groups[0], name)
    assert order.tolist() == statistic.argsort().tolist()
    assert errors[0] == 0 and (np.diff(errors) >= -1e-9).all()


def test_apoz_sums_to_the_share_of_non_zeros() -> None:
    rows = rand(1, 200, 5).relu()
    score = CRITERIA.load("apoz").score(view_of(rand(4, 5), rows))
    torch.testing.assert_close(score.sum(dim=0), (rows[0] > 0).float().mean(dim=0))


@pytest.mark.parametrize("name", [n for n in CRITERIA if not CRITERIA.load(n).tells_weights_apart])
def test_a_criterion_for_channels_is_refused_for_sparsity(name: str) -> None:
    with pytest.raises(PolicyError, match=f"'{name}' ranks channels"):
        sparse(name)


@pytest.mark.parametrize("name", [n for n in CRITERIA if CRITERIA.load(n).tells_weights_apart])
def test_sparsity_by_any_other_criterion_is_exact_and_repeatable(name: str) -> None:
    torch.manual_seed(1)
    first = sparse(name)
    torch.manual_seed(2)  # no criterion may draw from the global generator
    second = sparse(name)
    assert torch.equal(first, second)
    assert int((first == 0).sum()) == int(first.numel() * 0.5)


def sparse(criterion: str) -> Tensor:
    """A weight of the small net at half sparsity."""
    from automc.compression.compress import Compressor
    from automc.task import Task

    model, x = net(), rand(32, 3, 4, 4)
    graph = trace_model(model, (x[:2],))
    compressor = Compressor(graph, model, Task(model, [(x, labels(x))], [(x, labels(x))]))
    policy = Policy(graph.facts.fingerprint, (), (("2", LayerDecision(sparsity=0.5, criterion=criterion)),))
    weight = compressor.compress(policy).get_submodule("2").weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def test_an_untraceable_layer_without_statistics_is_refused_for_criteria_that_need_them() -> None:
    model, x = net(), rand(32, 3, 4, 4)
    facts = trace_model(model, (x[:2],)).facts
    layer = model.get_submodule(facts.layers[0].name)
    place = Place(facts.layers[0], LayerDecision(sparsity=0.5, criterion="obd"), layer)
    with pytest.raises(PolicyError, match="must have the statistics inputs"):
        settle(place, Recipe())


@pytest.mark.parametrize("name", list(CRITERIA))
def test_every_criterion_prunes_channels_where_its_needs_are_met(name: str) -> None:
    model, x = net(norm=True), rand(32, 3, 4, 4)
    bank = bank_of(model, x)
    group = bank.facts.groups[0]
    assert sorted(bank.elimination(group, name)[0].tolist()) == list(range(6))
    assert len(bank.kept(group, name, 3)) == 3
