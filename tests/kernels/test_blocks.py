"""Weights in blocks against dense ones: layout, choice of blocks, products, as an operation of torch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import PolicyError, TaskError
from automc.kernels import blocks
from automc.kernels.blocks import SIZES, BlockLinear, Blocks, Size, sizes


def thinned(outputs: int, inputs: int, size: Size, kept: float, seed: int = 0) -> Tensor:
    """A weight of which so many blocks of a size are kept, at random."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    mask = torch.rand(-(-outputs // size[0]), -(-inputs // size[1]), generator=generator) < kept
    return weight * mask.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)[:outputs, :inputs]


def kept_blocks(weight: Tensor, size: Size) -> list[tuple[int, int, Tensor]]:
    """Row, column and values of the blocks that hold more than zeros, one by one."""
    rows, columns = size
    found = []
    for i in range(-(-len(weight) // rows)):
        for j in range(-(-weight.shape[1] // columns)):
            own = torch.zeros(size)
            part = weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            own[: len(part), : part.shape[1]] = part
            if own.count_nonzero():
                found.append((i, j, own))
    return found


weights = st.builds(
    thinned,
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([*SIZES, (1, 1), (7, 5)]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.integers(0, 2**31),
)


@given(weights, st.sampled_from(SIZES))
@settings(max_examples=100)
def test_blocks_are_those_that_hold_more_than_zeros_row_by_row(weight: Tensor, size: Size) -> None:
    made, wanted = Blocks.of(weight, size), kept_blocks(weight, size)
    rows = [i for i in range(len(made.start) - 1) for _ in range(int(made.start[i]), int(made.start[i + 1]))]
    assert list(zip(rows, made.column.tolist(), strict=True)) == [(i, j) for i, j, _ in wanted]
    assert all(torch.equal(a, b) for a, (_, _, b) in zip(made.value, wanted, strict=True))
    assert made.value.is_contiguous() and made.start.dtype == made.column.dtype == torch.int32
    assert torch.equal(made.dense(*weight.shape), weight)


@given(weights, st.sampled_from([0.3, 0.6, 1.0]))
@settings(max_examples=60)
def test_sizes_are_those_that_cover_with_fewest_entries_and_no_larger_one_as_well(weight: Tensor, share: float) -> None:
    most = share * weight.numel()
    entries = {size: len(kept_blocks(weight, size)) * size[0] * size[1] for size in SIZES}
    found = sizes(weight, most)
    assert [entries[size] for size in found] == sorted(entries[size] for size in found)
    fitting = {size: count for size, count in entries.items() if count <= most}
    assert bool(found) == bool(fitting) and set(found) <= set(fitting)
    if found:
        assert entries[found[0]] == min(fitting.values())
    for size, count in fitting.items():
        beaten = any(o[0] * o[1] > size[0] * size[1] and fitting[o] <= count for o in fitting)
        assert (size in found) != beaten


def test_the_size_that_a_weight_was_pruned_in_comes_first() -> None:
    for size in SIZES:
        assert sizes(thinned(256, 256, size, 0.2), 0.6 * 256**2)[0] == size
    assert sizes(thinned(256, 256, (1, 1), 0.1), 0.6 * 256**2) == []  # zeros in no blocks
    assert sizes(torch.zeros(20, 20), 0.6 * 400) == [(64, 64)]


@given(weights, st.sampled_from(SIZES), st.integers(0, 20), st.booleans(), st.sampled_from(blocks.TYPES), st.booleans())
@settings(max_examples=100)
def test_a_layer_in_blocks_is_torchs(
    weight: Tensor, size: Size, tokens: int, bias: bool, dtype: torch.dtype, rounded: bool
) -> None:
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias)
    layer.weight = nn.Parameter(weight)
    given = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = (BlockLinear.of(layer, size, dtype) if rounded else BlockLinear.of(layer.to(dtype), size))(
            given if rounded else given.to(dtype)
        )
        wanted = F.linear(given.to(dtype).double(), weight.to(dtype).double(), layer.bias.double() if bias else None)
    assert found.dtype == (torch.float32 if rounded else dtype)
    near = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=near, atol=near * max([1.0, *wanted.abs().flatten()]))


def layer_and_blocks(dtype: torch.dtype | None = None) -> tuple[nn.Linear, BlockLinear]:
    layer = nn.Linear(70, 40).requires_grad_(False)
    layer.weight.copy_(thinned(40, 70, (16, 32), 0.5))
    return layer, BlockLinear.of(layer, (16, 32), dtype).eval()


def test_any_leading_shape_and_order_in_memory_will_do() -> None:
    layer, module = layer_and_blocks()
    x = torch.randn(70, 5, 3).permute(2, 1, 0)
    for x_ in (x, x[0], x[0, 0], x[:0], x[:, :0], x[:, ::2]):
        torch.testing.assert_close(module(x_), layer(x_), rtol=1e-5, atol=1e-5)


def test_what_is_no_number_spoils_what_reads_it_and_nothing_else() -> None:
    layer, module = layer_and_blocks()
    x = torch.randn(9, 70)
    x[4, 33] = torch.nan
    read = torch.repeat_interleave((layer.weight != 0)[::16].view(3, 70)[:, 33], 16)[:40]
    assert 0 < int(read.sum()) < 40
    found = module(x)
    assert found[4].isnan().equal(read) and not found[torch.arange(9) != 4].isnan().any()


def test_it_is_exported_compiled_copied_and_loaded() -> None:
    layer, module = layer_and_blocks()
    x = torch.randn(6, 70)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=64)},))
    assert "automc.blocks.default" in {str(node.target) for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(x[:2]), layer(x[:2]))
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), layer(x))
    again = copy.deepcopy(module)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x)) and "of 16x32" in repr(again)
    made = (module.start, module.column, module.value, module.bias, 70, 40)
    torch.library.opcheck(torch.ops.automc.blocks.default, (x, *made), test_utils=("test_schema", "test_faketensor"))


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, module = layer_and_blocks()
    with pytest.raises(TaskError, match="must have 70 features, as the layer in blocks; one has 69: mend it"):
        module(torch.randn(4, 69))
    made = (module.start, module.column, module.value, module.bias, 70, 40)
    with pytest.raises(
        TaskError, match=r"must be torch.float32, as the layer in blocks; one is torch.float16: convert"
    ):
        torch.ops.automc.blocks(torch.randn(4, 70).half(), *made)
    with pytest.raises(
        PolicyError, match=r"must be float32, float16 or bfloat16 to run in blocks; it is torch.float64"
    ):
        BlockLinear.of(copy.deepcopy(layer).double(), (16, 16))
    monkeypatch.setattr(blocks, "MOST", 2800)
    with pytest.raises(PolicyError, match=r"must have fewer than 2\^30 entries; it has 2800: leave it dense"):
        BlockLinear.of(layer, (16, 16))
