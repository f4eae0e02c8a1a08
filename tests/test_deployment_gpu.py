"""Layers with zeros on a GPU: what is offered, what is timed, and, where a device is at hand, what it computes."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import automc
from automc.deployment import layers, timing
from automc.deployment.forms import BFLOAT16, LOOSE, SPARSE_BFLOAT16, Wanted, forms
from automc.deployment.layers import all_ways, every_way, layerwise
from automc.errors import PolicyError
from automc.kernels.blocks import SIZES, TYPES, BlockLinear, has_triton
from automc.kernels.pointwise import Pointwise
from automc.kernels.semistructured import BACKENDS, SemiStructuredLinear
from tests.kernels.test_blocks import thinned
from tests.kernels.test_semistructured import in_two_of_four, two_of_four

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_triton = pytest.mark.skipif(not has_triton(), reason="needs Triton")


class Mixed(nn.Module):
    """Convolutions with and without zeros, a batch norm, and linear layers in blocks, in 2:4 and dense."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.point = nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64), nn.Conv2d(64, 128, 1)
        self.blocks, self.fours, self.last = nn.Linear(128, 256), nn.Linear(256, 128), nn.Linear(128, 10)
        with torch.no_grad():
            self.point.weight.copy_(thinned(128, 64, (16, 16), 0.2)[:, :, None, None])
            self.blocks.weight.copy_(thinned(256, 128, (32, 32), 0.2))
            self.fours.weight.copy_(two_of_four(128, 256))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 16, H, W)"""
        x = self.point(F.relu(self.norm(self.first(x)))).mean((2, 3))
        return self.last(self.fours(F.gelu(self.blocks(x))))


def block_conv(stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(64, 48, 1, stride=stride).requires_grad_(False)
    layer.weight.copy_(thinned(48, 64, (16, 32), 0.3)[:, :, None, None])
    return layer


def offered(layer: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> list[nn.Module]:
    """As on a GPU, with Triton; here torch computes what it would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "has_triton", lambda: True)
        return layers._on_gpu(layer, x, dtype)


def test_layers_in_blocks_are_offered_in_few_sizes_and_compute_the_same() -> None:
    layer, x = nn.Linear(256, 128).requires_grad_(False), torch.randn(2, 5, 256)
    layer.weight.copy_(thinned(128, 256, (16, 16), 0.05))
    for dtype, near in ((None, 1e-5), (torch.bfloat16, 0.1)):
        found = offered(layer, x, dtype)
        assert 1 <= len(found) <= layers.SIZES
        for way in found:
            assert isinstance(way, BlockLinear) and way.value.dtype == (dtype or torch.float32)
            torch.testing.assert_close(way(x), layer(x), rtol=near, atol=near)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_convolutions_of_one_position_are_offered_as_linear_layers(stride: int, last: bool) -> None:
    x = torch.randn(2, 64, 6, 5).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    layer = block_conv(stride).to(memory_format=torch.channels_last if last else torch.contiguous_format)  # type: ignore[call-overload]
    [first, *_] = offered(layer, x)
    assert isinstance(first, Pointwise) and isinstance(first.linear, BlockLinear)
    torch.testing.assert_close(first(x), layer(x), rtol=1e-5, atol=1e-5)
    assert first(x).stride() == layer(x).stride()


def test_nothing_is_offered_without_zeros_to_skip_or_what_could_skip_them(monkeypatch: pytest.MonkeyPatch) -> None:
    scattered = nn.Linear(256, 128).requires_grad_(False)
    scattered.weight.copy_(thinned(128, 256, (1, 1), 0.1))
    x = torch.randn(4, 256)
    assert not offered(scattered, x) and not offered(nn.Linear(256, 128), x)
    assert not offered(nn.Conv2d(64, 48, 3), torch.randn(2, 64, 6, 5)) and not offered(nn.ReLU(), x)
    assert not layers._on_gpu(in_two_of_four(dtype=torch.float32), torch.randn(4, 128)) or has_triton()
    monkeypatch.setattr(BlockLinear, "forward", lambda self, x: 1 // 0)  # as what a device has no kernel for
    assert not offered(block_conv(), torch.randn(2, 64, 6, 5))


def test_a_gpu_is_waited_for_before_and_after_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    made = {"gpu": SimpleNamespace(is_cuda=True, device="cuda:1"), "cpu": torch.zeros(1)}
    monkeypatch.setattr(timing, "tensors", lambda given: [made[given]])
    monkeypatch.setattr(torch.cuda, "synchronize", events.append)

    def way() -> str:
        events.append("way")
        return "gpu"

    timing.in_turns([way], 1, 0.0)
    assert events == ["way", *["cuda:1", "way", "cuda:1"] * 2]  # the first run, how often, one round
    events.clear()
    timing.in_turns([lambda: "cpu"], 1, 0.0)
    assert not events


class Elsewhere(Tensor):
    """A tensor that says it is on a GPU: what is tried for it can be seen without one."""

    is_cuda = True
    is_cpu = False


def test_on_a_gpu_layers_with_zeros_have_forms_and_what_is_a_processors_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "has_triton", lambda: True)
    monkeypatch.setattr(layers, "faster", lambda layer, x, others: others[-1] if others else None)
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    net, x = Mixed().eval(), torch.randn(2, 16, 6, 6).as_subclass(Elsewhere)
    found = forms(net, (x,), bf16=True)
    by_torch = {"as it is", "folded", "channels last", "folded, channels last", *BFLOAT16}
    assert set(found) == {*by_torch, "sparse layers", "sparse layers, channels last", SPARSE_BFLOAT16}
    for name in ("sparse layers", "sparse layers, channels last"):
        kinds = [type(part) for part in found[name].modules()]
        assert kinds.count(BlockLinear) == 2 and kinds.count(Pointwise) == 1
    assert not waited and automc.deploy(net, (x,)).form not in (*BFLOAT16, SPARSE_BFLOAT16) and waited


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_room_for_a_few_of_its_roundings(dtype: torch.dtype) -> None:
    layer, x = nn.Linear(64, 8).to(dtype), torch.randn(9, 64).to(dtype)
    wanted = Wanted.of(layer, (x,))
    [output] = wanted.outputs
    largest, eps = float(output.detach().abs().max()), torch.finfo(dtype).eps
    assert wanted.room[0] == pytest.approx(4 * eps * largest)
    assert wanted.met_by((output + eps * largest,)) and not wanted.met_by((output + 6 * eps * largest,))


def on_gpu(layer: nn.Module) -> Any:
    return copy.deepcopy(layer).cuda().eval().requires_grad_(False)


@needs_gpu
@needs_triton
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_blocks_on_a_gpu_are_the_dense_layer(size: tuple[int, int], dtype: torch.dtype) -> None:
    for outputs, inputs, kept, bias in ((256, 128, 0.3, True), (100, 75, 0.5, False), (64, 64, 0.0, True)):
        layer = on_gpu(nn.Linear(inputs, outputs, bias=bias)).to(dtype)
        layer.weight.copy_(thinned(outputs, inputs, size, kept))
        layer.weight[: outputs // 2] *= outputs != 256  # rows of blocks without any
        module = BlockLinear.of(layer, size)
        for tokens in (0, 1, 16, 77, 300):
            x = torch.randn(inputs, tokens, device="cuda").to(dtype).T  # not contiguous
            found, wanted = (
                module(x),
                F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None),
            )
            near = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), wanted, rtol=near, atol=near * 4)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_of_four_on_a_gpu_is_the_dense_layer_by_one_library_at_least(dtype: torch.dtype) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU of compute capability 8.0")
    layer, ran = on_gpu(in_two_of_four(256, 512, dtype)), 0
    for backend in BACKENDS:
        module = SemiStructuredLinear.of(layer, backend)
        assert module(torch.zeros(0, 512, device="cuda", dtype=dtype)).shape == (0, 256)
        try:
            module(torch.zeros(8, 512, device="cuda", dtype=dtype))
        except (RuntimeError, NotImplementedError):
            continue  # a library that has nothing for this device
        ran += 1
        for shape in ((1, 512), (77, 512), (3, 40, 512)):
            x = torch.randn(*shape, device="cuda").to(dtype)
            for given in (x, x.float(), x.expand(2, *shape).transpose(0, 1)):
                wanted = F.linear(given.to(dtype).double(), layer.weight.double(), layer.bias.double())
                torch.testing.assert_close(module(given).double(), wanted, rtol=4e-2, atol=4e-2)
        assert torch.equal(copy.deepcopy(module)(x), module(x))
    assert ran
    with pytest.raises(PolicyError, match="must be float16 or bfloat16"):
        SemiStructuredLinear.of(layer.float(), "cutlass")


@needs_gpu
@pytest.mark.parametrize("dtype", TYPES)
def test_a_model_on_a_gpu_has_forms_that_compute_the_same_and_none_of_a_processors(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "faster", lambda layer, x, others: others[-1] if others else None)
    net, x = on_gpu(Mixed()).to(dtype), torch.randn(4, 16, 12, 12, device="cuda", dtype=dtype)
    found = forms(net, (x,), bf16=True)
    assert {"as it is", "folded", "channels last", "folded, channels last"} <= set(found)
    assert not set(found) & {"packed weights", "layers of 8 bits", "one plan"}
    if has_triton():
        kinds = [type(part) for part in found["sparse layers"].modules()]
        assert Pointwise in kinds and BlockLinear in kinds and "sparse layers, channels last" in found
    if dtype == torch.float32:
        off = float((found[SPARSE_BFLOAT16](x) - net(x)).abs().max() / net(x).abs().max())
        assert SPARSE_BFLOAT16 in found and 0 < off <= LOOSE


@needs_gpu
def test_the_fastest_form_is_deployed_on_a_gpu() -> None:
    net, x = on_gpu(Mixed()), torch.randn(4, 16, 12, 12, device="cuda")
    made = automc.deploy(net, (x,))
    assert made.seconds[made.form] == min(made.seconds.values()) and made.module(x).is_cuda
    torch.testing.assert_close(made.module(x[:1]), net(x[:1]), rtol=1e-2, atol=1e-2)


@needs_gpu
def test_a_dense_model_on_a_gpu_has_no_other_ways() -> None:
    net, x = on_gpu(nn.Sequential(nn.Linear(64, 64))), torch.randn(9, 64, device="cuda")
    assert not all_ways(net[0], x) and layerwise(net, (x,)) is None
    assert len(every_way(net[0], x)) == 1
