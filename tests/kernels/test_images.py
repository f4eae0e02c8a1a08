"""Sparse networks on images against torch: every kernel, window, block and part, odd sizes, masks, several threads."""

import platform
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from automc.errors import ArtifactError
from automc.kernels import build, images
from automc.kernels.images import Choice, lanes, planned, run
from automc.kernels.matrix import BLOCKS
from automc.kernels.steps import Limits, Steps, Window

pytestmark = pytest.mark.skipif(not lanes(), reason="needs a C compiler")
TOLERANCE = 1e-5
"""Of the largest value, or of one."""
RELU = Limits(0.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def thinned(weight: Tensor, density: float, seed: int = 0) -> Tensor:
    return weight * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < density)


def ran(network: Steps, x: Tensor, result: int, choices: dict[int, Choice] | None = None) -> Tensor:
    height, width, channels = network.shapes[result]
    return run(x, planned(network, 0, result, choices or {}), (channels, height, width))


def opened(x: Tensor) -> Steps:
    network = Steps()
    assert network.given((x.shape[2], x.shape[3], x.shape[1])) == 0
    return network


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max()))
    )


@st.composite
def windows(draw: st.DrawFn) -> Window:
    pair = st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3, 5, 9]))
    kernel, dilation = draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    if draw(st.booleans()):  # one that slides over all columns, as most do
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
        return Window(kernel, (1, 1), (padding[0], padding[1]), dilation)
    return Window(
        kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation,
    )


choices = st.builds(Choice, st.sampled_from(BLOCKS), st.integers(1, 3), st.booleans())


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 20), st.integers(1, 35)),
    windows(),
    choices,
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(0, 3),
    st.integers(0, 2**31),
)
@settings(max_examples=250)
def test_convolution_is_torchs(
    channels: tuple[int, int],
    size: tuple[int, int],
    window: Window,
    choice: Choice,
    density: float,
    samples: int,
    seed: int,
) -> None:
    if min(window.over((size[0], size[1], 1))) >= 1:
        check_convolution(channels, size, window, choice, density, samples, seed)


def check_convolution(
    channels: Sequence[int],
    size: Sequence[int],
    window: Window,
    choice: Choice,
    density: float,
    samples: int,
    seed: int,
) -> None:
    x = normal(samples, channels[0], *size, seed=seed)
    weight = thinned(normal(channels[1], channels[0], *window.kernel, seed=seed + 1), density, seed)
    bias = normal(channels[1], seed=seed + 2)
    network = opened(x)
    made = network.convolution(0, weight.numpy(), bias.numpy(), window, limits=RELU)
    twice = network.add(made, made)  # read by another step, from where its rows of zeros lie
    expected = F.conv2d(x, weight, bias, window.stride, window.padding, window.dilation)
    found = ran(network, x, twice, {0: choice})
    assert found.shape == expected.shape
    assert not samples or close(found, 2 * expected.relu())


@given(st.sampled_from([1, 2, 3]), st.integers(1, 3), choices, st.integers(0, 2**31))
@settings(max_examples=40)
def test_convolutions_with_groups_are_torchs(groups: int, each: int, choice: Choice, seed: int) -> None:
    x = normal(2, 4 * groups, 9, 7, seed=seed)
    weight = thinned(normal(each * groups, 4, 3, 3, seed=seed + 1), 0.5, seed)
    network = opened(x)
    made = network.convolution(0, weight.numpy(), None, Window((3, 3), (1, 1), (1, 1)), groups)
    assert close(ran(network, x, made, {0: choice}), F.conv2d(x, weight, padding=1, groups=groups))


@pytest.mark.parametrize("choice", [Choice(), Choice(4, 3, shift=True), Choice(8)], ids=str)
@pytest.mark.parametrize(("size", "dilation"), [((8, 8), 1), ((3, 7), 1), ((5, 9), 2)])
def test_a_kernel_as_large_as_the_image_is_torchs(choice: Choice, size: tuple[int, int], dilation: int) -> None:
    kernel = ((size[0] - 1) // dilation + 1, (size[1] - 1) // dilation + 1)
    x, weight = normal(3, 4, *size), thinned(normal(10, 4, *kernel, seed=1), 0.3)
    network = opened(x)
    moving, window = normal(4, 4, 3, 3, seed=2), Window((3, 3), (1, 1), (1, 1))
    inner = network.convolution(0, moving.numpy(), None, window)
    wide = network.convolution(inner, weight.numpy(), None, Window(kernel, dilation=(dilation, dilation)))
    network.convolution(inner, moving.numpy(), None, window)  # for which `inner` has rows of zeros around it
    expected = F.conv2d(F.conv2d(x, moving, padding=1), weight, dilation=dilation)
    assert close(ran(network, x, wide, dict.fromkeys(network.products, choice)), expected)


@pytest.mark.parametrize("choice", [Choice(block, parts) for block in BLOCKS for parts in (1, 2)], ids=str)
def test_a_residual_is_added_before_the_limits(choice: Choice) -> None:
    x = normal(3, 6, 8, 8)
    weight = normal(6, 6, 3, 3, seed=1)
    network = opened(x)
    made = network.convolution(
        0, weight.numpy(), None, Window((3, 3), (1, 1), (1, 1)), limits=Limits(0.0, 6.0), other=0
    )
    expected = (F.conv2d(x, weight, padding=1) + x).clamp(0, 6)
    assert close(ran(network, x, made, {0: choice}), expected)


def test_what_is_not_a_number_stays_in_its_image_and_what_reads_it() -> None:
    x = normal(3, 2, 6, 6)
    x[1, 0, 2, 3] = torch.nan
    weight = normal(3, 2, 3, 3, seed=1)
    network = opened(x)
    made = network.convolution(0, weight.numpy(), None, Window((3, 3), (1, 1), (1, 1)), limits=RELU)
    found, expected = ran(network, x, made), F.conv2d(x, weight, padding=1).relu()
    assert torch.equal(found.isnan(), expected.isnan()) and bool(found[1].isnan().any())
    assert close(found.nan_to_num(), expected.nan_to_num())


@given(
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(0, 1),
    st.booleans(),
    st.integers(1, 20),
    st.integers(1, 20),
)
@settings(max_examples=60)
def test_pooling_is_torchs(kernel: int, stride: int, padding: int, largest: bool, height: int, width: int) -> None:
    window = Window((kernel, kernel), (stride, stride), (padding, padding))
    if padding > kernel // 2 or min(window.over((height, width, 1))) < 1:
        return
    x = normal(2, 3, height, width)
    network = opened(x)
    made = network.pool(0, window, largest=largest)
    expected = (F.max_pool2d if largest else F.avg_pool2d)(x, kernel, stride, padding)
    assert close(ran(network, x, made), expected)


def test_everything_else_a_network_has() -> None:
    x = normal(4, 5, 7, 9)
    network = opened(x)
    scaled = network.affine(0, np.arange(5, dtype=np.float32), np.ones(5, dtype=np.float32), RELU)
    summed = network.add(scaled, 0, Limits(-1.0, 1.0))
    wide = network.joined([(summed, 2)], 9, (2, 2))
    both = network.joined([(wide, 0), (wide, 9)], 18)
    levels = network.rounded(both, 0.25, 3.0, 15.0)
    mean = network.pool(levels, Window((4, 5)), largest=False)
    expected = ((torch.arange(5.0)[:, None, None] * x + 1).relu() + x).clamp(-1, 1)
    padded = F.pad(expected[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    rounded = ((torch.cat([padded, padded], 1) / 0.25).round() + 3).clamp(0, 15).sub(3) * 0.25
    assert close(ran(network, x, mean), rounded.mean((2, 3), keepdim=True))


def test_numbers_too_small_to_be_normal_count_as_zero_in_here_alone() -> None:
    x = torch.full((1, 2, 8, 8), 1e-20)
    network = opened(x)
    weight = torch.full((2, 2, 1, 1), 1e-19)
    made = network.convolution(0, weight.numpy(), None, Window())
    assert not bool(ran(network, x, made).any())
    assert bool((torch.tensor(1e-20) * torch.tensor(1e-19)) > 0)


def test_images_do_not_depend_on_their_number_or_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "WORTH", 1)  # every thread, however little there is to do
    x = normal(7, 8, 16, 16)
    weight = thinned(normal(8, 8, 3, 3, seed=1), 0.3)
    network = opened(x)
    middle = network.convolution(0, weight.numpy(), None, Window((3, 3), (1, 1), (1, 1)), limits=RELU)
    made = network.convolution(middle, weight.numpy(), None, Window((3, 3), (2, 2), (1, 1)))
    plan, shape, before = planned(network, 0, made, {}), (8, 8, 8), torch.get_num_threads()
    whole = run(x, plan, shape)
    assert all(torch.equal(run(x[i : i + 1], plan, shape)[0], whole[i]) for i in range(7))
    try:
        for threads in (1, 3, 64):
            torch.set_num_threads(threads)
            assert torch.equal(run(x, plan, shape), whole)
    finally:
        torch.set_num_threads(before)


def test_values_that_lie_differently_do_not_meet() -> None:
    """Rooms are used again, also by what a network of another shape left in this thread's memory."""
    for size in (16, 5, 11):
        x = normal(2, 6, size, size, seed=size)
        network, expected, value = opened(x), x, 0
        for depth, stride in enumerate((1, 2, 1, 1)):
            weight = normal(6, 6, 3, 3, seed=depth)
            window = Window((3, 3), (stride, stride), (1, 1))
            value = network.convolution(value, weight.numpy(), None, window, limits=RELU)
            expected = F.conv2d(expected, weight, stride=stride, padding=1).relu()
        run(torch.full((1, 1, 40, 40), torch.nan), planned(*_lonely(), {}), (1, 40, 40))
        assert close(ran(network, x, value), expected)


def _lonely() -> tuple[Steps, int, int]:
    network = Steps()
    given = network.given((40, 40, 1))
    return network, given, network.add(given)


def test_a_plan_for_other_vectors_is_refused() -> None:
    network, given, made = _lonely()
    plan = planned(network, given, made, {})
    plan[:4] = torch.tensor([3, 0, 0, 0], dtype=torch.uint8)
    with pytest.raises(ArtifactError, match="A plan must be run on a processor like the one it was made for"):
        run(torch.zeros(1, 1, 40, 40), plan, (1, 40, 40))


def test_what_no_offset_reaches_is_refused() -> None:
    network = Steps()
    given = network.given((2**14, 2**14, 8))
    with pytest.raises(ArtifactError, match="fewer than 2\\^31 floats; one has 2,147"):
        planned(network, given, network.add(given), {})


@pytest.fixture(params=["-march=x86-64-v3", pytest.param("-march=x86-64", marks=pytest.mark.slow)])
def narrower(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Compiled for a processor with less."""
    if platform.machine() != "x86_64":
        pytest.skip("an option of x86 compilers")
    for cached in (build.compiled, images._library):
        cached.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, request.param))
        yield request.param
    for cached in (build.compiled, images._library):
        cached.cache_clear()


def test_narrower_vectors(narrower: str) -> None:
    assert images.lanes() == (8 if narrower.endswith("v3") else 4)
    generator = np.random.default_rng(0)
    for seed in range(60):
        kernel = generator.choice([1, 2, 3, 5], 2).tolist()
        window = Window((kernel[0], kernel[1]), (1, 1), (kernel[0] // 2, kernel[1] // 2))
        channels, size = generator.integers(1, 20, 2).tolist(), generator.integers(5, 30, 2).tolist()
        choice = Choice(BLOCKS[seed % 4], 1 + seed % 3, bool(seed % 2))
        check_convolution(channels, size, window, choice, 0.4, 2, seed)
    test_everything_else_a_network_has()
    for block in BLOCKS:
        test_a_residual_is_added_before_the_limits(Choice(block))
