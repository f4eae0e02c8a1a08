"""Weights in 2:4: what counts as such, what is refused, and torch's dense layer wherever there is no GPU."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from automc.errors import PolicyError
from automc.kernels.packed import Packed, packed, packed_bytes
from automc.kernels.pointwise import Pointwise, linear_of
from automc.kernels.semistructured import BACKENDS, Backend, SemiStructuredLinear, keeps_two_of_four

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def two_of_four(outputs: int, inputs: int) -> Tensor:
    """A weight in 2:4, by magnitude."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    fours = weight.view(outputs, -1, 4)
    return (fours * torch.zeros_like(fours).scatter(2, fours.abs().topk(2).indices, 1.0)).view(outputs, inputs)


def in_two_of_four(outputs: int = 64, inputs: int = 128, dtype: torch.dtype = torch.float16) -> nn.Linear:
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    layer.weight.copy_(two_of_four(outputs, inputs))
    return layer.to(dtype)


@given(st.integers(1, 5), st.integers(1, 12), st.data())
def test_two_of_four_is_counted_along_the_inputs(outputs: int, inputs: int, data: st.DataObject) -> None:
    ones = data.draw(st.lists(st.booleans(), min_size=outputs * inputs, max_size=outputs * inputs))
    weight = torch.tensor(ones).view(outputs, inputs).float()
    wanted = inputs % 4 == 0 and all(
        not all(row[at + i] for i in three)
        for row in weight.tolist()
        for at in range(0, inputs, 4)
        for three in combinations(range(4), 3)
    )
    assert keeps_two_of_four(weight) is wanted


@each_backend
def test_what_torch_does_not_run_is_refused_with_what_would_do(backend: Backend) -> None:
    least = {"cusparselt": (16, 16), "cutlass": (32, 64)}[backend]
    wanted = f"multiple of {least[0]} outputs and of {least[1]} inputs to run in 2:4 by {backend}; it has"
    for outputs, inputs in ((40, 128), (64, 72)):
        with pytest.raises(PolicyError, match=f"{wanted} {outputs} and {inputs}: leave it dense"):
            SemiStructuredLinear.of(in_two_of_four(outputs, inputs), backend)
    with pytest.raises(
        PolicyError, match=r"must be float16 or bfloat16 to run in 2:4; it is torch.float32: convert it"
    ):
        SemiStructuredLinear.of(in_two_of_four(dtype=torch.float32), backend)
    dense = in_two_of_four()
    dense.weight[3, 4:7] = 1.0
    with pytest.raises(PolicyError, match="at most 2 of every 4 consecutive inputs to run in 2:4; this one keeps more"):
        SemiStructuredLinear.of(dense, backend)
    with pytest.raises(PolicyError, match="must be on a GPU to run in 2:4; it is on cpu: move it to cuda"):
        SemiStructuredLinear.of(in_two_of_four(dtype=torch.float32), backend, torch.bfloat16)


@each_backend
def test_on_a_processor_and_where_it_is_recorded_it_is_torchs_dense_layer(backend: Backend) -> None:
    layer = in_two_of_four(dtype=torch.bfloat16)
    module, x = SemiStructuredLinear(layer.weight.detach(), layer.bias.detach(), backend), torch.randn(2, 3, 128)
    for x_ in (x.bfloat16(), x, x[:0]):
        assert torch.equal(module(x_), layer(x_.bfloat16()).to(x_.dtype))
    assert f"backend={backend}" in repr(module) and set(module.state_dict()) == {"weight", "bias"}
    assert "aten.linear" in str(torch.export.export(module, (x,)).graph)


def test_what_is_kept_of_a_weight_in_two_of_four_is_counted() -> None:
    weight = in_two_of_four().weight.detach()
    values, places = sparse_semi_structured_from_dense_cutlass(weight)
    packed(weight, "2:4", lambda: Packed((BACKENDS["cutlass"](weight.shape, values, places, None, None, None),)))
    assert packed_bytes([weight]) == weight.nbytes // 2 + weight.nbytes // 16


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_of_one_position_is_a_linear_layer(last: bool, bias: bool) -> None:
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    for stride in ((1, 1), (2, 3)):
        layer = nn.Conv2d(6, 4, 1, stride=stride, bias=bias).requires_grad_(False)
        linear = linear_of(layer)
        assert linear is not None
        found, wanted = Pointwise(linear, layer.stride)(x), layer(x)
        torch.testing.assert_close(found, wanted)
        assert found.is_contiguous() is not last and found.is_contiguous(memory_format=torch.channels_last) is last


def test_no_other_convolution_is_one() -> None:
    whole = nn.Linear(6, 4)
    assert linear_of(whole) is whole and linear_of(nn.Conv2d(6, 4, 1, padding="same")) is not None
    others = (nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(6, 4, 1, padding=1), nn.Conv1d(6, 4, 1))
    assert not any(map(linear_of, others)) and linear_of(nn.ReLU()) is None
