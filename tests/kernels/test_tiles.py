"""Steps on tiles against torch: every operation, odd sizes, any number of samples and threads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from automc.compression.quantize import ActivationQuantizer, Observed
from automc.kernels import build
from automc.kernels.steps import Limits, Window
from automc.kernels.threads import lent_threads, threads
from automc.kernels.tiles import Program, from_tiles, lanes, to_tiles

pytestmark = pytest.mark.skipif(not lanes(), reason="needs a C compiler")
TOLERANCE = 2e-5
"""Of the largest value; Winograd's transforms round more than a plain sum."""


def images(samples: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, channels, height, width, generator=torch.Generator().manual_seed(seed))


def opened(shape: tuple[int, int, int]) -> Program:
    program = Program()
    assert program.given(shape) == 0
    return program


def ran(program: Program, x: Tensor, output: int) -> Tensor:
    return from_tiles(program.run({0: to_tiles(x)}, [output])[0], len(x))


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(3, 13), st.integers(3, 13)),
    st.sampled_from([1, 2, 3, 5]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.integers(0, 2**31),
)
@settings(max_examples=80)
def test_convolution_is_torchs(
    channels: tuple[int, int], size: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int, seed: int
) -> None:
    if min(size) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    x = images(5, channels[0], *size, seed=seed)
    weight, bias = images(channels[1], channels[0], kernel, kernel, seed=seed + 1), torch.arange(channels[1]) * 0.1
    program = opened((*size, channels[0]))
    window = Window((kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation))
    out = program.convolution(0, weight.numpy(), bias.numpy(), window)
    assert close(ran(program, x, out), F.conv2d(x, weight, bias, stride, padding, dilation))


@pytest.mark.parametrize("groups", [1, 2, 3, 12])
@pytest.mark.parametrize("stride", [1, 2])
def test_groups_kernels_of_two_sides_and_what_goes_along(groups: int, stride: int) -> None:
    x, weight = images(20, 12, 9, 7), images(24 if groups < 12 else 12, 12 // groups, 3, 5, seed=1)
    program = opened((9, 7, 12))
    window = Window((3, 5), (stride, 1), (1, 2))
    first = program.convolution(0, weight.numpy(), None, window, groups)
    out = program.convolution(0, weight.numpy(), None, window, groups, Limits(0.0, 6.0), first)
    assert close(ran(program, x, out), F.relu6(2 * F.conv2d(x, weight, None, (stride, 1), (1, 2), 1, groups)))


def test_a_linear_layer_is_a_convolution_as_large_as_its_input() -> None:
    x, weight = images(7, 3, 4, 5), torch.randn(11, 60)
    program = opened((4, 5, 3))
    out = program.convolution(0, weight.reshape(11, 3, 4, 5).numpy(), None, Window((4, 5)))
    assert close(ran(program, x, out).flatten(1), x.flatten(1) @ weight.T)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (9, 1, 0)])
def test_pools(kernel: int, stride: int, padding: int) -> None:
    x = images(17, 5, 9, 9)
    window = Window((kernel, kernel), (stride, stride), (padding, padding))
    for largest, pool in ((True, F.max_pool2d), (False, F.avg_pool2d)):
        program = opened((9, 9, 5))
        out = program.pool(0, window, largest=largest)
        assert close(ran(program, x, out), pool(x, kernel, stride, padding))


def test_pointwise_steps_and_copies() -> None:
    x = images(16, 6, 5, 4)
    scale, shift = np.linspace(-1, 2, 6, dtype=np.float32), np.linspace(3, -1, 6, dtype=np.float32)
    program = opened((5, 4, 6))
    changed = program.affine(0, scale, shift, Limits(0.0))
    both = program.add(0, changed)
    wide = program.joined([(both, 2), (0, 8)], 16, (2, 3))
    expected = x + F.relu(x * torch.from_numpy(scale)[:, None, None] + torch.from_numpy(shift)[:, None, None])
    padded = F.pad(torch.cat([expected, x], dim=1)[:, :, ::2, ::3], (0, 0, 0, 0, 2, 2))
    assert close(ran(program, x, wide), padded)


def test_rounding_to_levels_is_the_quantizers() -> None:
    x, quantizer = images(40, 3, 6, 6), ActivationQuantizer(4)
    quantizer.calibrate(Observed.of([x]))
    program = opened((6, 6, 3))
    assert torch.equal(ran(program, x, program.rounded(0, *quantizer.levels())), quantizer(x))


@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_not_a_number_stays_so_and_stays_in_its_sample(kernel: int) -> None:
    x = images(3, 4, 6, 6)
    x[1, 2, 3, 3] = float("nan")
    program = opened((6, 6, 4))
    weight = images(4, 4, kernel, kernel, seed=3).numpy()
    first = program.convolution(0, weight, None, Window((kernel,) * 2, (1, 1), (kernel // 2,) * 2), 1, Limits(0.0))
    found = ran(program, x, program.pool(first, Window((6, 6)), largest=True))
    assert found.isnan().flatten(1).any(dim=1).tolist() == [False, True, False]


def test_results_depend_neither_on_neighbours_nor_on_threads() -> None:
    x, weight = images(70, 8, 10, 10), images(13, 8, 3, 3, seed=1).numpy()
    program = opened((10, 10, 8))
    out = program.convolution(0, weight, None, Window((3, 3), (1, 1), (1, 1)))
    whole, before = ran(program, x, out), torch.get_num_threads()
    for count in (1, 4):
        torch.set_num_threads(count)
        with lent_threads():
            assert (torch.get_num_threads(), threads()) == (1, count)
            assert torch.equal(whole, ran(program, x, out))
            with lent_threads():
                assert threads() == count
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == threads() == count
    torch.set_num_threads(before)
    assert torch.equal(whole[20:41], ran(program, x[20:41], out))


def test_a_run_may_begin_at_a_kept_value() -> None:
    x, weight = images(33, 4, 8, 8), images(4, 4, 3, 3, seed=1).numpy()
    program = opened((8, 8, 4))
    window = Window((3, 3), (1, 1), (1, 1))
    values = [0]
    for _ in range(4):
        values.append(program.convolution(values[-1], weight, None, window, 1, Limits(0.0)))
    given_tiles = to_tiles(x)
    kept, whole = program.run({0: given_tiles}, [values[2], values[4]])
    assert torch.equal(whole, program.run({values[2]: kept}, [values[4]])[0])
    assert torch.equal(kept, program.run({0: given_tiles}, [values[2]])[0])


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for setting in ({"CC": "no-such-compiler"}, {"CC": "false"}, {"AUTOMC_KERNELS": "off"}):
        build.compiled.cache_clear()
        with monkeypatch.context() as patch:
            patch.setenv("AUTOMC_KERNELS", str(tmp_path))
            for name, value in setting.items():
                patch.setenv(name, value)
            assert build.compiled("tiles") is None
    build.compiled.cache_clear()
    assert build.compiled("tiles") is not None


def test_a_broken_file_in_the_cache_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build.compiled.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("AUTOMC_KERNELS", str(tmp_path))
        patch.setattr(build, "_digest", lambda *_: "broken")
        (tmp_path / "tiles-broken.so").write_bytes(b"nothing")
        assert build.compiled("tiles") is not None
    build.compiled.cache_clear()
