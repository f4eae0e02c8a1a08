"""Initialisations do what their papers say: isometry, unit outputs, equal rates of change."""

import copy

import pytest
import torch
from torch import Tensor, nn

from automc.compression.initialise import from_data, isometry_gap, orthogonal, restore_isometry, standardise
from automc.errors import GraphError


def chain(bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=bias), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, bias=bias), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 40, bias=bias), nn.ReLU(), nn.Linear(40, 200, bias=bias),
        )  # fmt: skip


def x() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def test_orthogonal_weights_keep_norms_and_come_from_the_generator() -> None:
    model, again = chain(), chain()
    state = torch.random.get_rng_state()
    orthogonal(model, torch.Generator().manual_seed(0))
    orthogonal(again, torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.random.get_rng_state())
    for layer, other in zip(layers(model), layers(again), strict=True):
        assert torch.equal(layer.weight, other.weight)
        assert layer.bias is not None and not layer.bias.any()
        for part in layer.weight.chunk(int(getattr(layer, "groups", 1))):
            assert float(isometry_gap(part)) < 1e-8
    wide = layers(model)[2].weight.detach()  # (40, 128): no row loses length
    v = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close((v @ wide).norm(dim=1), 2**0.5 * v.norm(dim=1))


def test_isometry_comes_back_within_the_mask() -> None:
    model = chain()
    orthogonal(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in layers(model):
            layer.weight.mul_(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(3)) > 0.5)
    before = [copy.deepcopy(layer.weight.detach()) for layer in layers(model)]
    restore_isometry(model)
    for layer, old in zip(layers(model), before, strict=True):
        assert torch.equal(layer.weight == 0, old == 0)
        groups = int(getattr(layer, "groups", 1))
        now, then = (sum(float(isometry_gap(p)) for p in w.chunk(groups)) for w in (layer.weight.detach(), old))
        assert now < 0.6 * then


def test_outputs_are_standardised_layer_after_layer() -> None:
    model = chain()
    standardise(model, (x(),))
    seen: list[Tensor] = []
    for layer in layers(model):
        layer.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        model(x())
    for output in seen:
        rows = output.movedim(1, -1).flatten(0, -2) if output.dim() == 4 else output
        torch.testing.assert_close(rows.mean(dim=0), torch.zeros(rows.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(rows.std(dim=0, unbiased=False), torch.ones(rows.shape[1]), rtol=1e-3, atol=1e-3)


def test_all_layers_change_equally_fast_and_the_output_keeps_its_scale() -> None:
    model = chain(bias=False)
    with torch.no_grad():
        layers(model)[0].weight.mul_(50)
        layers(model)[2].weight.mul_(0.01)
    scaled = copy.deepcopy(model)
    standardise(scaled, (x(),))
    from_data(model, (x(),))
    gradients = torch.autograd.grad(model(x()).square().sum(), [layer.weight for layer in layers(model)])
    rates = [float(g.norm() / layer.weight.norm()) for g, layer in zip(gradients, layers(model), strict=True)]
    assert max(rates) < 1.05 * min(rates)
    with torch.no_grad():
        torch.testing.assert_close(model(x()), scaled(x()), rtol=1e-3, atol=1e-3)


def test_a_chain_with_biases_keeps_its_output_too() -> None:
    model = chain()
    scaled = copy.deepcopy(model)
    standardise(scaled, (x(),))
    from_data(model, (x(),))
    with torch.no_grad():
        torch.testing.assert_close(model(x()), scaled(x()), rtol=1e-3, atol=1e-3)


def test_a_dead_channel_is_named() -> None:
    model = chain()
    with torch.no_grad():
        layers(model)[1].weight[3] = 0
    with pytest.raises(GraphError, match="'2'"):
        standardise(model, (x(),))


def test_outputs_of_a_transposed_convolution_are_standardised_along_its_own_axis() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.ConvTranspose2d(3, 5, 2, stride=2), nn.Conv2d(5, 4, 3)), torch.randn(64, 3, 6, 6)
    standardise(model, (x,))
    rows = model[0](x).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(rows.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(5), atol=1e-3, rtol=0)
