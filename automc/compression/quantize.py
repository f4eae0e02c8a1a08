"""Uniform quantization of weights and activations, and the module that carries it.

Weights: per output channel, symmetric, b bits, codes in [-(2^(b-1) - 1), 2^(b-1) - 1], so zero stays zero. The
scale is the one of 24 fractions of the channel's largest magnitude with the least squared error.
Activations: per tensor, asymmetric, b bits, the range chosen on calibration data; zero is always representable.
Shared weights: the values of a k-means codebook of 2^b - 1 centroids (`codebook`), and zero.
Weights stay float tensors at run time, exactly what their codes stand for, so what is saved comes back bit by bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from automc.compression.codebook import kmeans
from automc.policy import FULL_BITS, Codebooks

RANGES = ("minmax", "percentile", "mse", "kl")
"""Ways to choose an activation's range."""
SAMPLE = 65536
"""Activations looked at to choose a range, evenly spaced; all but minmax look at no more."""
_FRACTIONS = torch.linspace(0.4, 1.0, 24)


@dataclass(frozen=True, eq=False, slots=True)
class Observed:
    """Activations, as far as the choice of a range asks for them."""

    low: float
    high: float
    """The least and the largest of all."""
    sample: Tensor
    """Evenly spaced ones (N,), float32."""

    @classmethod
    def of(cls, chunks: Sequence[Tensor]) -> "Observed":
        """Of activations that follow one another, in tensors of any shape."""
        step = sample_step(sum(x.numel() for x in chunks))
        low, high, parts, passed = 0.0, 0.0, [], 0
        for x in chunks:
            flat = x.flatten()
            least, most = torch.aminmax(flat)
            low, high = min(low, float(least)), max(high, float(most))
            parts.append(flat[-passed % step :: step])
            passed += len(flat)
        return cls(low, high, torch.cat(parts).float())


def sample_step(count: int) -> int:
    """One in so many of `count` activations is looked at."""
    return max(1, count // SAMPLE)


def weight_scale(weight: Tensor, bits: int) -> Tensor:
    """The scale of each output channel (out,) for `bits`-bit symmetric codes; weight (out, ...)."""
    rows = weight.reshape(len(weight), -1)
    largest = rows.abs().amax(dim=1)
    top = 2 ** (bits - 1) - 1
    # (F, out): per row the candidate with the least squared error; 8 bits gain nothing from clipping.
    candidates = _FRACTIONS[:, None].to(rows) * largest / top if bits < 8 else (largest / top)[None]
    errors = torch.stack([_row_error(rows, scale, top) for scale in candidates])
    best = candidates.gather(0, errors.argmin(dim=0, keepdim=True))[0]
    return torch.where(best > 0, best, torch.ones_like(best))


def weight_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Integer codes (float dtype) of a weight (out, ...) under per-channel scales (out,)."""
    top = 2 ** (bits - 1) - 1
    return (weight / _per_row(scale, weight)).round().clamp(-top, top)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Weights from codes (out, ...) and scales (out,)."""
    return codes * _per_row(scale, codes)


class ActivationQuantizer(nn.Module):
    """Rounds its input to `bits` bits between a fixed minimum and maximum."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("range", torch.tensor([0.0, 1.0]))

    range: Tensor
    """Smallest and largest representable value (2,)."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, rounded."""
        return _fake_quantize(x, self.range, self.bits)

    def levels(self) -> tuple[float, float, float]:
        """The distance of two levels, the level that stands for 0.0, and the last one; the first one is 0."""
        step, zero, top = _levels(self.range, self.bits)
        return float(step), float(zero), float(top)

    def calibrate(self, seen: Observed, method: str = "mse") -> None:
        """Chooses the range by one of `RANGES`."""
        self.range = activation_range(seen, self.bits, method).to(torch.float32)


def activation_range(seen: Observed, bits: int, method: str) -> Tensor:
    """Smallest and largest representable value (2,) for activations; zero always lies between them.

    minmax      what occurs
    percentile  what all but 0.01 % occur between (Wu et al. 2020, section 4.2, who try 99.9 to 99.9999)
    mse         of 24 fractions of the minmax range the one with the least squared error
    kl          of the same fractions the one whose rounded distribution diverges least from the true one (Migacz 2017,
                as HAQ, Wang et al. 2019, section 3.4, has it): histograms of 2,048 bins, what is clipped counted in the
                outermost ones; exact zeros are left out, since they are representable in any range
    """
    low, high = torch.tensor(min(seen.low, 0.0)), torch.tensor(max(seen.high, 0.0))
    if method == "minmax":
        return torch.stack((low, high))
    if method == "percentile":
        limits = torch.quantile(seen.sample, torch.tensor([1e-4, 1 - 1e-4]))
        return torch.stack((limits[0].clamp_max(0), limits[1].clamp_min(0)))
    ranges = [torch.stack((low * f, high * f)) for f in _FRACTIONS.tolist()]
    if method == "mse":
        room = torch.empty_like(seen.sample)
        errors = [float(_fake_quantize(seen.sample, r, bits, room).sub_(seen.sample).square_().sum()) for r in ranges]
    else:
        errors = [_divergence(seen.sample[seen.sample != 0], r, bits) for r in ranges]
    return ranges[errors.index(min(errors))]


def rounding_noise(seen: Observed, bits: int, method: str) -> float:
    """Mean squared error of activations rounded within the range `method` chooses."""
    limits = activation_range(seen, bits, method).to(torch.float32)
    return float((_fake_quantize(seen.sample, limits, bits) - seen.sample).square().mean())


class QuantizedLayer(nn.Module):
    """A layer whose weight is representable in few bits and whose input may be quantized, too."""

    def __init__(
        self, layer: nn.Module, weight_bits: int, activation_bits: int, codebook: Codebooks = "uniform"
    ) -> None:
        super().__init__()
        self.layer = layer
        self.weight_bits = weight_bits
        self.input = ActivationQuantizer(activation_bits) if activation_bits < FULL_BITS else None
        assert isinstance(layer.weight, Tensor)
        rounded, shared = weight_bits < FULL_BITS, codebook == "kmeans"
        self.register_buffer("weight_scale", torch.ones(len(layer.weight)) if rounded and not shared else None)
        self.register_buffer("centroids", torch.zeros(2**weight_bits) if rounded and shared else None)

    weight_scale: Tensor | None
    """Step of each output channel (out,), where levels are evenly spaced."""
    centroids: Tensor | None
    """Value of each code (2^bits,), where they are not; the first is zero."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x, as the layer takes it."""
        return self.layer(x if self.input is None else self.input(x))  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """The layer's, rounded as it is; a forward may look at it."""
        assert isinstance(self.layer.weight, Tensor)
        return self.layer.weight

    @property
    def codes(self) -> Tensor | None:
        """The weight as integers (int64), 0 for zero; None for a float weight."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        if self.weight_scale is not None:
            return weight_codes(weight.detach(), self.weight_scale, self.weight_bits).to(torch.int64)
        return None if self.centroids is None else shared_codes(weight.detach(), self.centroids)

    @property
    def lowest_code(self) -> int:
        """Smallest code a weight may have."""
        return 0 if self.centroids is not None else 1 - 2 ** (self.weight_bits - 1)

    @torch.no_grad()
    def share_(self, importance: Tensor | None = None) -> None:
        """Sets the weight to the values of a k-means codebook; zeros stay zero and are no members of it."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        present = weight != 0
        mass = None if importance is None else importance.expand_as(weight)[present]
        book = kmeans(weight[present], 2**self.weight_bits - 1, mass)
        self.centroids = torch.zeros(2**self.weight_bits, dtype=weight.dtype)
        self.centroids[1 : 1 + len(book.centroids)] = book.centroids
        weight[present] = book.values

    @torch.no_grad()
    def round_(self, scale: Tensor, codes: Tensor | None = None) -> None:
        """Sets the weight to codes times scale (out,); codes of its shape, else the nearest ones."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        self.weight_scale = scale
        codes = weight_codes(weight, scale, self.weight_bits) if codes is None else codes
        weight.copy_(dequantize(codes, scale))


def shared_codes(weight: Tensor, centroids: Tensor) -> Tensor:
    """Codes (int64) of a weight whose values are all zero or one of the centroids (2^bits,); 0 for zero."""
    values, order = centroids[1:].sort()
    codes = order[torch.searchsorted(values, weight.contiguous()).clamp_max(len(values) - 1)] + 1
    return torch.where(weight == 0, torch.zeros_like(codes), codes)


def bare(holder: nn.Module) -> nn.Module:
    """The layer itself, or the one that a holder quantizes."""
    inner = holder.layer if isinstance(holder, QuantizedLayer) else holder
    assert isinstance(inner, nn.Module)
    return inner


def quantized_layers(module: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Every quantized layer with its path, in module order."""
    for name, child in module.named_modules():
        if isinstance(child, QuantizedLayer):
            yield name, child


def _row_error(rows: Tensor, scale: Tensor, top: int) -> Tensor:
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
    return ((rows / safe).round().clamp(-top, top) * safe - rows).square().sum(dim=1)


def _divergence(x: Tensor, limits: Tensor, bits: int, bins: int = 2048) -> float:
    """KL divergence of activations from what b bits between two limits make of them."""
    low, high = limits.tolist()
    if not len(x) or low == high:
        return 0.0
    inside = torch.histc(x.float(), bins, low, high).to(torch.float64)
    clipped = inside.clone()
    clipped[0] += float((x < low).sum())
    clipped[-1] += float((x > high).sum())
    level = torch.arange(bins) * 2**bits // bins
    held = torch.zeros(2**bits, dtype=torch.float64).index_add_(0, level, inside)
    filled = torch.zeros(2**bits, dtype=torch.float64).index_add_(0, level, (inside > 0).to(torch.float64))
    spread = torch.where(inside > 0, (held / filled.clamp_min(1))[level], 0.0)
    p, q = clipped / clipped.sum(), spread / spread.sum().clamp_min(1)
    seen = p > 0
    return float((p[seen] * (p[seen] / q[seen].clamp_min(1e-12)).log()).sum())


def _per_row(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.dim() - 1))


def _fake_quantize(x: Tensor, limits: Tensor, bits: int, room: Tensor | None = None) -> Tensor:
    """x rounded, in `room`, which is as large, where that is given."""
    step, zero, top = _levels(limits, bits)
    return torch.div(x, step, out=room).round_().clamp_(-zero, top - zero).mul_(step)


def _levels(limits: Tensor, bits: int) -> tuple[Tensor, Tensor, int]:
    """The distance of two levels, the level of 0.0, and the last level."""
    top = 2**bits - 1
    step = (limits[1] - limits[0]).clamp_min(1e-12) / top
    return step, (-limits[0] / step).round(), top
