"""Weight sharing: a layer's weights take the values of a small codebook.

k-means in one dimension (Han et al. 2016, Deep Compression, section 3.1): centroids start evenly spaced between the
smallest and the largest weight, which keeps the few large weights represented (section 3.2), then Lloyd's steps until
nothing moves. In one dimension clusters are runs of the sorted values, so a step is a search for the k - 1 midpoints
and a difference of running sums: O(k log n). With importances (the diagonal of a Hessian: Choi et al. 2017) sums are
weighted. Zeros that pruning made are no members of the codebook and stay zero.

Hashed sharing (Chen et al. 2015, HashedNets) assigns weights to centroids by a hash of their position, so no codes are
stored; the centroids are the buckets' means, which is least squares. Without training it is far worse, which is why it
is here: to be compared with.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from automc.errors import PolicyError

Start = Literal["linear", "density", "random"]
MOST_STEPS = 300


@dataclass(frozen=True, eq=False, slots=True)
class Codebook:
    """Shared values, and which weight has which."""

    centroids: Tensor
    """(k,), ascending for k-means."""
    codes: Tensor
    """Index into the centroids, of the weights' shape (int64)."""

    @property
    def values(self) -> Tensor:
        """The shared weights."""
        return self.centroids[self.codes]


def kmeans(
    weights: Tensor,
    clusters: int,
    importance: Tensor | None = None,
    *,
    start: Start = "linear",
    generator: torch.Generator | None = None,
) -> Codebook:
    """At most `clusters` centroids for weights of any shape, importances of the same shape; float64 inside.

    Fewer distinct weights than centroids give one centroid each and no error. An empty cluster keeps its centroid.
    start "random" draws distinct weights with the generator; "density" takes quantiles. NaN raises PolicyError.
    """
    flat = weights.detach().to(torch.float64).reshape(-1)
    if not bool(torch.isfinite(flat).all()):
        raise PolicyError("Weights to share must be finite; these hold NaN or infinity: load a sound checkpoint.")
    distinct = torch.unique(flat)
    if len(distinct) <= clusters:
        return Codebook(distinct.to(weights.dtype), torch.searchsorted(distinct, flat).reshape(weights.shape))
    order = flat.argsort()
    values = flat[order]
    mass = torch.ones_like(values) if importance is None else importance.to(torch.float64).reshape(-1)[order]
    mass = mass.clamp_min(0) + 1e-12 * mass.mean().clamp_min(1e-300)  # so that no cluster weighs nothing
    total, moment = _running(mass), _running(mass * values)
    centroids = _first(distinct, values, clusters, start, generator)
    for _ in range(MOST_STEPS):
        cuts = _cuts(values, centroids)
        held = total[cuts[1:]] - total[cuts[:-1]]
        moved = torch.where(held > 0, (moment[cuts[1:]] - moment[cuts[:-1]]) / held.clamp_min(1e-300), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved.sort().values
    cuts = _cuts(values, centroids)
    codes = torch.empty(len(flat), dtype=torch.int64)
    codes[order] = torch.repeat_interleave(torch.arange(len(centroids)), cuts.diff())
    return Codebook(centroids.to(weights.dtype), codes.reshape(weights.shape))


def hashed(weights: Tensor, bits: int, seed: int = 0) -> Codebook:
    """2^bits buckets by a multiplicative hash of the position and the seed; the centroids are the buckets' means."""
    position = torch.arange(weights.numel(), dtype=torch.int64) + seed * 0x9E3779B1
    mixed = (position * 0x45D9F3B) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    codes = (mixed ^ (mixed >> 16)) & (2**bits - 1)
    flat = weights.detach().to(torch.float64).reshape(-1)
    sums = torch.zeros(2**bits, dtype=torch.float64).index_add_(0, codes, flat)
    counts = torch.bincount(codes, minlength=2**bits).clamp_min(1)
    return Codebook((sums / counts).to(weights.dtype), codes.reshape(weights.shape))


class SharedWeight(nn.Module):
    """A parametrization that gives a weight its shared values; the centroids are what is trained.

    A centroid's gradient is the sum of its weights' gradients (Deep Compression, section 3.3); `present` marks weights
    that are not pruned, all others are zero. Register with `torch.nn.utils.parametrize`.
    """

    def __init__(self, book: Codebook, present: Tensor) -> None:
        super().__init__()
        self.centroids = nn.Parameter(book.centroids.clone())
        self.register_buffer("codes", book.codes)
        self.register_buffer("present", present)

    codes: Tensor
    present: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """The shared weight; `weight` only says the shape."""
        return torch.where(self.present, self.centroids[self.codes], torch.zeros_like(weight))


def _running(values: Tensor) -> Tensor:
    return torch.cat((values.new_zeros(1), values.cumsum(0)))


def _cuts(values: Tensor, centroids: Tensor) -> Tensor:
    """Where each cluster's run of sorted values begins and ends (k + 1,)."""
    middles = (centroids[1:] + centroids[:-1]) / 2
    inner = torch.searchsorted(values, middles)
    return torch.cat((inner.new_zeros(1), inner, inner.new_full((1,), len(values))))


def _first(distinct: Tensor, values: Tensor, k: int, start: Start, generator: torch.Generator | None) -> Tensor:
    if start == "linear":
        return torch.linspace(float(values[0]), float(values[-1]), k, dtype=torch.float64)
    if start == "density":
        return values[((torch.arange(k) + 0.5) / k * len(values)).long()].clone()
    return distinct[torch.randperm(len(distinct), generator=generator)[:k]].sort().values
