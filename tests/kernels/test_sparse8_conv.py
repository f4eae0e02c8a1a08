"""Sparse convolutions of 8 bits, against the rounded layer in torch."""

import io
import math
import platform
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.compression.patterns import layout, mask_by_score
from automc.compression.quantize import QuantizedLayer
from automc.errors import PolicyError
from automc.kernels import build, sparse8, sparse8_conv
from automc.kernels.sparse8_conv import SparseInt8Conv2d
from automc.pattern import parse
from tests.kernels.test_sparse8 import rounded


def quantized(layer: nn.Conv2d, sparsity: float = 0.6, bits: tuple[int, int] = (8, 8)) -> QuantizedLayer:
    """A rounded convolution with blocks of zeros."""
    pattern, shape = parse("16x4"), tuple(layer.weight.shape)
    keep = mask_by_score(torch.rand(shape), sparsity, pattern, layout(shape, 1, pattern))
    layer.weight.data *= keep
    return rounded(layer, bits)


@torch.no_grad()
def check(layer: QuantizedLayer, x: Tensor) -> None:
    """Outputs are those of the scored layer, up to what adding floats loses."""
    conv = layer.layer
    assert isinstance(conv, nn.Conv2d) and layer.input is not None and conv.bias is not None
    found, scored = SparseInt8Conv2d.of(layer)(x), layer(x)
    magnitudes = nn.functional.conv2d(
        layer.input(x).nan_to_num().abs(), conv.weight.abs(), conv.bias.abs(), conv.stride, conv.padding, conv.dilation
    )
    bound = (conv.weight[0].numel() + 8) * 2**-24 * magnitudes
    assert found.shape == scored.shape and found.isnan().equal(scored.isnan())
    assert ((found - scored).abs() <= bound)[~scored.isnan()].all()


def renew() -> None:
    build.compiled.cache_clear()
    sparse8._function.cache_clear()
    sparse8_conv._function.cache_clear()


@pytest.fixture(params=[(), ("-mno-avx512f",), ("-march=x86-64",)], ids=["512 bits", "256 bits", "any processor"])
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled with these flags as well."""
    if platform.machine() != "x86_64" and request.param:
        pytest.skip("an option of x86 compilers")
    renew()
    with monkeypatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, *request.param))
        yield
    renew()


def test_every_instruction_set_gives_the_same(flags: None) -> None:
    torch.manual_seed(0)
    for channels, outputs, kernel, stride, padding in [
        (16, 33, 3, 1, 1),
        (6, 16, 3, 2, 1),
        (9, 20, 1, 1, 0),
        (4, 7, 5, 3, 2),
    ]:
        x = torch.randn(2, channels, 9, 37)
        x[1, 2, 3, 20] = math.nan
        check(quantized(nn.Conv2d(channels, outputs, kernel, stride, padding)), x)
    check(quantized(nn.Conv2d(8, 16, (3, 1), (1, 2), (1, 0))), torch.randn(1, 8, 9, 37))
    check(quantized(nn.Conv2d(8, 16, (1, 3), (2, 1), (0, 1), (1, 2))), torch.randn(1, 8, 9, 37))
    check(quantized(nn.Conv2d(8, 16, (5, 3), padding="same")), torch.randn(1, 8, 9, 37))


@given(
    st.integers(1, 20), st.integers(1, 40), st.tuples(st.integers(1, 3), st.integers(1, 5)), st.integers(1, 3),
    st.integers(0, 2), st.integers(1, 2), st.tuples(st.integers(9, 12), st.integers(9, 40)), st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=60)
def test_outputs_are_those_of_the_rounded_layer(
    channels: int, outputs: int, kernel: tuple[int, int], stride: int, padding: int, dilation: int,
    size: tuple[int, int], images: int, sparsity: float, holes: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    layer = quantized(nn.Conv2d(channels, outputs, kernel, stride, padding, dilation), sparsity)
    x = torch.randn(images, channels, *size) * 2
    if holes:
        x[torch.rand_like(x) < 0.002] = math.nan
    x[torch.rand_like(x) < 0.002] = math.inf
    check(layer, x)


def test_without_a_compiler_torch_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse8_conv, "_function", lambda: None)
    check(quantized(nn.Conv2d(6, 20, 3, 2, 1)), torch.randn(2, 6, 9, 9))


def test_outputs_do_not_depend_on_the_number_of_threads() -> None:
    module, before = SparseInt8Conv2d.of(quantized(nn.Conv2d(8, 16, 3)), low=0.0), torch.get_num_threads()
    x, found = torch.randn(5, 8, 8, 8).to(memory_format=torch.channels_last), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(module(x))
    torch.set_num_threads(before)
    assert torch.equal(*found) and float(found[0].min()) == 0


def test_what_cannot_be_multiplied_is_refused() -> None:
    for conv in (nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 2, padding="same")):
        with pytest.raises(PolicyError, match="leave it in torch"):
            SparseInt8Conv2d.of(quantized(conv, 0.0))
    module = SparseInt8Conv2d.of(quantized(nn.Conv2d(8, 16, 3)))
    for shape in ((1, 9, 8, 8), (8, 8, 8)):
        with pytest.raises(RuntimeError, match=r"must be \(images, 8, height, width\)"):
            module(torch.randn(shape))
    with pytest.raises(RuntimeError, match="must have an output"):
        module(torch.randn(1, 8, 2, 2))


def test_the_operator_is_exported_and_saved() -> None:
    model, x = nn.Sequential(SparseInt8Conv2d.of(quantized(nn.Conv2d(8, 16, 3, 2, 1)))), torch.randn(2, 8, 9, 9)
    held = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), held)
    held.seek(0)
    assert torch.equal(torch.export.load(held).module()(x), model(x))
