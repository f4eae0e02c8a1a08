"""Gradient statistics against plain autograd loops, finite differences, torch.func and brute force."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from automc.compression.compress import Compressor
from automc.compression.gradients import (
    hessian_gradient,
    loss_gradient,
    output_gram,
    output_sensitivity,
    synaptic_flow,
)
from automc.errors import TaskError
from automc.graph.trace import trace_model
from automc.policy import GroupDecision, LayerDecision, Policy
from automc.task import Task

LAYERS = ["0", "3", "6"]


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(),
            nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
        nn.init.uniform_(model[1].weight, 0.5, 1.5)  # type: ignore[arg-type]
        return model.double().eval()


def data(count: int = 150) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=generator)


def weight(model: nn.Module, name: str) -> nn.Parameter:
    found = model.get_submodule(name).weight
    assert isinstance(found, nn.Parameter)
    return found


def test_the_gradient_is_that_of_the_mean_loss_whatever_the_chunks() -> None:
    model, (x, y) = net(), data()
    found = loss_gradient(model, LAYERS, (x,), y)
    F.cross_entropy(model(x), y).backward()
    for name in LAYERS:
        torch.testing.assert_close(found[name], weight(model, name).grad)


def test_the_hessian_gradient_is_the_hessian_times_the_gradient() -> None:
    model, (x, y) = net(), data(20)
    found = hessian_gradient(model, LAYERS, (x,), y)
    names = [f"{n}.weight" for n in LAYERS]
    shapes = [weight(model, n).shape for n in LAYERS]
    sizes = [s.numel() for s in shapes]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: p.reshape(s) for n, p, s in zip(names, flat.split(sizes), shapes, strict=True)}
        return F.cross_entropy(functional_call(model, parts, (x,)), y)

    flat = torch.cat([weight(model, n).detach().flatten() for n in LAYERS])
    gradient = torch.func.grad(loss)(flat)
    product = (hessian(loss)(flat) @ gradient).split(sizes)
    for name, expected, shape in zip(LAYERS, product, shapes, strict=True):
        torch.testing.assert_close(found[name], expected.reshape(shape), rtol=1e-6, atol=1e-10)


def test_grasp_predicts_how_the_gradients_norm_falls_when_a_weight_shrinks() -> None:
    """d |g|^2 / d w = 2 H g, by finite differences."""
    model, (x, y) = net(), data(40)
    found = hessian_gradient(model, LAYERS, (x,), y)

    def norm() -> float:
        return sum(float(g.square().sum()) for g in loss_gradient(model, LAYERS, (x,), y).values())

    for name, place in (("0", (1, 1, 0, 2)), ("3", (2, 0, 1, 1)), ("6", (0, 5))):
        step = 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight(model, name)[place] += sign * step
            values.append(norm())
            with torch.no_grad():
                weight(model, name)[place] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(2 * float(found[name][place]), rel=1e-4, abs=1e-9)


def test_the_output_gram_is_the_fisher_of_the_outputs() -> None:
    """For a last layer the gradient at the outputs is softmax minus the label, so its second moment is known."""
    model, (x, _) = net(), data(4000)
    found = output_gram(model, LAYERS, (x,), torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = model(x).softmax(dim=1)
    expected = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(dim=0)
    torch.testing.assert_close(found["6"][0], expected, rtol=0.05, atol=0.01)
    assert [tuple(found[n].shape) for n in LAYERS] == [(1, 4, 4), (2, 2, 2), (1, 3, 3)]
    again = output_gram(model, LAYERS, (x,), torch.Generator().manual_seed(0))
    assert all(torch.equal(found[n], again[n]) for n in LAYERS)


def test_the_output_gram_sums_over_positions() -> None:
    model, (x, _) = net(), data(5)
    found = output_gram(model, ["0"], (x,), torch.Generator().manual_seed(3))["0"][0]
    generator, total = torch.Generator().manual_seed(3), torch.zeros(4, 4, dtype=torch.float64)
    hidden = model[0](x).detach().requires_grad_(True)
    scores = model[1:](hidden)
    drawn = torch.multinomial(scores.detach().softmax(dim=1), 1, generator=generator)[:, 0]
    F.cross_entropy(scores, drawn, reduction="sum").backward()
    assert hidden.grad is not None
    for sample in hidden.grad:
        rows = sample.flatten(1)
        total += rows @ rows.T
    torch.testing.assert_close(found, total / 5)


def test_synaptic_flow_is_the_sum_over_all_paths() -> None:
    """Linear layers: R = 1^T |W2| |W1| 1, and what flows through each weight is its share of that product."""
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))
    found = synaptic_flow(model, ["0", "2"], (torch.randn(7, 5),))
    first, second = (weight(model, n).detach().abs() for n in ("0", "2"))
    torch.testing.assert_close(found["0"], first * second.sum(dim=0)[:, None])
    torch.testing.assert_close(found["2"], second * first.sum(dim=1)[None])
    assert float(found["0"].sum()) == pytest.approx(float(found["2"].sum()), rel=1e-5)  # conserved from layer to layer


def test_sensitivity_is_the_mean_magnitude_of_single_derivatives() -> None:
    model, (x, _) = net(), data(3)
    found = output_sensitivity(model, LAYERS, (x,))
    for name in LAYERS:
        total = torch.zeros_like(weight(model, name))
        for sample in x:
            for k in range(3):
                total += torch.autograd.grad(model(sample[None])[0, k], weight(model, name))[0].abs()
        torch.testing.assert_close(found[name], total / 9)


def test_the_model_is_left_as_it_was() -> None:
    model, (x, y) = net().train(), data(10)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    for statistic in (loss_gradient, hessian_gradient):
        statistic(model, LAYERS, (x,), y)
    output_gram(model, LAYERS, (x,), torch.Generator().manual_seed(0))
    synaptic_flow(model, LAYERS, (x,))
    output_sensitivity(model, LAYERS, (x,))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_without_labels_only_criteria_that_need_them_are_refused() -> None:
    model, (x, y) = net().float(), data(32)
    x = x.float()
    graph = trace_model(model, (x[:2],))
    group = graph.facts.groups[0]
    for calibration, refused in (([x], True), ([(x, y)], False)):
        task = Task(model, calibration, [(x, y)])
        compressor = Compressor(graph, model, task)
        for criterion in ("taylor", "snip", "grasp", "synflow", "sensitivity", "kron_obd", "kron_obs"):
            policy = Policy(graph.facts.fingerprint, ((group.name, GroupDecision(0.5, criterion)),))
            if refused and criterion in ("taylor", "snip", "grasp"):
                with pytest.raises(TaskError, match="labels"):
                    compressor.compress(policy)
            else:
                assert compressor.compress(policy)(x).shape == (32, 3)


@pytest.mark.parametrize("criterion", ["taylor", "snip", "grasp", "synflow", "sensitivity"])
def test_single_weights_of_narrowed_layers_are_scored_by_what_is_left(criterion: str) -> None:
    model, (x, y) = net().float(), data(32)
    graph = trace_model(model, (x[:2].float(),))
    compressor = Compressor(graph, model, Task(model, [(x.float(), y)], [(x.float(), y)]))
    groups = tuple((g.name, GroupDecision(0.5)) for g in graph.facts.groups)
    layers = tuple((n, LayerDecision(sparsity=0.5, criterion=criterion)) for n in LAYERS)
    small = compressor.compress(Policy(graph.facts.fingerprint, groups, layers))
    for name in LAYERS:
        found = weight(small, name)
        assert int((found == 0).sum()) == found.numel() // 2
