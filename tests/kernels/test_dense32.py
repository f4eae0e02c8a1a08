"""Dense linear layers whose weights a library has laid out beforehand, against torch's own."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.kernels.dense32 import Library, PackedLinear, libraries
from automc.kernels.packed import packed_bytes

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs a torch with MKL or oneDNN")
each_library = pytest.mark.parametrize("library", LIBRARIES)


def check(module: PackedLinear, layer: nn.Linear, x: Tensor) -> None:
    with torch.no_grad():
        found, wanted = module(x), layer(x)
    assert found.shape == wanted.shape and found.isnan().equal(wanted.isnan())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


@given(
    st.sampled_from(LIBRARIES or ["mkl"]), st.integers(1, 150), st.integers(1, 90), st.integers(1, 80),
    st.integers(0, 80), st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=80)
def test_outputs_are_torchs_for_any_number_of_rows(
    library: Library, inputs: int, outputs: int, expected: int, rows: int, bias: bool, holes: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer, x = nn.Linear(inputs, outputs, bias=bias), torch.randn(rows, inputs)
    if holes:
        x[torch.rand_like(x) < 0.01] = torch.nan
    module = PackedLinear(layer, library, expected)
    check(module, layer, x)
    check(module, layer, torch.randn(expected, inputs))


@each_library
def test_any_leading_shape_and_order_in_memory_will_do(library: Library) -> None:
    layer = nn.Linear(24, 20)
    module, x = PackedLinear(layer, library, 15), torch.randn(24, 5, 3).permute(2, 1, 0)
    for x_ in (x, x[0], x[0, 0], x[:0], x[:, :0], x[:, ::2], x.double().float()):
        check(module, layer, x_)
    layer.weight = nn.Parameter(torch.randn(24, 20).T)
    check(PackedLinear(layer, library, 15), layer, torch.randn(15, 24))


@each_library
def test_it_is_exported_as_torchs_own_layer_copied_saved_and_changed(library: Library) -> None:
    layer, x = nn.Linear(24, 20), torch.randn(6, 24)
    model = nn.Sequential(PackedLinear(layer, library, 6), nn.ReLU()).eval()
    wanted = model(x)
    assert packed_bytes(model.buffers()) >= layer.weight.nbytes
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert "aten.linear" in str(exported.graph)
    held = io.BytesIO()
    torch.export.save(exported, held)
    held.seek(0)
    more = torch.randn(9, 24)
    torch.testing.assert_close(torch.export.load(held).module()(more), layer(more).relu())
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), wanted)
    other = copy.deepcopy(model)
    assert packed_bytes(other.buffers()) == 0 and torch.equal(other(x), wanted)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    assert set(state) == {"0.weight", "0.bias"}
    other.load_state_dict(state)
    assert torch.equal(model(x), wanted)
    torch.testing.assert_close(other(x), nn.functional.linear(x, layer.weight + 1, layer.bias + 1).relu())
