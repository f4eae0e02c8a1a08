"""Sparse linear layers against torch: blocks, parts, odd sizes, threads, as operations of torch."""

import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from automc.deployment.network import PlannedNetwork, network_of
from automc.errors import ArtifactError, TaskError
from automc.kernels import build, tokens
from automc.kernels.matrix import BLOCKS
from automc.kernels.steps import Limits
from automc.kernels.tokens import ACROSS, PlannedLinear, TokenChoice, ended, lanes, most_vectors, planned, run

pytestmark = pytest.mark.skipif(not lanes(), reason="needs a C compiler")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def choices(draw: st.DrawFn) -> TokenChoice:
    block, parts = draw(st.sampled_from([*BLOCKS, ACROSS])), draw(st.integers(1, 4))
    if block == ACROSS:
        return TokenChoice(ACROSS, parts=parts)
    return TokenChoice(block, draw(st.integers(1, most_vectors(block))), parts)


@given(
    st.integers(1, 90),
    st.integers(1, 70),
    st.integers(0, 70),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.data(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=250)
def test_a_linear_layer_is_torchs(
    inputs: int, outputs: int, rows: int, density: float, data: st.DataObject, residual: bool, gelu: bool, seed: int
) -> None:
    choice = data.draw(choices())
    check_linear(inputs, outputs, rows, density, choice, residual, gelu, seed)


def check_linear(
    inputs: int, outputs: int, rows: int, density: float, choice: TokenChoice, residual: bool, gelu: bool, seed: int
) -> None:
    weight, bias = normal(outputs, inputs, seed=seed + 2), normal(outputs, seed=seed + 3)
    weight = weight * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < density)
    x, other = normal(rows, inputs, seed=seed), normal(rows, outputs, seed=seed + 1)
    plan = planned(weight.numpy(), bias.numpy(), choice, Limits(-0.5, 2.0) if residual else Limits())
    expected = F.linear(x, weight, bias)
    expected = expected + other if residual else expected
    if gelu:
        plan, expected = ended(plan, gelu=True), F.gelu(expected)
    elif residual:
        expected = expected.clamp(-0.5, 2)
    torch.testing.assert_close(run(x, plan, other if residual else None), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("choice", [TokenChoice(1, 2), TokenChoice(4, 1, 2), TokenChoice(ACROSS, parts=2)], ids=str)
def test_leading_dimensions_strides_and_threads_make_no_difference(
    choice: TokenChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "WORTH", 1)  # every thread, however little there is to do
    weight = normal(20, 33, seed=1)
    plan = planned(weight.numpy(), None, choice)
    x = normal(33, 5, 40).permute(1, 2, 0)  # not contiguous
    whole, before = run(x, plan), torch.get_num_threads()
    torch.testing.assert_close(whole, F.linear(x, weight), rtol=1e-5, atol=1e-4)
    try:
        for threads in (1, 3, 64):
            torch.set_num_threads(threads)
            assert torch.equal(run(x, plan), whole)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_a_number_stays_in_its_row() -> None:
    x = normal(40, 12)
    x[17, 3] = torch.nan
    for choice in (TokenChoice(1, 2), TokenChoice(8, 1), TokenChoice(ACROSS)):
        found = run(x, planned(normal(9, 12, seed=1).numpy(), None, choice))
        assert bool(found[17].isnan().all()) and not bool(found[torch.arange(40) != 17].isnan().any())


def test_gelu_is_as_exact_as_torchs_and_the_same_where_it_ends() -> None:
    at = torch.cat([torch.linspace(-9, 9, 100_001), torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-40, torch.nan])])
    found = run(at[:, None], ended(planned(np.eye(1, dtype=np.float32), None, TokenChoice()), gelu=True))[:, 0]
    exact = F.gelu(at.double())
    assert bool(found[-1].isnan())
    torch.testing.assert_close(found[:-1], exact[:-1].float(), rtol=3e-7, atol=1e-6)
    assert found[-4] == 1e30 and found[-3] == 0 and found[-6] == 0


def test_inputs_of_another_width_and_plans_elsewhere_are_refused() -> None:
    plan = planned(normal(9, 12).numpy(), None, TokenChoice())
    with pytest.raises(TaskError, match="must have 12 features, as the planned layer; one has 13"):
        run(normal(4, 13), plan)
    with pytest.raises(ArtifactError, match="it is on meta: move it to cpu"):
        run(normal(4, 12), plan.to("meta"))


def two_plans() -> tuple[PlannedNetwork, PlannedLinear]:
    """A model of both operations, one after the other."""
    weight = normal(7, 6, seed=2)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    first = network_of(net, (normal(1, 3, 8, 8),))
    assert isinstance(first, PlannedNetwork)
    return first.eval(), PlannedLinear(planned(weight.numpy(), None, TokenChoice()), 6, 7).eval()


def test_plans_are_exported_saved_and_compiled(tmp_path: Path) -> None:
    net, x = nn.Sequential(*two_plans()).eval(), normal(5, 3, 8, 8, seed=3)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    assert {"automc.images.default", "automc.tokens.default"} <= {str(n.target) for n in program.graph.nodes}
    torch.export.save(program, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    for count in (1, 5):
        assert torch.equal(again(x[:count]), net(x[:count]))
    assert torch.equal(torch.compile(net, backend="aot_eager", fullgraph=True)(x), net(x))


def test_operations_are_as_torch_wants_them() -> None:
    (first, second), x = two_plans(), normal(2, 3, 8, 8)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.automc.images.default, (x, first.plan, [6, 1, 1]), test_utils=checks)
    torch.library.opcheck(torch.ops.automc.tokens.default, (normal(2, 6), second.plan, 7), test_utils=checks)


def test_operations_refuse_what_a_plan_was_not_made_for() -> None:
    (first, second), x = two_plans(), normal(2, 3, 8, 8)
    on_images, on_tokens = torch.ops.automc.images, torch.ops.automc.tokens
    assert on_images(x, first.plan, [6, 1, 1]).shape == (2, 6, 1, 1)
    for shape in ((2, 3, 9, 8), (2, 3, 8, 7), (2, 4, 8, 8), (2, 192), (3, 8, 8), (2, 3, 8, 8, 1)):
        with pytest.raises(TaskError, match="must be 3 x 8 x 8, which this plan was made for; one is"):
            on_images(normal(*shape), first.plan, [6, 1, 1])
    for made in ([7, 1, 1], [6, 1, 2], [6], []):
        with pytest.raises(TaskError, match="results are 6 x 1 x 1; asked for are"):
            on_images(x, first.plan, made)
    with pytest.raises(TaskError, match="must have 6 features, as the planned layer; one has 5"):
        on_tokens(normal(2, 5), second.plan, 7)
    with pytest.raises(TaskError, match="has 7 outputs; asked for are 8"):
        on_tokens(normal(2, 6), second.plan, 8)
    for other in (normal(2, 6), normal(1, 7), normal(14)):
        with pytest.raises(TaskError, match=r"What is added must be \(2, 7\); it is"):
            on_tokens(normal(2, 6), second.plan, 7, other)
    added = on_tokens(normal(2, 6), second.plan, 7, normal(2, 7).double())
    torch.testing.assert_close(added, second(normal(2, 6)) + normal(2, 7))


def test_what_is_no_whole_plan_of_the_operation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, second), x = two_plans(), normal(2, 3, 8, 8)
    older = first.plan.clone()
    older[4] += 1  # the kind, as it would be once plans are laid out otherwise
    for plan in (first.plan[:-64], first.plan[:8], first.plan[:0], first.plan[::2], second.plan, older):
        with pytest.raises(
            ArtifactError, match=r"must be whole, of this operation, and of this version of automc; one"
        ):
            torch.ops.automc.images(x, plan, [6, 1, 1])
    with pytest.raises(ArtifactError, match="must be whole, of this operation"):
        run(normal(2, 6), first.plan)
    for module, here, said in (
        (tokens, lanes() // 2, f"with vectors of {lanes()} floats; this one has {lanes() // 2}: make it anew here"),
        (tokens, 0, "run by compiled kernels; there are none here: install a C compiler"),
    ):
        monkeypatch.setattr(module, "lanes", lambda here=here: here)
        with pytest.raises(ArtifactError, match=said):
            run(normal(2, 6), second.plan)


@pytest.fixture(params=["-march=x86-64-v3", pytest.param("-march=x86-64", marks=pytest.mark.slow)])
def narrower(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Compiled for a processor with less."""
    if platform.machine() != "x86_64":
        pytest.skip("an option of x86 compilers")
    caches = (build.compiled, tokens._library, tokens.lanes)
    for cached in caches:
        cached.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, request.param))
        yield request.param
    for cached in caches:
        cached.cache_clear()


def test_narrower_vectors(narrower: str) -> None:
    assert tokens.lanes() == (8 if narrower.endswith("v3") else 4)
    for seed in range(60):
        block = (*BLOCKS, ACROSS)[seed % 5]
        vectors = 1 + seed % most_vectors(block) if block < ACROSS else 1
        choice = TokenChoice(block, vectors, 1 + seed % 3)
        check_linear(1 + 7 * seed % 60, 1 + 11 * seed % 50, seed % 40, 0.4, choice, bool(seed % 2), seed % 3 == 0, seed)
