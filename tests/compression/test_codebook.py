"""Weight sharing against brute force, scikit-free: optimal partitions by dynamic programming."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from automc.compression.codebook import SharedWeight, hashed, kmeans
from automc.errors import PolicyError


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least(values: Tensor, mass: Tensor, k: int) -> float:
    """The least weighted squared error of k clusters of sorted values, over all partitions into runs."""
    order = values.argsort()
    v, m = values[order], mass[order]
    best = float("inf")
    for cuts in itertools.combinations(range(1, len(v)), k - 1):
        error = 0.0
        for a, b in itertools.pairwise((0, *cuts, len(v))):
            mean = (m[a:b] * v[a:b]).sum() / m[a:b].sum()
            error += float((m[a:b] * (v[a:b] - mean).square()).sum())
        best = min(best, error)
    return best


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("start", ["linear", "density", "random"])
def test_clusters_are_a_fixed_point_near_the_optimum(start: str, weighted: bool) -> None:
    close = 0
    for seed in range(12):
        values = rand(11, seed=seed)
        mass = rand(11, seed=seed + 99).square() + 0.1 if weighted else torch.ones(11, dtype=torch.float64)
        book = kmeans(values, 4, mass if weighted else None, start=start, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        for code in book.codes.unique():
            mine = book.codes == code
            mean = (mass[mine] * values[mine]).sum() / mass[mine].sum()
            torch.testing.assert_close(book.centroids[code], mean, rtol=1e-6, atol=1e-6)
        nearest = (values[:, None] - book.centroids).abs().argmin(dim=1)
        torch.testing.assert_close(book.values, book.centroids[nearest])
        error = float((mass * (book.values - values).square()).sum())
        optimum = least(values, mass, 4)
        assert error >= optimum - 1e-9
        close += error < 3 * optimum + 1e-9
    assert close >= 8  # Lloyd finds local optima


@settings(max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=80), st.integers(1, 5))
def test_any_weights_are_shared(values: list[float], bits: int) -> None:
    weights = torch.tensor(values)
    book = kmeans(weights, 2**bits)
    assert book.codes.shape == weights.shape and len(book.centroids) <= 2**bits
    assert int(book.codes.min()) >= 0 and int(book.codes.max()) < len(book.centroids)
    assert bool(torch.isfinite(book.values).all())
    if len(weights.unique()) <= 2**bits:
        assert torch.equal(book.values, weights)


def test_linear_start_represents_the_extremes() -> None:
    weights = torch.cat((0.01 * rand(1000), torch.tensor([5.0, -5.0], dtype=torch.float64)))
    linear, density = kmeans(weights, 8), kmeans(weights, 8, start="density")
    assert float((linear.values - weights)[-2:].abs().max()) < 1e-9
    assert len(linear.centroids) == len(density.centroids) == 8


def test_nan_is_refused() -> None:
    with pytest.raises(PolicyError, match="finite"):
        kmeans(torch.tensor([1.0, float("nan")]), 2)


def test_hashed_buckets_are_spread_repeatable_and_means() -> None:
    weights = rand(40, 50)
    book, again, other = hashed(weights, 4), hashed(weights, 4), hashed(weights, 4, seed=1)
    assert torch.equal(book.codes, again.codes) and not torch.equal(book.codes, other.codes)
    counts = torch.bincount(book.codes.flatten(), minlength=16)
    assert int(counts.min()) > 2000 / 16 * 0.6
    for code in range(16):
        torch.testing.assert_close(book.centroids[code], weights[book.codes == code].mean())
    gap = [(b.values - weights).square().mean() for b in (kmeans(weights, 16), book)]
    assert gap[0] < 0.02 < gap[1]


def test_a_centroids_gradient_is_the_sum_of_its_weights() -> None:
    plain, shared = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)
    weight = rand(5, 6).float()
    present = rand(5, 6, seed=3) > -0.5
    book = kmeans(weight, 4)
    sharing = SharedWeight(book, present)
    parametrize.register_parametrization(shared, "weight", sharing, unsafe=True)
    with torch.no_grad():
        plain.weight.copy_(book.values * present)
    x = rand(7, 6, seed=4).float()
    for layer in (plain, shared):
        layer(x).square().sum().backward()
    gradient = sharing.centroids.grad
    assert gradient is not None
    assert plain.weight.grad is not None
    for code in range(4):
        mine = (book.codes == code) & present
        torch.testing.assert_close(gradient[code], plain.weight.grad[mine].sum(), rtol=1e-4, atol=1e-4)
    assert not shared.weight[~present].any()
