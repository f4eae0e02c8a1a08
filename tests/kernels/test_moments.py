"""Moments of what a layer reads and should give, against forming all rows."""

import platform
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.compression.calibration import input_rows
from automc.kernels import build
from automc.kernels.moments import channel_moments, column_moments
from automc.kernels.steps import Window
from automc.kernels.tiles import lanes, to_tiles

pytestmark = pytest.mark.skipif(not lanes(), reason="needs a C compiler")


def expected(layer: nn.Module, x: Tensor, places: np.ndarray, area: tuple[int, int], wanted: Tensor) -> Tensor:
    """All rows: inputs of every lane at every position, and what they should give."""
    tile, row, column = torch.from_numpy(places.T.astype(np.int64))
    samples = tile[:, None] * lanes() + torch.arange(lanes())
    flat = (samples * area[0] + row[:, None]) * area[1] + column[:, None]
    return torch.cat([input_rows(layer, x, flat.flatten())[0], wanted.transpose(1, 2).flatten(0, 1)], dim=1).double()


def exact() -> bool:
    """Whether products are of 32 bits."""
    found = build.compiled("tiles")
    return found is not None and bool(found.tiles_moments_exact())


@pytest.fixture(params=[(), ("-mno-avx512bf16",)], ids=["16 bits where there are", "32 bits"])
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Compiled with these flags as well."""
    if platform.machine() != "x86_64" and request.param:
        pytest.skip("an option of x86 compilers")
    build.compiled.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, *request.param))
        yield request.param
    build.compiled.cache_clear()


def test_both_ways_to_multiply(flags: tuple[str, ...]) -> None:
    test_moments_are_those_of_the_rows()
    assert exact() or not flags


@given(
    st.integers(1, 9), st.integers(1, 7), st.sampled_from([1, 3, 5]), st.integers(1, 2), st.integers(0, 2),
    st.integers(1, 90), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=40)
def test_moments_are_those_of_the_rows(
    channels: int, outputs: int, kernel: int, stride: int, padding: int, positions: int, seed: int
) -> None:
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    x = torch.randn(3 * lanes(), channels, 6, 8, generator=generator) * 2 + 5
    window = Window((kernel, kernel), (stride, stride), (padding, padding))
    height, width = window.over((6, 8, channels))
    limits = (3, height, width)
    places = np.stack([rng.integers(0, n, positions) for n in limits], axis=1).astype(np.int32)
    wanted = torch.randn(positions, outputs, lanes(), generator=generator)
    layer = nn.Conv2d(channels, outputs, kernel, stride, padding)
    rows = expected(layer, x, places, (height, width), wanted)
    found = column_moments(to_tiles(x), window, places, wanted)
    around = rows - rows.mean(dim=0)
    # 16 bits hold a number to one part in 512; what is multiplied is at most this far from the shift.
    rounding = 0.0 if exact() else float(around.abs().max()) ** 2 / 64 / len(rows) ** 0.5
    assert np.allclose(found.mean, rows.mean(dim=0).numpy(), atol=1e-5)
    assert np.allclose(found.centred, (around.T @ around / len(rows)).numpy(), atol=1e-4 + rounding)
    assert np.array_equal(found.centred, found.centred.T)


def test_a_small_variance_beside_a_large_mean_is_not_lost() -> None:
    x = 1000 + 1e-2 * torch.randn(2 * lanes(), 2, 1, 1, generator=torch.Generator().manual_seed(0))
    places = np.array([[0, 0, 0], [1, 0, 0]], dtype=np.int32)
    found = column_moments(to_tiles(x), Window(), places, torch.zeros(2, 1, lanes()))
    truth = np.cov(x.flatten(1).double().numpy().T, bias=True)
    assert np.allclose(found.centred[:2, :2], truth, rtol=2e-2, atol=1e-6)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    x = torch.randn(4 * lanes(), 3, 8, 8)
    places = np.stack([np.arange(60) % 4, np.arange(60) % 8, np.arange(60) % 7], axis=1).astype(np.int32)
    wanted, before = torch.randn(60, 2, lanes()), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(column_moments(to_tiles(x), Window((3, 3), (1, 1), (1, 1)), places, wanted))
    torch.set_num_threads(before)
    assert np.array_equal(found[0].centred, found[1].centred)


@pytest.mark.parametrize("samples", [3 * lanes(), 2 * lanes() + 3, 5])
def test_channels_have_the_mean_and_variance_of_their_samples(samples: int) -> None:
    scale = torch.tensor([1.0, 1e-3, 100.0])[:, None, None]
    x = torch.randn(samples, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * scale + 7
    mean, variance = channel_moments(to_tiles(x), samples)
    exact_rows = x.double().movedim(1, -1).reshape(-1, 3)
    assert torch.allclose(mean, exact_rows.mean(dim=0), rtol=1e-6)
    assert torch.allclose(variance, exact_rows.var(dim=0, unbiased=False), rtol=1e-3)


def test_inputs_that_hardly_vary_have_no_negative_variance() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(320, 6, 4, 4)).astype(np.float32))
    x[:, 2] = 37.123 + 1e-6 * x[:, 2]
    x[:, 4] = 1e-9 * x[:, 4] + 0.3333
    tiles = to_tiles(x)
    places = np.array([(t, i, j) for t in range(len(tiles)) for i in range(4) for j in range(4)], dtype=np.int32)
    wanted = torch.zeros(len(places), 1, lanes())
    found = column_moments(tiles, Window((1, 1)), places, wanted).centred
    assert float(found.diagonal().min()) >= 0 and float(torch.linalg.eigvalsh(found[:6, :6]).min()) > -1e-9
    assert found.diagonal()[[0, 1, 3, 5]].min() > 0.5
