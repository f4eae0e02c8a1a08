"""Sparse layers of 8 bits, against exact integer sums and the rounded layer in torch."""

import copy
import io
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.compression.patterns import layout, mask_by_score
from automc.compression.quantize import Observed, QuantizedLayer, weight_scale
from automc.errors import PolicyError
from automc.kernels import compiler, sparse8
from automc.kernels.integers import LARGEST
from automc.kernels.sparse8 import PATTERNS, Blocks, SparseInt8Linear
from automc.pattern import parse
from tests.kernels.compiled import compiled_with

WITHOUT = {
    "all that there is": (),
    "no tiles": ("-mno-amx-int8",),
    "512 bits that widen": ("-mno-amx-int8", "-mno-avx512vnni"),
    "256 bits": ("-mno-avx512f",),
    "256 bits that widen": ("-mno-avx512f", "-mno-avxvnni"),
    "any processor": ("-march=x86-64",),
    "plain C": ("-march=x86-64", "-U__SSE2__"),
}


def quantized(
    inputs: int, outputs: int, rows: int, sparsity: float, bits: tuple[int, int] = (8, 8), seed: int = 0
) -> QuantizedLayer:
    """A rounded linear layer with blocks of zeros."""
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs)
    pattern = parse(PATTERNS[rows])
    if sparsity >= 1:
        layer.weight.data.zero_()
    else:
        keep = mask_by_score(torch.rand(outputs, inputs), sparsity, pattern, layout((outputs, inputs), 1, pattern))
        layer.weight.data *= keep
    return rounded(layer, bits)


def rounded(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d, bits: tuple[int, int]) -> QuantizedLayer:
    """The layer with so many bits of weights and inputs."""
    found = QuantizedLayer(layer, *bits)
    found.round_(weight_scale(layer.weight.detach(), bits[0]))
    assert found.input is not None
    found.input.calibrate(Observed.of([torch.randn(1000) * 2 + 0.5]), "minmax")
    return found


def exact(layer: QuantizedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in float64 from integer sums, and what rounding them to float32 may lose."""
    assert layer.input is not None and layer.codes is not None and layer.weight_scale is not None
    assert isinstance(layer.layer, nn.Linear)
    step, zero, top = layer.input.levels()
    level = (x / torch.tensor(step)).round().clamp(-zero, top - zero).nan_to_num(0.0).long()
    worth = (level @ layer.codes.T).double() * layer.weight_scale.double() * step
    bias = (torch.zeros(len(layer.codes)) if layer.layer.bias is None else layer.layer.bias.detach()).double()
    return worth + bias, 4 * 2**-24 * (worth.abs() + bias.abs())


def inputs_of(layer: QuantizedLayer, tokens: int) -> Tensor:
    """Inputs of which many lie half-way between two levels, and some far away."""
    assert layer.input is not None and isinstance(layer.layer, nn.Linear)
    step = layer.input.levels()[0]
    x = torch.randn(tokens, layer.layer.in_features) * 2
    half = (torch.randint(-100, 100, x.shape) + 0.5) * step
    near = torch.nextafter(half, torch.randn_like(half) * 1e9)
    kind = torch.randint(0, 20, x.shape)
    far = torch.tensor([1e30, -1e30, math.inf, -math.inf])[torch.randint(0, 4, x.shape)]
    return torch.where(kind == 0, far, torch.where(kind < 4, half, torch.where(kind < 8, near, x)))


def check(layer: QuantizedLayer, x: Tensor, rows: int) -> None:
    """The kernel's outputs are exact but for the last rounding, and those of the scored layer."""
    assert isinstance(layer.layer, nn.Linear) and layer.input is not None
    found = SparseInt8Linear.of(layer, rows=rows)(x)
    wanted, lost = exact(layer, x)
    numbers = ~x.isnan().any(dim=-1)
    assert found.shape == wanted.shape and found[~numbers].isnan().all()
    assert ((found - wanted).abs() <= lost)[numbers].all()
    with torch.no_grad():
        scored = layer(x)
        size = layer.input(x).abs().double() @ layer.layer.weight.abs().double().T
    bound = (x.shape[-1] + 8) * 2**-24 * (size + layer.layer.bias.abs())
    assert ((found - scored).abs() <= bound)[numbers].all()
    assert scored.isfinite().all(dim=-1).equal(numbers)


@pytest.fixture(params=list(WITHOUT.values()), ids=list(WITHOUT))
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Compiled with these flags as well."""
    with compiled_with(request.param, monkeypatch) as patch:
        patch.setattr(sparse8, "TILED", 2)
        patch.setattr(sparse8, "BUSY", 0)
        yield request.param


def test_every_instruction_set_gives_the_exact_sums(flags: tuple[str, ...]) -> None:
    for rows in PATTERNS:
        for inputs, outputs, tokens, sparsity in [
            (1, 1, 1, 0.0), (3, 50, 2, 0.5), (70, 33, 7, 0.5), (64, 64, 16, 1.0), (130, 100, 67, 0.8),
            (400, 96, 31, 0.0), (96, 160, 129, 0.9), (33, 17, 0, 0.5), (515, 20, 65, 0.3),
        ]:  # fmt: skip
            layer = quantized(inputs, outputs, rows, sparsity)
            x = inputs_of(layer, tokens)
            if tokens > 5:
                x[3, 0] = x[tokens - 1, inputs - 1] = math.nan
            check(layer, x, rows)
    level = sparse8.level()
    assert level >= 0 if compiler.compiler() else level == -1
    if "-mno-amx-int8" in flags:
        assert level < 2
    if "-mno-avx512vnni" in flags or "-mno-avxvnni" in flags or "-march=x86-64" in flags:
        assert level < 1


@given(
    st.integers(1, 150), st.integers(1, 70), st.integers(0, 70), st.sampled_from([16, 4]),
    st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]), st.integers(2, 8), st.integers(2, 8), st.booleans(), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=80)
def test_outputs_are_those_of_the_rounded_layer(
    inputs: int, outputs: int, tokens: int, rows: int, sparsity: float, weight_bits: int, activation_bits: int,
    holes: bool, busy: bool, seed: int,
) -> None:  # fmt: skip
    layer = quantized(inputs, outputs, rows, sparsity, (weight_bits, activation_bits), seed)
    x = inputs_of(layer, tokens)
    if holes:
        x[torch.rand_like(x) < 0.01] = math.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse8, "BUSY", 0 if busy else sparse8.BUSY)
        check(layer, x, rows)


def test_without_a_compiler_torch_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = quantized(70, 33, 16, 0.5)
    x = inputs_of(layer, 9)
    monkeypatch.setattr(sparse8, "_function", lambda: None)
    check(layer, x, 16)
    check(quantized(70, 33, 4, 0.5), x, 4)
    assert sparse8.level() == -1


@pytest.mark.parametrize("rows", PATTERNS)
def test_blocks_hold_all_codes_and_no_zero_block(rows: int) -> None:
    codes = quantized(53, 37, rows, 0.7).codes
    assert codes is not None
    blocks = Blocks.of(codes, rows)
    assert blocks.dense().long().equal(codes)
    assert blocks.codes.flatten(1).any(dim=1).all()
    padded = nn.functional.pad(codes, (0, -53 % 4, 0, -37 % rows))
    spans = padded.reshape(-1, rows, padded.shape[1] // (4 if rows == 16 else 1), 4 if rows == 16 else 1)
    kept = spans.transpose(1, 2).flatten(2).any(dim=2).sum(dim=1)
    assert blocks.starts.diff().tolist() == (kept if rows == 16 else (kept + 3) // 4).tolist()


def test_limits_clamp_the_output() -> None:
    layer = quantized(64, 32, 16, 0.5)
    x = inputs_of(layer, 20)
    x[4, 4] = math.nan
    free, relu = SparseInt8Linear.of(layer)(x), SparseInt8Linear.of(layer, low=0.0)(x)
    assert torch.equal(relu.nan_to_num(-1.0), free.relu().nan_to_num(-1.0))
    six = SparseInt8Linear.of(layer, rows=4, low=0.0, high=6.0)(x)
    assert torch.allclose(six, free.clamp(0, 6), equal_nan=True, atol=1e-6)


def test_any_leading_shape_and_order_in_memory_will_do() -> None:
    layer = quantized(24, 20, 16, 0.5)
    module = SparseInt8Linear.of(layer)
    x = torch.randn(24, 5, 3).permute(2, 1, 0)
    assert module(x).shape == (3, 5, 20)
    assert torch.equal(module(x), module(x.contiguous()))
    assert torch.equal(module(x[0, 0]), module(x)[0, 0])
    assert module(x[:, :0]).shape == (3, 0, 20)


def test_outputs_do_not_depend_on_the_number_of_threads() -> None:
    layer, before = quantized(64, 48, 16, 0.5), torch.get_num_threads()
    module, x = SparseInt8Linear.of(layer), inputs_of(layer, 400)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(module(x))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_the_largest_sums_fit_and_larger_ones_are_refused() -> None:
    inputs = LARGEST // 127
    codes = torch.full((1, inputs), 127)
    module = SparseInt8Linear(codes, torch.ones(1), None, (1.0, 0.0, 255.0))
    assert float(module(torch.full((1, inputs), 255.0))) == float(torch.tensor(127.0 * 255 * inputs))
    with pytest.raises(PolicyError, match="split its inputs"):
        Blocks.of(torch.full((1, inputs + 1), 127))


def test_what_cannot_be_multiplied_is_refused() -> None:
    with pytest.raises(PolicyError, match="choose the pattern 16x4 or 4x1"):
        Blocks.of(torch.zeros(4, 4), 8)
    with pytest.raises(PolicyError, match="one of 128 was given"):
        Blocks.of(torch.full((4, 4), -128))
    with pytest.raises(PolicyError, match="choose 8 bits for both"):
        SparseInt8Linear.of(QuantizedLayer(nn.Linear(4, 4), 8, 32))
    with pytest.raises(PolicyError, match="it is a Conv2d"):
        SparseInt8Linear.of(QuantizedLayer(nn.Conv2d(4, 4, 1), 8, 8))
    with pytest.raises(PolicyError, match="Levels must be 0 to 255"):
        SparseInt8Linear(torch.zeros(4, 4), torch.ones(4), None, (1.0, 300.0, 1023.0))


def test_tiles_that_point_outside_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse8, "BUSY", 0)
    module = SparseInt8Linear.of(quantized(24, 20, 16, 0.5))
    if not module.tiled:
        pytest.skip("a processor without tiles")
    for name, index, value in (("tile_places", (0, 15), 6), ("tile_starts", 1, 0), ("tile_starts", -1, 10**6)):
        broken = copy.deepcopy(module)
        getattr(broken, name)[index] = value
        with pytest.raises(RuntimeError, match="blocks must lie inside"):
            broken(torch.randn(16, 24))


def test_what_would_be_misread_is_refused() -> None:
    module = SparseInt8Linear.of(quantized(24, 20, 16, 0.5))
    for x in (torch.randn(2, 24, dtype=torch.float64), torch.randint(0, 9, (2, 24))):
        with pytest.raises(RuntimeError, match="must be given float32 x"):
            module(x)
    with pytest.raises(RuntimeError, match="must be given float32 x"):
        copy.deepcopy(module).half()(torch.randn(2, 24))
    for name, index, value in (("places", 0, 1000), ("places", -1, -1), ("starts", 1, 10**6), ("starts", -1, 10**6)):
        broken = copy.deepcopy(module)
        getattr(broken, name)[index] = value
        with pytest.raises(RuntimeError, match="blocks must lie inside"):
            broken(torch.randn(2, 24))
    for inputs in (12, 22, 25):  # 22 have as many groups of four, and 25 all of them
        with pytest.raises(RuntimeError, match="last side of x must be 24"):
            module(torch.randn(2, inputs))
        for x in (torch.randn(2, inputs), torch.randn(2, inputs, device="meta")):
            with pytest.raises(RuntimeError, match="last side of x must be 24"):
                torch.ops.automc.sparse8_linear(x, *module.held(), [], 24, 20, 16, -math.inf, math.inf)


@pytest.mark.parametrize("busy", [0, 10**6])
def test_the_operator_is_exported_saved_and_compiled(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse8, "BUSY", busy)
    monkeypatch.setattr(sparse8, "TILED", 2)
    layer = quantized(24, 20, 16, 0.5)
    model = nn.Sequential(SparseInt8Linear.of(layer), nn.ReLU())
    x = inputs_of(layer, 6)
    tokens = torch.export.Dim("tokens")
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: tokens},))
    assert "automc.sparse8_linear" in str(exported.graph)
    held = io.BytesIO()
    torch.export.save(exported, held)
    held.seek(0)
    assert torch.equal(torch.export.load(held).module()(x[:5]), model(x[:5]))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    names = ("codes", "places", "starts", "offset", "scale", "bias", "levels")
    held_by = model[0]
    assert isinstance(held_by, SparseInt8Linear)
    for tiles in ([], list(held_by.blocks().tiles())):
        arguments = (x, *(getattr(held_by, n) for n in names), tiles, 24, 20, 16, -math.inf, math.inf)
        torch.library.opcheck(torch.ops.automc.sparse8_linear.default, arguments)


@pytest.mark.parametrize(("rows", "busy"), [(16, 0), (16, 10**6), (4, 0)])
def test_a_saved_module_gives_the_same(rows: int, busy: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sparse8, "BUSY", busy)
    module, x = SparseInt8Linear.of(quantized(24, 20, rows, 0.5), rows=rows), torch.randn(30, 24)
    assert module.tiled == (rows == 16 and busy == 0 and sparse8.level() == 2)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    assert set(module.state_dict()) == {"codes", "places", "starts", "offset", "scale", "bias", "levels"}
    other = copy.deepcopy(module)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    assert torch.equal(other(x), module(x))


def test_tiles_hold_the_blocks_of_every_set() -> None:
    codes = quantized(150, 70, 16, 0.3).codes
    assert codes is not None
    codes[16:32] = 0
    codes[:16, 100:] = 0
    blocks = Blocks.of(codes)
    tiles, places, starts = blocks.tiles()
    found = torch.zeros(80, 38, 4, dtype=torch.int64)
    for block_set, (first, last) in enumerate(zip(starts.tolist(), starts[1:].tolist(), strict=False)):
        for tile in range(first, last):
            for block in range(16):
                at = tiles[tile].reshape(16, 16, 4)[:, block].long()
                found[16 * block_set : 16 * block_set + 16, places[tile, block]] += at
    assert found.reshape(80, -1)[:70, :150].equal(codes)
    assert int(starts.diff()[1]) == 1 and bool((starts.diff() >= 1).all())
