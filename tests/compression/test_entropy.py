"""Entropy coding: what goes in comes out, near Shannon's bound, and damage is an error and nothing else."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from automc.compression.entropy import decode, encode, entropy_bits
from automc.errors import ArtifactError

METHODS = ["huffman", "range"]


def laplace(count: int, spread: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(0, spread, count).round().astype(np.int64)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=150)
@given(
    st.one_of(
        arrays(np.int64, st.integers(0, 300), elements=st.integers(-3, 3)),
        arrays(np.int64, st.integers(0, 60), elements=st.integers(-(2**40), 2**40)),
    )
)
def test_any_integers_come_back(method: str, symbols: np.ndarray) -> None:
    assert np.array_equal(decode(encode(symbols, method)), symbols)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_large_arrays_and_alphabets_come_back(method: str) -> None:
    for symbols in (laplace(1_000_000, 3.0), np.arange(60_000)[::-1].copy(), laplace(400, 2).reshape(20, 20)):
        assert np.array_equal(decode(encode(symbols, method)), symbols.reshape(-1))  # type: ignore[arg-type]


def huffman_bits(counts: list[int]) -> int:
    """Length of the code with Huffman's algorithm on a heap: the sum of all merged weights."""
    heap = list(counts)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


def test_lengths_are_those_theory_gives() -> None:
    symbols = laplace(100_000, 2.5)
    counts = np.unique(symbols, return_counts=True)[1]
    head = len(encode(symbols[:0])) + 5 * len(counts) + 8
    bound = entropy_bits(symbols) / 8
    optimal = huffman_bits(counts.tolist()) / 8
    assert bound <= len(encode(symbols, "range")) <= 1.001 * bound + head
    assert optimal <= len(encode(symbols, "huffman")) <= optimal + head
    assert bound <= optimal <= bound + len(symbols) / 8


def test_a_skewed_source_takes_less_than_a_bit_a_symbol_only_in_the_range_coder() -> None:
    symbols = (np.random.default_rng(0).random(80_000) < 0.02).astype(np.int64)
    assert len(encode(symbols, "range")) < 0.16 * 80_000 / 8
    assert len(encode(symbols, "huffman")) > 80_000 / 8


@pytest.mark.parametrize("method", METHODS)
def test_damage_is_an_artifact_error_or_harmless(method: str) -> None:
    symbols = laplace(500, 2.0)
    blob = encode(symbols, method)  # type: ignore[arg-type]
    for cut in range(len(blob)):
        with pytest.raises(ArtifactError, match="damaged"):
            decode(blob[:cut])
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(blob)
        broken[int(rng.integers(len(blob)))] ^= 1 << int(rng.integers(8))
        try:
            assert len(decode(bytes(broken))) == 500
        except ArtifactError:
            continue


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_noise_never_crashes(noise: bytes) -> None:
    try:
        decode(noise)
    except ArtifactError:
        return
