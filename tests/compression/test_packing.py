"""Every stored form is exact, the smallest one is taken, and Deep Compression's indices are what its paper says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from automc.compression.packing import (
    bitmap,
    gaps_of,
    pack_codes,
    pack_floats,
    packed,
    present_of,
    relative_indices,
    unpack,
    unpack_bitmap,
    unpacked,
)


def weights(count: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    return (values * (torch.rand(count, generator=generator) < density)).reshape(-1, 10)


@given(st.integers(2, 8), st.integers(0, 200), st.integers(0, 2**31), st.booleans())
@settings(max_examples=60)
def test_packed_codes_come_back(bits: int, count: int, seed: int, signed: bool) -> None:
    lowest = 1 - 2 ** (bits - 1) if signed else 0
    codes = np.random.default_rng(seed).integers(lowest, lowest + 2**bits, size=count)
    data = packed(codes, bits, lowest)
    assert len(data) == -(-count * bits // 8)
    assert np.array_equal(unpacked(data, bits, lowest, count), codes)


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_bitmaps_and_gaps_come_back(flags: list[bool]) -> None:
    present = np.array(flags)
    assert np.array_equal(unpack_bitmap(bitmap(present), len(flags)), present)
    assert np.array_equal(present_of(gaps_of(present), len(flags)), present)


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.integers(1, 5))
def test_relative_indices_walk_to_every_weight(flags: list[bool], bits: int) -> None:
    present = np.array(flags)
    gaps, real = relative_indices(present, bits)
    place, found = -1, []
    for gap, is_real in zip(gaps, real, strict=True):
        assert 0 <= gap < 2**bits
        place += int(gap) + 1
        if is_real:
            found.append(place)
        else:
            assert not present[place]  # a filler is a stored zero
    assert found == np.flatnonzero(present).tolist()


def test_relative_indices_are_the_papers_example() -> None:
    """Figure 2: weights at 1, 4 and 15 with 3-bit spans; the gap of 11 takes a filler zero."""
    present = np.zeros(16, dtype=np.bool_)
    present[[1, 4, 15]] = True
    gaps, real = relative_indices(present, 3)
    assert (gaps + 1).tolist() == [2, 3, 8, 3] and real.tolist() == [True, True, False, True]


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 0.9, 1.0])
def test_floats_come_back_in_the_smallest_form(density: float) -> None:
    dense = weights(4000, density)
    entries, how = pack_floats(dense)
    if how is None:
        assert density > 0.8 and torch.equal(entries[""], dense)
        return
    assert torch.equal(unpack(entries, how), dense)
    stored = sum(x.nbytes for x in entries.values())
    assert stored <= 4 * int((dense != 0).sum()) + 4000 / 8
    assert how.form == ("gaps" if density <= 0.9 else "bitmap")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.4, 1.0])
def test_codes_come_back_in_the_smallest_form(bits: int, density: float) -> None:
    top = 2 ** (bits - 1) - 1
    codes = (weights(5000, density) * top / 3).round().clamp(-top, top).to(torch.int64)
    entries, how = pack_codes(codes, bits, -top)
    assert torch.equal(unpack(entries, how), codes)
    stored = sum(x.nbytes + 64 for x in entries.values())
    flat = codes.reshape(-1).numpy()
    assert stored <= len(packed(flat, bits, -top)) + 64
    assert stored <= len(bitmap(flat != 0)) + len(packed(flat[flat != 0], bits, -top)) + 128


def test_evenly_spread_codes_stay_packed() -> None:
    codes = torch.arange(4096).reshape(64, 64) % 16
    assert pack_codes(codes, 4, 0)[1].form == "packed"
