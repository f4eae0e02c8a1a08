"""Dense layers of 8 bits by oneDNN, against exact integer sums and the rounded layer in torch."""

import copy
import io
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.compression.quantize import QuantizedLayer, weight_scale
from automc.errors import PolicyError
from automc.kernels import dense8, dense8_conv
from automc.kernels.compiler import compiler as compiler_here
from automc.kernels.dense8 import Dense8, DenseInt8Linear, sums_exactly
from automc.kernels.dense8_conv import DenseInt8Conv2d
from automc.kernels.packed import Packed, packed, packed_bytes
from automc.kernels.steps import Window
from tests.kernels.compiled import compiled_with
from tests.kernels.test_sparse8 import exact, inputs_of, rounded

needs_onednn = pytest.mark.skipif(not sums_exactly(63), reason="needs torch's oneDNN on such a processor")
LARGE = pytest.mark.skipif(not sums_exactly(127), reason="needs instructions that add up four products")
OTHERS = ("AVX512_CORE", "AVX2_VNNI", "AVX2")
"""Instructions that oneDNN can be held to."""


def linear(
    inputs: int, outputs: int, bits: tuple[int, int] = (7, 8), *, bias: bool = True, seed: int = 0
) -> QuantizedLayer:
    """A rounded linear layer."""
    torch.manual_seed(seed)
    return rounded(nn.Linear(inputs, outputs, bias=bias), bits)


def check(layer: QuantizedLayer, x: Tensor) -> None:
    """Outputs are exact but for the last roundings, and not numbers where torch's are none."""
    with torch.no_grad():
        found, scored = DenseInt8Linear.of(layer)(x), layer(x)
    assert isinstance(layer.layer, nn.Linear)
    wanted, lost = exact(layer, x)
    numbers = ~x.isnan().any(dim=-1)
    assert found.shape == scored.shape and found.dtype == scored.dtype
    assert found[~numbers].isnan().all() and scored.isfinite().all(dim=-1).equal(numbers)
    assert ((found - wanted).abs() <= lost)[numbers].all()


@torch.no_grad()
def check_images(layer: QuantizedLayer, x: Tensor) -> None:
    """Outputs are those of the scored layer, up to what adding floats loses, and lie in memory as x does."""
    conv = layer.layer
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d)) and layer.input is not None
    found, scored = DenseInt8Conv2d.of(layer)(x), layer(x)
    alone = copy.deepcopy(conv).double()
    alone.weight.abs_()
    if alone.bias is not None:
        alone.bias.abs_()
    bound = (conv.weight[0].numel() + 8) * 2**-24 * alone(layer.input(x).nan_to_num().abs().double())
    assert found.shape == scored.shape and found.isnan().equal(scored.isnan())
    assert ((found - scored).abs() <= bound)[~scored.isnan()].all()
    assert found.is_contiguous() or not x.is_contiguous()


@pytest.fixture(params=[False, True], ids=["compiled", "torch"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler and without."""
    if request.param:
        for module in (dense8, dense8_conv):
            monkeypatch.setattr(module, "functions", lambda: None)


@needs_onednn
@pytest.mark.parametrize("tokens", [0, 1, 2, 17, 64])
def test_outputs_are_exact_with_and_without_a_compiler(compiler: None, tokens: int) -> None:
    for inputs, outputs, bits in [(1, 1, (7, 8)), (3, 50, (2, 2)), (70, 33, (7, 8)), (515, 20, (5, 4))]:
        layer = linear(inputs, outputs, bits)
        x = inputs_of(layer, tokens)
        if tokens > 2:
            x[2, 0] = x[tokens - 1, inputs - 1] = math.nan
        check(layer, x)


@LARGE
@given(
    st.integers(1, 150), st.integers(1, 70), st.integers(0, 70), st.integers(2, 8), st.integers(2, 8), st.booleans(),
    st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=80)
def test_outputs_are_those_of_the_rounded_layer(
    inputs: int, outputs: int, tokens: int, weight_bits: int, activation_bits: int, bias: bool, holes: bool, seed: int
) -> None:
    layer = linear(inputs, outputs, (weight_bits, activation_bits), bias=bias, seed=seed)
    x = inputs_of(layer, tokens)
    if holes:
        x[torch.rand_like(x) < 0.01] = math.nan
    check(layer, x)


@needs_onednn
def test_images_are_exact_with_and_without_a_compiler(compiler: None) -> None:
    torch.manual_seed(0)
    for channels, outputs, kernel, stride, padding, groups in [
        (16, 33, 3, 1, 1, 1), (6, 16, 3, 2, 1, 2), (9, 20, 1, 1, 0, 1), (8, 8, 5, 3, 2, 4), (1, 5, 3, 1, 1, 1),
    ]:  # fmt: skip
        layer = rounded(nn.Conv2d(channels, outputs, kernel, stride, padding, groups=groups), (7, 8))
        x = torch.randn(2, channels, 9, 37)
        x[1, channels - 1, 3, 20] = math.nan
        for given_ in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[:0], x[:, :, :, ::2]):
            check_images(layer, given_)


@LARGE
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.tuples(st.integers(1, 3), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)), st.tuples(st.integers(9, 12), st.integers(9, 40)),
    st.integers(0, 3), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=80)
def test_convolutions_are_those_of_the_rounded_layer(
    channels: int, outputs: int, groups: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], size: tuple[int, int], images: int, bias: bool, last: bool,
    holes: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    groups = groups if channels > 1 else 1
    conv = nn.Conv2d(channels * groups, outputs * groups, kernel, stride, padding, dilation, groups, bias)
    x = torch.randn(images, channels * groups, *size) * 2
    if holes:
        x[torch.rand_like(x) < 0.002] = math.nan
    x[torch.rand_like(x) < 0.002] = math.inf
    layer = rounded(conv, (8, 8))
    check_images(layer, x.to(memory_format=torch.channels_last) if last else x)


@needs_onednn
@pytest.mark.parametrize("padding", [0, 3, "same", "valid"])
def test_rows_and_named_paddings_are_convolutions_too(padding: int | str) -> None:
    torch.manual_seed(0)
    check_images(rounded(nn.Conv1d(6, 8, 5, padding=padding, groups=2), (7, 8)), torch.randn(3, 6, 20))
    check_images(rounded(nn.Conv2d(6, 8, (3, 5), padding=padding, dilation=2), (7, 8)), torch.randn(3, 6, 20, 21))


@pytest.fixture(params=[(), ("-mno-avx512f",), ("-march=x86-64",), ("-march=x86-64", "-U__SSE2__")], ids=str)
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled with these flags as well."""
    with compiled_with(request.param, monkeypatch):
        yield


@pytest.mark.skipif(compiler_here() is None, reason="needs a C compiler")
def test_every_instruction_set_rounds_alike(flags: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = linear(37, 3)
    assert layer.input is not None and dense8.functions() is not None
    levels = torch.tensor(layer.input.levels())
    values = inputs_of(layer, 200).flatten()
    for size in [(1, 1), (5, 37), (3, 37, 5, 7), (2, 4, 16, 16), (2, 2, 3, 3), (1, 18, 9, 40)]:
        for holes in (False, True):
            x = values[: math.prod(size)].reshape(size).clone()
            if holes:
                x.view(-1)[-1] = math.nan
            if x.dim() == 2:
                assert_alike(partial(dense8._rounded, x, levels), monkeypatch, x)
                continue
            for kernel, stride, padding, dilation, groups in [
                ((1, 1), (1, 1), (0, 0), (1, 1), 1), ((3, 3), (1, 1), (1, 1), (1, 1), 1),
                ((3, 2), (2, 1), (0, 2), (1, 2), 1), ((1, 3), (1, 3), (0, 0), (1, 1), x.shape[1] // 2 or 1),
            ]:  # fmt: skip
                if x.shape[1] % groups:
                    continue
                window = Window(kernel, stride, padding, dilation)
                made = window.over((x.shape[2], x.shape[3], x.shape[1]))
                for given_ in (x, x.to(memory_format=torch.channels_last)):
                    asked = partial(dense8_conv._windows, given_, levels, int(levels[1]), window, groups, made)
                    assert_alike(asked, monkeypatch, None)


def assert_alike(run: Callable[[], tuple[Tensor, bool]], monkeypatch: pytest.MonkeyPatch, x: Tensor | None) -> None:
    """Compiled or not; of what is no number, only that it is seen."""
    found, numbers = run()
    with monkeypatch.context() as patch:
        for module in (dense8, dense8_conv):
            patch.setattr(module, "functions", lambda: None)
        wanted, all_numbers = run()
    assert found.shape == wanted.shape and numbers >= all_numbers  # torch looks at what nobody reads, too
    if numbers:
        assert torch.equal(found, wanted) or not all_numbers
    elif x is not None:
        assert torch.equal(found[~x.isnan()], wanted[~x.isnan()])


CAPPED = """
import torch
from automc.compression.quantize import QuantizedLayer
from automc.errors import PolicyError
from automc.kernels import dense8
from automc.kernels.dense8_conv import DenseInt8Conv2d
from tests.kernels.test_dense8 import check, check_images, inputs_of, linear, rounded

assert dense8.sums_exactly(63)
exact = dense8.sums_exactly(127)
torch.manual_seed(0)
for tokens in (1, 3, 40):
    for inputs, outputs in ((64, 64), (70, 33), (3, 5)):
        layers = [linear(inputs, outputs, bits) for bits in ((7, 8), (8, 7), *([(8, 8)] if exact else []))]
        for layer in layers:
            check(layer, inputs_of(layer, tokens))
            layer.layer.weight.data = 127 * layer.weight_scale[:, None].expand(-1, inputs).clone()
            layer.round_(layer.weight_scale, layer.layer.weight.sign() * (2 ** (layer.weight_bits - 1) - 1))
            check(layer, torch.full((tokens, inputs), 100.0))
for groups, kernel in ((1, 3), (2, 3), (4, 3), (1, 1)):
    for bits in ((7, 8), (8, 7), *([(8, 8)] if exact else [])):
        layer = rounded(torch.nn.Conv2d(16, 32, kernel, 1, 1, groups=groups), bits)
        check_images(layer, torch.randn(3, 16, 9, 9) * 3)
if not exact:
    try:
        dense8.DenseInt8Linear.of(linear(64, 64, (8, 8)))
    except PolicyError as error:
        assert "choose 7 bits" in str(error)
    else:
        raise AssertionError("sums that are cut off were not refused")
    layer, image = linear(64, 64, (8, 8)), rounded(torch.nn.Conv2d(16, 32, 3), (8, 8))
    dense8.trusted, trust = lambda codes, top: True, dense8.trusted
    moved = dense8.DenseInt8Linear.of(layer), DenseInt8Conv2d.of(image)
    dense8.trusted = trust
    with torch.no_grad():  # modules from a processor that sums exactly
        for module, wanted, x in zip(moved, (layer, image), (inputs_of(layer, 9), torch.randn(2, 16, 9, 9))):
            torch.testing.assert_close(module(x), wanted(x), rtol=1e-5, atol=1e-4)
print(exact)
"""


@pytest.mark.skipif(not sums_exactly(127), reason="needs a processor with all of these instructions")
@pytest.mark.parametrize("instructions", OTHERS)
def test_other_instructions_give_exact_sums_or_are_refused(instructions: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CAPPED],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": instructions},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == str("VNNI" in instructions)


def test_what_cannot_be_multiplied_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = QuantizedLayer(nn.Linear(4, 4), 8, 8, "kmeans")
    shared.share_()
    for layer in (shared, QuantizedLayer(nn.Linear(4, 4), 8, 32), QuantizedLayer(nn.Linear(4, 4), 32, 8)):
        with pytest.raises(PolicyError, match="evenly spaced levels; choose 8 bits for both"):
            DenseInt8Linear.of(layer)
    with pytest.raises(PolicyError, match="it is a Conv2d"):
        DenseInt8Linear.of(rounded(nn.Conv2d(4, 4, 1), (8, 8)))
    with pytest.raises(PolicyError, match=r"must be an nn\.Conv1d or nn\.Conv2d"):
        DenseInt8Conv2d.of(rounded(nn.ConvTranspose2d(4, 4, 1), (8, 8)))
    with pytest.raises(PolicyError, match="and not depthwise"):
        DenseInt8Conv2d.of(rounded(nn.Conv2d(4, 8, 1, groups=4), (8, 8)))
    for conv in (nn.Conv2d(4, 4, 2, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")):
        with pytest.raises(PolicyError, match="Padding must be of zeros, and even"):
            DenseInt8Conv2d.of(rounded(conv, (8, 8)))
    with pytest.raises(PolicyError, match="Levels must be 0 to 255"):
        Dense8(torch.zeros(4, 4), torch.ones(4), None, (1.0, 300.0, 1023.0))
    with pytest.raises(PolicyError, match="one of 128 was given"):
        Dense8(torch.full((4, 4), -128), torch.ones(4), None, (1.0, 0.0, 255.0))
    monkeypatch.setattr(dense8, "sums_exactly", lambda largest: largest < 64)
    with pytest.raises(PolicyError, match="cuts those of such codes off on this processor: choose 7 bits"):
        Dense8(torch.full((4, 4), 65), torch.ones(4), None, (1.0, 0.0, 255.0))
    Dense8(torch.full((4, 4), 64), torch.ones(4), None, (1.0, 0.0, 255.0))


@needs_onednn
def test_what_would_be_misread_is_refused() -> None:
    module, images = DenseInt8Linear.of(linear(24, 20)), DenseInt8Conv2d.of(rounded(nn.Conv2d(8, 16, 3), (7, 8)))
    for x in (torch.randn(2, 24, dtype=torch.float64), torch.randint(0, 9, (2, 24))):
        with pytest.raises(RuntimeError, match="must be given float32 x"):
            module(x)
    with pytest.raises(RuntimeError, match="must be given float32 x"):
        copy.deepcopy(module).half()(torch.randn(2, 24))
    with pytest.raises(RuntimeError, match="last side of x must be 24"):
        module(torch.randn(2, 25))
    for shape in ((1, 9, 8, 8), (8, 8, 8)):
        with pytest.raises(RuntimeError, match=r"must be \(images, 8, height, width\)"):
            images(torch.randn(shape))
    with pytest.raises(RuntimeError, match="An image must have an output"):
        images(torch.randn(1, 8, 2, 2))


@needs_onednn
def test_any_leading_shape_and_order_in_memory_will_do() -> None:
    module = DenseInt8Linear.of(linear(24, 20))
    x = torch.randn(24, 5, 3).permute(2, 1, 0)
    assert module(x).shape == (3, 5, 20) and torch.equal(module(x), module(x.contiguous()))
    assert torch.equal(module(x[0, 0]), module(x)[0, 0])
    assert module(x[:, :0]).shape == (3, 0, 20) and module(x[:0]).shape == (0, 5, 20)


@needs_onednn
def test_outputs_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense8, "FLOATS", 1)  # every thread, however little there is to do
    layer, images = linear(64, 48), rounded(nn.Conv2d(8, 16, 3), (7, 8))
    modules, before = (DenseInt8Linear.of(layer), DenseInt8Conv2d.of(images)), torch.get_num_threads()
    given_ = (inputs_of(layer, 401), torch.randn(5, 8, 9, 9))
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append([module(x) for module, x in zip(modules, given_, strict=True)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_onednn
@pytest.mark.parametrize("convolution", [False, True])
def test_the_operators_are_exported_saved_and_compiled(convolution: bool) -> None:
    layer = rounded(nn.Conv2d(8, 16, 3, 2, 1, groups=2), (7, 8)) if convolution else linear(24, 20)
    module = DenseInt8Conv2d.of(layer) if convolution else DenseInt8Linear.of(layer)
    model, x = nn.Sequential(module, nn.ReLU()), torch.randn(6, *((8, 9, 9) if convolution else (24,)))
    model(x)  # what oneDNN made of the weight is in nobody's way
    exported = torch.export.export(copy.deepcopy(model), (x,), dynamic_shapes=({0: torch.export.Dim("samples")},))
    assert f"automc.dense8_{'conv2d' if convolution else 'linear'}" in str(exported.graph)
    held = io.BytesIO()
    torch.export.save(exported, held)
    held.seek(0)
    loaded = torch.export.load(held).module()
    for count in (5, 1, 40):
        more = torch.randn(count, *x.shape[1:])
        assert torch.equal(loaded(more), model(more))
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    sides = ([2, 2], [1, 1], [1, 1], 2) if convolution else ()
    operator = torch.ops.automc.dense8_conv2d if convolution else torch.ops.automc.dense8_linear
    torch.library.opcheck(operator.default, (x, *module.held(), *sides))
    if convolution:
        last = x.to(memory_format=torch.channels_last)
        torch.library.opcheck(operator.default, (last, *module.held(), *sides))


@needs_onednn
def test_a_saved_module_gives_the_same_and_a_changed_weight_is_packed_anew(tmp_path: Path) -> None:
    module, x = DenseInt8Linear.of(linear(24, 20)), torch.randn(30, 24)
    wanted = module(x)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    assert set(module.state_dict()) == {"codes", "scale", "bias", "levels"}
    other = copy.deepcopy(module)
    for buffer in other.buffers():
        buffer.zero_()
    other.levels.fill_(1.0)
    assert not other(x).any()
    other.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    assert torch.equal(other(x), wanted)
    other.levels[1] -= 1
    moved = other(x + module.levels[0])
    assert not torch.equal(moved, wanted)
    with torch.inference_mode():
        inside = DenseInt8Linear.of(linear(24, 20))
        assert torch.equal(inside(x), wanted)


@needs_onednn
def test_what_is_kept_of_a_weight_goes_with_it() -> None:
    module = DenseInt8Linear.of(linear(24, 20))
    assert packed_bytes(module.buffers()) == 0
    module(torch.randn(2, 24))
    assert packed_bytes(module.buffers()) >= 24 * 20
    weight = torch.ones(3)
    made: list[int] = []
    for _ in range(2):
        packed(weight, "any", lambda: made.append(1) or Packed(()))  # type: ignore[func-returns-value]
    assert len(made) == 1
    weight += 1
    packed(weight, "any", lambda: made.append(1) or Packed(()))  # type: ignore[func-returns-value]
    assert len(made) == 2 and packed_bytes([weight]) == 0


def test_scales_of_both_sides_are_told_apart() -> None:
    """A weight whose outputs have very different scales."""
    layer = nn.Linear(16, 8)
    with torch.no_grad():
        layer.weight *= 10.0 ** torch.arange(-4, 4)[:, None]
    found = rounded(layer, (7, 8))
    assert found.weight_scale is not None and torch.equal(found.weight_scale, weight_scale(layer.weight.detach(), 7))
    if sums_exactly(63):
        check(found, inputs_of(found, 12))
