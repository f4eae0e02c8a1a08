"""Deployed modules compute the same by every kernel, and stay as they are where none is faster or none is there."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import automc
from automc.compression.quantize import Observed, QuantizedLayer, weight_scale
from automc.deployment import forms as made_forms
from automc.deployment.forms import BFLOAT16, LOOSE, SPARSE_BFLOAT16, ChannelsLast, forms
from automc.deployment.layers import layerwise
from automc.deployment.network import PlannedNetwork, network_of
from automc.errors import TaskError
from automc.kernels import images as image_kernels
from automc.kernels import tokens as token_kernels
from automc.kernels.bfloat16 import BFloat16Conv, BFloat16Linear
from automc.kernels.dense8 import DenseInt8Linear, sums_exactly
from automc.kernels.dense8_conv import DenseInt8Conv2d
from automc.kernels.dense32 import PackedLinear, libraries
from automc.kernels.sparse8 import SparseInt8Linear
from automc.kernels.sparse8_conv import SparseInt8Conv2d
from automc.kernels.tokens import PlannedLinear
from tests.leaving.models import DECISIONS, Named, images, resnet


def last_way(_: nn.Module, __: Tensor, others: list[nn.Module]) -> nn.Module | None:
    """Whatever is offered, the sparse ways behind the packed ones, and no clock."""
    return others[-1] if others else None


needs_compiler = pytest.mark.skipif(not image_kernels.lanes(), reason="needs a C compiler")


def thinned(module: nn.Module, share: float = 0.9) -> nn.Module:
    """A copy with so many zeros in every layer."""
    small, generator = copy.deepcopy(module).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in small.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) >= share)
    return small


class Attentive(nn.Module):
    """Torch's own encoder, whose fast path reads the weights of its layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, 64)"""
        return self.head(self.encoder(x).mean(1))


class Halves(nn.Module):
    """A convolution inside of what has no step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 64, 3, padding=1), nn.Conv2d(64, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 16, H, W)"""
        return torch.tanh(self.second(torch.sigmoid(self.first(x))))


@needs_compiler
@pytest.mark.parametrize("kind", DECISIONS)
def test_a_network_is_one_plan_that_gives_what_the_module_gives(kind: str) -> None:
    small = resnet(kind)
    found = forms(small, (images(3),))
    assert isinstance(found["one plan"], PlannedNetwork)
    if kind in ("weights", "few", "factored"):  # no activation is rounded
        with torch.no_grad():
            for count in (1, 3, 40):
                x = images(count, seed=count)
                torch.testing.assert_close(found["one plan"](x), small(x), rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize(("module", "shape"), [(Attentive(), (2, 60, 64)), (Halves(), (2, 16, 20, 20))], ids=["t", "c"])
def test_layers_with_zeros_are_planned_and_the_rest_stays(module: nn.Module, shape: tuple[int, ...]) -> None:
    small, x = thinned(module, 0.97), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = layerwise(small, (x,), choose=last_way)
    assert found is not None and network_of(small, (x,)) is None
    assert any(isinstance(part, (PlannedLinear, PlannedNetwork)) for part in found.modules())
    assert not any(isinstance(part, (PlannedLinear, PlannedNetwork)) for part in small.modules())
    with torch.no_grad():
        torch.testing.assert_close(found(x), small(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found(x[:1]), small(x[:1]), rtol=1e-4, atol=1e-4)


def eight_bits(layer: nn.Linear | nn.Conv1d | nn.Conv2d, x: Tensor, weight_bits: int = 7) -> QuantizedLayer:
    """The layer rounded, for an input like x."""
    holder = QuantizedLayer(layer, weight_bits, 8)
    holder.round_(weight_scale(layer.weight.detach(), weight_bits))
    assert holder.input is not None
    holder.input.calibrate(Observed.of([x]))
    return holder


EIGHT: dict[str, tuple[nn.Linear | nn.Conv1d | nn.Conv2d, tuple[int, ...], dict[type, int]]] = {
    "tokens": (nn.Linear(96, 64), (2, 50, 96), {DenseInt8Linear: 1, SparseInt8Linear: 2}),
    "images": (nn.Conv2d(16, 32, 3, padding=1), (4, 16, 9, 9), {DenseInt8Conv2d: 1, SparseInt8Conv2d: 2}),
    "groups": (nn.Conv2d(16, 32, 3, 2, groups=2), (4, 16, 9, 9), {DenseInt8Conv2d: 1, SparseInt8Conv2d: 2}),
    "rows": (nn.Conv1d(16, 32, 3), (4, 16, 30), {DenseInt8Conv2d: 1}),
    "depthwise": (nn.Conv2d(16, 16, 3, groups=16), (4, 16, 9, 9), {}),
}


@needs_compiler
@pytest.mark.skipif(not sums_exactly(63), reason="needs torch's oneDNN")
@pytest.mark.parametrize("kind", EIGHT)
def test_layers_of_eight_bits_compute_in_integers_in_every_way(kind: str) -> None:
    layer, shape, wanted = EIGHT[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(eight_bits(copy.deepcopy(layer), x), nn.Tanh()).eval()
    offered: list[nn.Module] = []

    def choose(at: int, _: nn.Module, given: Tensor, others: list[nn.Module]) -> nn.Module | None:
        assert given.shape == x.shape
        offered[:] = others
        return others[at] if at < len(others) else None

    layerwise(net, (x,), choose=partial(choose, 0))
    assert Counter(map(type, offered)) == wanted
    for at in range(len(offered)):
        found = layerwise(net, (x,), choose=partial(choose, at))
        assert found is not None and type(found.get_submodule("0")) is type(offered[at]) and net[0] is not offered[at]
        assert type(net[0]) is QuantizedLayer
        with torch.no_grad():
            torch.testing.assert_close(found(x), net(x), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found(x[:1]), net(x[:1]), rtol=1e-5, atol=1e-5)
            if x.dim() == 4:
                last = x.to(memory_format=torch.channels_last)
                torch.testing.assert_close(found(last), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not sums_exactly(63), reason="needs torch's oneDNN")
def test_layers_of_eight_bits_run_in_either_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(3)
    net = nn.Sequential(eight_bits(nn.Conv2d(3, 8, 3), x), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    monkeypatch.setattr("automc.deployment.layers.faster", lambda layer, x, others: others[0] if others else None)
    found = forms(net, (x,))
    for name in ("layers of 8 bits", "layers of 8 bits, channels last"):
        kinds = Counter(map(type, found[name].modules()))
        assert kinds[DenseInt8Conv2d] == 1 and kinds[QuantizedLayer] == 0
    flat = nn.Sequential(eight_bits(nn.Linear(4, 4), torch.randn(9, 4))).eval()
    assert not any("channels last" in name and "8 bits" in name for name in forms(flat, (torch.randn(9, 4),)))


@pytest.mark.skipif(not libraries(), reason="needs a torch with MKL or oneDNN")
def test_dense_layers_are_offered_packed_weights_and_nothing_else() -> None:
    net, x = Attentive().eval(), torch.randn(2, 60, 64)
    assert layerwise(net, (x,), choose=lambda layer, x, others: None) is None
    for at in range(len(libraries())):
        found = layerwise(net, (x,), choose=partial(lambda at, layer, x, others: others[at], at))
        assert found is not None
        packed = [part for part in found.modules() if isinstance(part, PackedLinear)]
        assert len(packed) == 5 and {part.library for part in packed} == {libraries()[at]}
        with torch.no_grad():
            for given in (x, x[:1], x[:, :7]):
                torch.testing.assert_close(found(given), net(given), rtol=1e-4, atol=1e-4)
    offered: list[nn.Module] = []
    layerwise(Halves().eval(), (torch.randn(2, 16, 9, 9),), choose=lambda layer, x, others: offered.extend(others))
    assert not offered


def bfloat16_way(_: nn.Module, __: Tensor, others: list[nn.Module]) -> nn.Module | None:
    """bfloat16 wherever it is offered, and no clock."""
    return next((way for way in others if isinstance(way, (BFloat16Linear, BFloat16Conv))), None)


@pytest.mark.parametrize("name", ["tokens", "images", "zeros", "eight bits"])
def test_bfloat16_is_there_where_it_is_asked_for_and_near(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.deployment.layers.faster", bfloat16_way)
    x = torch.randn((2, 60, 64) if name == "tokens" else (2, 16, 12, 12), generator=torch.Generator().manual_seed(0))
    net = {"tokens": Attentive(), "images": Halves(), "zeros": thinned(Halves(), 0.7)}.get(name)
    net = net or nn.Sequential(eight_bits(nn.Conv2d(16, 8, 3), x), nn.ReLU(), nn.Conv2d(8, 4, 3))
    plain, half = forms(net.eval(), (x,)), forms(net, (x,), bf16=True)
    expected = {BFLOAT16[0], *([BFLOAT16[1]] if name != "tokens" else [])}
    expected |= {SPARSE_BFLOAT16} if name in ("zeros", "eight bits") else set()
    assert set(half) - set(plain) == expected and not any("bfloat16" in form for form in plain)
    with torch.no_grad():
        wanted = net(x)
        for form in expected:
            found = half[form](x)
            off = float((found - wanted).abs().max() / wanted.abs().max())
            assert found.dtype == torch.float32 and 0 < off <= LOOSE
            assert half[form](x[:1]).shape == wanted[:1].shape
    by_torch = forms(net, (x,), kernels=False, bf16=True)
    assert SPARSE_BFLOAT16 not in by_torch and BFLOAT16[0] in by_torch


def test_what_bfloat16_changes_too_much_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference of two large outputs that are nearly equal."""
    monkeypatch.setattr("automc.deployment.layers.faster", bfloat16_way)

    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
            self.second.weight = nn.Parameter(self.first.weight + 1e-4 * torch.randn(32, 32))
            self.second.bias = self.first.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) - self.second(x)

    net, x = Difference().eval(), torch.randn(9, 32)
    assert not any("bfloat16" in name for name in forms(net, (x,), bf16=True))
    assert "layers in bfloat16" in forms(nn.Sequential(net.first).eval(), (x,), bf16=True)
    monkeypatch.setattr("automc.deployment.layers.faster", lambda layer, x, others: None)
    assert not any("bfloat16" in name for name in forms(nn.Sequential(net.first).eval(), (x,), bf16=True))


def test_the_deployed_module_is_the_fastest_form() -> None:
    small = thinned(Halves(), 0.5)
    found = automc.deploy(small, (torch.randn(2, 16, 20, 20),))
    assert found.seconds[found.form] == min(found.seconds.values())
    assert {"as it is", "folded", "channels last"} <= set(found.seconds)
    x = torch.randn(2, 16, 20, 20)
    torch.testing.assert_close(found.module(x), small(x), rtol=1e-4, atol=1e-4)
    half = automc.deploy(small, (x,), bf16=True)
    assert set(half.seconds) >= {"as it is", "folded"} and half.form in half.seconds


def test_without_a_compiler_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels in (image_kernels, token_kernels):
        monkeypatch.setattr(kernels, "_library", lambda: None)
    monkeypatch.setattr("automc.deployment.network.lanes", lambda: 0)
    small = thinned(Halves())
    assert set(automc.deploy(small, (torch.randn(2, 16, 20, 20),)).seconds) == {
        "as it is",
        "folded",
        "channels last",
        "folded, channels last",
    }


def test_a_form_that_computes_something_else_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(ChannelsLast):
        def forward(self, *inputs: Tensor) -> object:
            return self.module(*inputs) + 1e-2

    monkeypatch.setattr(made_forms, "ChannelsLast", Wrong)
    assert "channels last" not in forms(Halves().eval(), (torch.randn(1, 16, 6, 6),))


class Tilted(nn.Module):
    """Sums that come out on another level in doubles, as they may in integers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.table = layer, nn.Embedding(9, 4)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T)"""
        found: Tensor = self.layer(self.table(ids))
        return found + 1e-2 if found.dtype == torch.float64 else found


@pytest.mark.parametrize("rounds", [False, True])
def test_what_exact_sums_change_is_allowed_where_activations_are_rounded(rounds: bool) -> None:
    ids = torch.arange(8).reshape(2, 4)
    layer = nn.Linear(4, 4)
    net = Tilted(eight_bits(layer, torch.randn(9, 4)) if rounds else layer).eval()
    with torch.no_grad():
        wanted = made_forms.Wanted.of(net, (ids,))
        near, far = (net(ids) + by for by in (2e-2, 6e-2))
    assert wanted.met_by((near,)) is rounds and not wanted.met_by((far,))


@needs_compiler
def test_a_plan_says_for_which_images_it_was_made() -> None:
    plan = network_of(resnet("weights"), (images(1),))
    assert plan is not None
    with pytest.raises(TaskError, match="Inputs must be 3 x 8 x 8, which this plan was made for; one is 3 x 9 x 8"):
        plan(torch.zeros(1, 3, 9, 8))
    assert plan(torch.zeros(0, 3, 8, 8)).shape == (0, 5)


class Asking(nn.Module):
    """Asks for sizes, and names its output."""

    def __init__(self, batch: int = 0) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(16, 5)
        self.batch = batch

    def forward(self, pixels: Tensor) -> Named:
        """pixels (B, 3, H, W)"""
        if pixels.shape[1] != 3 or len(pixels.shape) != 4:
            raise ValueError("three channels")
        x = self.norm(self.conv(pixels)).relu()
        if self.batch and len(x) == self.batch:
            x = x * 2
        return Named(self.head(x.mean((2, 3))))


@needs_compiler
def test_a_model_that_asks_for_sizes_runs_as_one_plan_and_names_its_output_still() -> None:
    net = thinned(Asking())
    found = network_of(net, (images(4),))
    assert found is not None
    for x in (images(4), images(7)):
        made = found(x)
        assert isinstance(made, Named) and made.states is None
        torch.testing.assert_close(made.scores, net(x).scores, rtol=1e-4, atol=1e-5)
    assert network_of(Asking(batch=4).eval(), (images(4),)) is None
    assert network_of(Asking(batch=5).eval(), (images(4),)) is None  # four and five would differ


def test_inputs_without_a_sample_are_refused() -> None:
    with pytest.raises(TaskError, match="must hold at least one sample"):
        automc.deploy(Halves(), (torch.zeros(0, 16, 4, 4),))
