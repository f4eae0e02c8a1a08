"""Layers and norms with forwards of their own, as timm writes them: taken for torch's where they compute the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import automc
from automc.deployment.forms import forms
from automc.deployment.network import PlannedNetwork
from automc.graph.holders import as_layer
from automc.graph.trace import trace_model
from automc.graph.verify import randomised
from automc.kernels.images import lanes
from automc.policy import GroupDecision, LayerDecision, Policy, Recipe
from automc.scoring.folding import folded

X = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class NormAct(nn.BatchNorm2d):
    """A batch norm with the activation inside, computed by torch's function."""

    def __init__(self, width: int, act: nn.Module | None = None) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), act or nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        training = self.training or (self.running_mean is None and self.running_var is None)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps)
        return self.act(self.drop(x))


class Mixing(NormAct):
    """A norm that looks at all channels after all."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x / (1 + x.abs().mean(1, keepdim=True))


class Same(nn.Linear):
    """A linear layer that says nothing new."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Padded(nn.Conv2d):
    """A convolution that pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (x.shape[3], x.shape[2])]
        x = F.pad(x, [pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """A convolution whose weight is normalised before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Net(nn.Module):
    """Two convolutions with norms, and a head."""

    def __init__(self, norm: type[NormAct] = NormAct, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.b = conv(8, 8, 3, 2) if conv is Padded else conv(8, 8, 3, padding=1, bias=False)
        self.m, self.head = norm(8, nn.Hardtanh()), Same(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.m(self.b(self.n(self.a(x)))).mean((2, 3)))


def net(**kinds: type) -> Net:
    return randomised(Net(**kinds), torch.float32, 0)  # type: ignore[return-value]


def test_what_computes_as_torchs_layers_is_one() -> None:
    assert as_layer(Same(3, 4)) is not None and as_layer(nn.Linear(3, 4)) is not None
    assert as_layer(Padded(3, 4, 3, 2)) is None and as_layer(Standardised(3, 4, 3)) is None
    assert as_layer(Padded(3, 4, 3, 2)) is None  # asked again


def test_norms_with_an_activation_inside_cost_no_channels() -> None:
    model = net()
    facts = trace_model(model, (X,)).facts
    assert [g.producers for g in facts.groups] == [("a",), ("b",)] and not facts.refused
    assert [facts.layer(n).norm for n in ("a", "b")] == ["n", "m"]
    with torch.no_grad():
        labels = model(X).argmax(1)
    task = automc.Task(model, calibration=[((X,), labels)], validation=[((X,), labels)])
    groups = tuple((g.name, GroupDecision(0.5)) for g in facts.groups)
    small = automc.apply(task, Policy(facts.fingerprint, groups, (("head", LayerDecision(weight_bits=6)),)))
    assert type(small) is Net and small.n.num_features == 4 == small.b.in_channels
    fitted = float((small(X) - model(X)).norm() / (model(X) - model(X).mean(0)).norm())
    plain = automc.apply(task, Policy(facts.fingerprint, groups, (), Recipe(reconstruct="none")))
    assert fitted < 0.8 * float((plain(X) - model(X)).norm() / (model(X) - model(X).mean(0)).norm())


@pytest.mark.parametrize("kinds", [{"norm": Mixing}, {"conv": Padded}, {"conv": Standardised}], ids=str)
def test_what_computes_something_else_is_refused(kinds: dict[str, type]) -> None:
    facts = trace_model(net(**kinds), (X,)).facts
    assert not facts.groups and facts.refused


def test_they_are_folded_and_run_as_one_plan() -> None:
    model = net()
    graph = folded(model, (X,))
    assert isinstance(graph, fx.GraphModule)
    called = [graph.get_submodule(str(n.target)) for n in graph.graph.nodes if n.op == "call_module"]
    assert len(called) > 4 and not any(isinstance(part, nn.BatchNorm2d) for part in called)
    torch.testing.assert_close(graph(X), model(X), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight.mul_(torch.rand(layer.weight.shape) > 0.9)
    if lanes():
        model.m.act = nn.ReLU()
        assert isinstance(forms(model, (X,))["one plan"], PlannedNetwork)


def test_a_norm_that_uses_statistics_of_the_batch_is_not_folded() -> None:
    model = net()
    model.n.running_mean = model.n.running_var = None
    graph = folded(model, (X,))
    torch.testing.assert_close(graph(X), model(X), rtol=1e-4, atol=1e-5)
    assert isinstance(graph.get_submodule("a"), nn.Conv2d) and graph.get_submodule("a").bias is None
