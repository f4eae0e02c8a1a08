"""Layers in bfloat16 against torch's own in floats."""

import copy
import io
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.kernels.bfloat16 import BFloat16Conv, BFloat16Linear, Convolution


def bound(layer: nn.Linear | Convolution, x: Tensor) -> Tensor:
    """What rounding inputs, weights, bias and outputs to 8 bits of mantissa may change, and sums in floats."""
    alone = copy.deepcopy(layer)
    for part in alone.parameters():
        part.data.abs_()
    most: Tensor = alone(x.abs().nan_to_num(0.0))
    return (4 * 2**-8 + layer.weight[0].numel() * 2**-23) * most


@torch.no_grad()
def check(module: nn.Module, layer: nn.Linear | Convolution, x: Tensor) -> None:
    found, wanted = module(x), layer(x)
    assert found.shape == wanted.shape and found.dtype == torch.float32
    assert found[wanted.isnan()].isnan().all()  # others may be none, too
    if not wanted.isnan().any():
        assert ((found - wanted).abs() <= bound(layer, x)).all()


@given(
    st.integers(1, 150), st.integers(1, 90), st.integers(1, 80), st.integers(0, 80), st.booleans(), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=60)
def test_linear_layers_are_near_for_any_number_of_rows(
    inputs: int, outputs: int, expected: int, rows: int, bias: bool, holes: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer, x = nn.Linear(inputs, outputs, bias=bias), torch.randn(rows, inputs) * 10
    if holes:
        x[torch.rand_like(x) < 0.01] = torch.nan
    check(BFloat16Linear(layer, expected), layer, x)


def test_any_leading_shape_and_order_in_memory_will_do() -> None:
    layer = nn.Linear(24, 20)
    module, x = BFloat16Linear(layer, 15), torch.randn(24, 5, 3).permute(2, 1, 0)
    for x_ in (x, x[0], x[0, 0], x[:0], x[:, :0], x[:, ::2]):
        check(module, layer, x_)


@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([0, 1, 2, "same"]), st.integers(1, 2), st.integers(0, 3), st.booleans(), st.booleans(),
    st.sampled_from(["zeros", "reflect"]), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=60)
def test_convolutions_are_near(
    channels: int, outputs: int, groups: int, kernel: int, stride: int, padding: int | str, dilation: int,
    images: int, bias: bool, last: bool, mode: str, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    stride = 1 if padding == "same" else stride
    sides = (channels * groups, outputs * groups, kernel, stride, padding, dilation, groups, bias, mode)
    layer, x = nn.Conv2d(*sides), torch.randn(images, channels * groups, 9, 11)  # type: ignore[arg-type]
    if images or mode == "zeros":
        check(BFloat16Conv(layer), layer, x.to(memory_format=torch.channels_last) if last else x)


def test_convolutions_of_one_and_three_sides_are_near_and_outputs_lie_as_torchs_do() -> None:
    rows, volumes, images = nn.Conv1d(6, 8, 3, 2, 1, groups=2), nn.Conv3d(3, 4, 2), nn.Conv2d(6, 8, 3)
    check(BFloat16Conv(rows), rows, torch.randn(3, 6, 20))
    check(BFloat16Conv(volumes), volumes, torch.randn(2, 3, 5, 6, 7))
    module, x = BFloat16Conv(images), torch.randn(2, 6, 9, 9)
    assert module(x).is_contiguous()
    assert module(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert images.weight.dtype == torch.float32 and images.weight.is_contiguous()


@pytest.mark.filterwarnings("ignore:No complete tensor found")
@pytest.mark.parametrize("convolution", [False, True])
def test_a_layer_is_exported_as_torchs_own_operations(convolution: bool) -> None:
    layer: nn.Linear | nn.Conv2d = nn.Conv2d(6, 8, 3) if convolution else nn.Linear(24, 20)
    module = BFloat16Conv(layer) if isinstance(layer, nn.Conv2d) else BFloat16Linear(layer, 6)
    model, x = nn.Sequential(module, nn.ReLU()).eval(), torch.randn(6, *((6, 9, 9) if convolution else (24,)))
    wanted = model(x)
    exported = torch.export.export(copy.deepcopy(model), (x,), dynamic_shapes=({0: torch.export.Dim("samples")},))
    assert "automc" not in str(exported.graph) and "mkldnn" not in str(exported.graph)
    held = io.BytesIO()
    torch.export.save(exported, held)
    held.seek(0)
    loaded = torch.export.load(held).module()
    torch.testing.assert_close(loaded(x), wanted, rtol=2**-7, atol=2**-7)
    more = torch.randn(9, *x.shape[1:])
    torch.testing.assert_close(loaded(more), model(more), rtol=2**-7, atol=2**-7)


WITHOUT = """
import torch
from torch import nn
from automc.kernels.bfloat16 import BFloat16Conv, BFloat16Linear
from tests.kernels.test_bfloat16 import check
torch.manual_seed(0)
linear, images = nn.Linear(70, 33), nn.Conv2d(6, 8, 3, 2, 1, groups=2)
for count in (1, 20):
    check(BFloat16Linear(linear, 20), linear, torch.randn(count, 70))
    check(BFloat16Conv(images), images, torch.randn(count, 6, 9, 9))
"""


@pytest.mark.parametrize("instructions", ["AVX512_CORE", "AVX2"])
def test_processors_without_such_instructions_compute_the_same(instructions: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": instructions},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
