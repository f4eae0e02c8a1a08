"""Sparse convolutions of 8 bits, against the rounded layer in torch."""

import io
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.compression.patterns import layout, mask_by_score
from automc.compression.quantize import QuantizedLayer
from automc.errors import PolicyError
from automc.kernels import sparse8_conv
from automc.kernels.sparse8 import PATTERNS
from automc.kernels.sparse8_conv import SparseInt8Conv2d
from automc.pattern import parse
from tests.kernels.compiled import compiled_with
from tests.kernels.test_sparse8 import rounded


def quantized(
    layer: nn.Conv2d, sparsity: float = 0.6, bits: tuple[int, int] = (8, 8), rows: int = 16
) -> QuantizedLayer:
    """A rounded convolution with blocks of zeros."""
    pattern, shape = parse(PATTERNS[rows]), tuple(layer.weight.shape)
    keep = mask_by_score(torch.rand(shape), sparsity, pattern, layout(shape, layer.groups, pattern))
    layer.weight.data *= keep
    return rounded(layer, bits)


@torch.no_grad()
def check(layer: QuantizedLayer, x: Tensor, rows: int = 16) -> None:
    """Outputs are those of the scored layer, up to what adding floats loses, and lie in memory as images do."""
    conv = layer.layer
    assert isinstance(conv, nn.Conv2d) and layer.input is not None and conv.bias is not None
    found, scored = SparseInt8Conv2d.of(layer, rows=rows)(x), layer(x)
    magnitudes = nn.functional.conv2d(
        layer.input(x).nan_to_num().abs(),
        conv.weight.abs(),
        conv.bias.abs(),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
    bound = (conv.weight[0].numel() + 8) * 2**-24 * magnitudes
    assert found.shape == scored.shape and found.isnan().equal(scored.isnan())
    assert ((found - scored).abs() <= bound)[~scored.isnan()].all()
    assert found.is_contiguous() or not x.is_contiguous()


@pytest.fixture(params=[(), ("-mno-avx512f",), ("-march=x86-64",)], ids=["512 bits", "256 bits", "any processor"])
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled with these flags as well."""
    with compiled_with(request.param, monkeypatch):
        yield


@pytest.mark.parametrize("rows", PATTERNS)
def test_every_instruction_set_gives_the_same(flags: None, rows: int) -> None:
    torch.manual_seed(0)
    for channels, outputs, kernel, stride, padding, groups in [
        (16, 33, 3, 1, 1, 1), (6, 16, 3, 2, 1, 1), (9, 20, 1, 1, 0, 1), (4, 7, 5, 3, 2, 1), (12, 38, 3, 1, 1, 2),
        (15, 9, 3, 2, 0, 3),
    ]:  # fmt: skip
        x = torch.randn(2, channels, 9, 37)
        x[1, 2, 3, 20] = math.nan
        check(quantized(nn.Conv2d(channels, outputs, kernel, stride, padding, groups=groups), rows=rows), x, rows)
    for conv in [
        nn.Conv2d(8, 16, (3, 1), (1, 2), (1, 0)),
        nn.Conv2d(8, 16, (1, 3), (2, 1), (0, 1), (1, 2)),
        nn.Conv2d(8, 16, (5, 3), padding="same"),
        nn.Conv2d(8, 16, 2, 5, 4, groups=2),
    ]:
        check(quantized(conv, rows=rows), torch.randn(1, 8, 9, 37), rows)


@given(
    st.sampled_from([16, 4]), st.integers(1, 20), st.integers(1, 40), st.tuples(st.integers(1, 3), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 3)), st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.integers(1, 2), st.integers(1, 4), st.tuples(st.integers(9, 12), st.integers(9, 80)), st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=100)
def test_outputs_are_those_of_the_rounded_layer(
    rows: int, channels: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: int, groups: int, size: tuple[int, int], images: int, sparsity: float,
    holes: bool, last: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    groups = groups if channels > 1 else 1
    conv = nn.Conv2d(channels * groups, outputs * groups, kernel, stride, padding, dilation, groups)
    layer = quantized(conv, sparsity, rows=rows)
    x = torch.randn(images, channels * groups, *size) * 2
    if holes:
        x[torch.rand_like(x) < 0.002] = math.nan
    x[torch.rand_like(x) < 0.002] = math.inf
    check(layer, x.to(memory_format=torch.channels_last) if last else x, rows)


@pytest.mark.parametrize("rows", PATTERNS)
def test_without_a_compiler_torch_gives_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse8_conv, "_function", lambda: None)
    for groups in (1, 2):
        x = torch.randn(2, 6, 9, 9)
        x[1, 4, 2, 2] = math.nan
        check(quantized(nn.Conv2d(6, 20, 3, 2, 1, groups=groups), rows=rows), x, rows)


@pytest.mark.parametrize("rows", PATTERNS)
def test_outputs_do_not_depend_on_the_number_of_threads(rows: int) -> None:
    layer, before = quantized(nn.Conv2d(8, 16, 3), rows=rows), torch.get_num_threads()
    module = SparseInt8Conv2d.of(layer, rows=rows, low=0.0)
    x, found = torch.randn(5, 8, 8, 8).to(memory_format=torch.channels_last), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(module(x))
    torch.set_num_threads(before)
    assert torch.equal(*found) and float(found[0].min()) == 0


def test_what_cannot_be_multiplied_is_refused() -> None:
    for conv in (nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 2, padding="same")):
        with pytest.raises(PolicyError, match="leave it in torch"):
            SparseInt8Conv2d.of(quantized(conv, 0.0))
    module = SparseInt8Conv2d.of(quantized(nn.Conv2d(8, 16, 3)))
    for shape in ((1, 9, 8, 8), (8, 8, 8)):
        with pytest.raises(RuntimeError, match=r"must be \(images, 8, height, width\)"):
            module(torch.randn(shape))
    sides = ([3, 3], [1, 1], [0, 0], [1, 1])
    for x in (torch.randn(1, 7, 8, 8), torch.randn(1, 7, 8, 8, device="meta")):  # as many groups of four
        with pytest.raises(RuntimeError, match=r"must be \(images, 8, height, width\)"):
            torch.ops.automc.sparse8_conv2d(x, *module.held(), 8, 16, 1, 16, *sides, -math.inf, math.inf)
    with pytest.raises(RuntimeError, match="must have an output"):
        module(torch.randn(1, 8, 2, 2))


@pytest.mark.parametrize(("rows", "groups"), [(16, 1), (16, 2), (4, 1), (4, 2)])
def test_the_operator_is_exported_and_saved(rows: int, groups: int) -> None:
    layer = quantized(nn.Conv2d(8, 18, 3, 2, 1, groups=groups), rows=rows)
    model, x = nn.Sequential(SparseInt8Conv2d.of(layer, rows=rows)), torch.randn(2, 8, 9, 9)
    held = io.BytesIO()
    samples = torch.export.Dim("samples")
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: samples},)), held)
    held.seek(0)
    loaded = torch.export.load(held).module()
    for given_ in (x, torch.randn(5, 8, 9, 9)):
        assert torch.equal(loaded(given_), model(given_))
    held_by = model[0]
    assert isinstance(held_by, SparseInt8Conv2d)
    sides = ([3, 3], [2, 2], [1, 1], [1, 1])
    for given_ in (x, x.to(memory_format=torch.channels_last)):
        arguments = (given_, *held_by.held(), 8, 18, groups, rows, *sides, -math.inf, math.inf)
        torch.library.opcheck(torch.ops.automc.sparse8_conv2d.default, arguments)


def test_blocks_that_point_outside_are_refused() -> None:
    for rows in PATTERNS:
        module = SparseInt8Conv2d.of(quantized(nn.Conv2d(8, 18, 3, groups=2), 0.3, rows=rows), rows=rows)
        inputs = 4 * 9 if rows == 4 else 9
        module.places.view(-1)[0] = inputs - 1
        module(torch.randn(1, 8, 5, 5))
        for place in (inputs, -1):
            module.places.view(-1)[0] = place
            with pytest.raises(RuntimeError, match="blocks must lie inside"):
                module(torch.randn(1, 8, 5, 5))
