"""Which ranks a share of a layer buys, and what the factors then cost: closed forms, no tensors.

A method has one rank index; several ranks rise with it in turn, the last one first, each up to what it can use. Entries
and multiply-accumulates rise with the index, so the largest index within the share is found by bisection. A share
bounds both, each relative to the dense layer with the channels that are left: a factor that runs before the stride
works on a larger map, so there the multiply-accumulates bind first. Ranks never fall when the share grows. With more
channels at the same share they never fall for svd, spatial and cp, and neither do the costs; tucker2 and tt promise
that for the share alone.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from automc.errors import PolicyError
from automc.graph.facts import LayerFacts

Factors = tuple[tuple[int, int], ...]
"""Of each factor: entries, and how often per sample each entry is multiplied."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arithmetic needs to know of a dense layer."""

    name: str
    kind: str
    """"conv" or "linear"."""
    inputs: int
    """Input channels left."""
    outputs: int
    """Output channels left."""
    kernel: tuple[int, ...]
    """Empty for linear."""
    whole: bool
    """Whether the weight is one matrix of its own: no conv-groups, not tied to another parameter."""
    positions: int
    """Output positions per sample, summed over the calls of a shared module."""
    entering: int
    """Input positions, likewise; 0 where the calls of a shared module differ in size."""
    halfway: int
    """Output rows times input columns, likewise."""

    @classmethod
    def of(cls, facts: LayerFacts) -> "Shape":
        """The shape of a layer of the model."""
        entering = halfway = facts.positions
        if facts.kernel:
            calls, rest = divmod(facts.positions, prod(facts.output_size))
            entering = calls * prod(facts.input_size) * (rest == 0)
            halfway = calls * prod((*facts.output_size[:1], *facts.input_size[1:])) * (rest == 0)
        return cls(
            name=facts.name,
            kind=facts.kind,
            inputs=facts.in_channels,
            outputs=facts.out_channels,
            kernel=facts.kernel,
            whole=facts.groups == 1 and not facts.tied,
            positions=facts.positions,
            entering=entering,
            halfway=halfway,
        )

    def narrowed(self, inputs: int, outputs: int) -> "Shape":
        """The same layer with fewer channels."""
        return replace(self, inputs=inputs, outputs=outputs)

    @property
    def fan_in(self) -> int:
        """Columns n of the weight as a matrix."""
        return self.inputs * prod(self.kernel)

    @property
    def entries(self) -> int:
        """Entries of the dense weight."""
        return self.outputs * self.fan_in


@dataclass(frozen=True, slots=True)
class Method:
    """The arithmetic of one factorisation."""

    fits: Callable[[Shape], bool]
    """Whether the layer has the form the method is defined on."""
    top: Callable[[Shape], int]
    """The largest useful rank index; there the factors can be the dense layer."""
    ranks: Callable[[Shape, int], tuple[int, ...]]
    """From the rank index to the ranks."""
    factors: Callable[[Shape, tuple[int, ...]], Factors]
    """What the factors take, first to last."""


def offered(shape: Shape, method: str) -> bool:
    """Whether a layer can be factored this way with some share below 1."""
    known = find(method)
    return shape.whole and known.fits(shape) and least_share(shape, method) < 1


def ranks(shape: Shape, method: str, share: float) -> tuple[int, ...]:
    """The largest ranks whose entries and multiply-accumulates take at most `share` of the dense layer's."""
    if not 0 < share < 1:
        raise PolicyError(f"A share must lie between 0 and 1, both excluded; {shape.name!r} has {share}: change it.")
    if not (shape.whole and find(method).fits(shape)):
        raise PolicyError(
            f"A factorisation must fit its layer; {method!r} does not fit {shape.name!r}: "
            "choose another method or keep the layer dense."
        )
    return _ranks(shape, method, share)


def least_share(shape: Shape, method: str) -> float:
    """The share that rank 1 takes."""
    return _share(shape, method, find(method).ranks(shape, 1))


def parameters(shape: Shape, method: str, ranks: tuple[int, ...]) -> int:
    """Entries of all factors; the bias, which stays as it is, apart."""
    return sum(entries for entries, _ in find(method).factors(shape, ranks))


def macs(shape: Shape, method: str, ranks: tuple[int, ...]) -> int:
    """Multiply-accumulates of all factors per sample."""
    return sum(entries * times for entries, times in find(method).factors(shape, ranks))


def factor_bound(name: str) -> int:
    """Bytes that factors take in a file besides their values, at most: entries of the header beyond those of the whole
    layer, with longer names, and a rounding of each factor."""
    return 7 * (len(name) + 80)


def find(method: str) -> Method:
    """A method's arithmetic by name; PolicyError for an unknown one."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}."
        raise PolicyError(f"A factorisation must be one of automc's; {method!r} is none: {hint}")
    return METHODS[method]


@lru_cache(maxsize=1 << 16)
def _ranks(shape: Shape, method: str, share: float) -> tuple[int, ...]:
    known = METHODS[method]
    low, high = 0, known.top(shape)  # rank index `low` fits, everything above `high` is too much or useless
    while low < high:
        middle = (low + high + 1) // 2
        fits = _share(shape, method, known.ranks(shape, middle)) <= share
        low, high = (middle, high) if fits else (low, middle - 1)
    if not low:
        raise PolicyError(
            f"A share must leave room for rank 1; {method!r} of {shape.name!r} takes {least_share(shape, method):.4g}, "
            f"more than {share}: raise the share or choose another method."
        )
    return known.ranks(shape, low)


def _share(shape: Shape, method: str, chosen: tuple[int, ...]) -> float:
    """The larger of the two shares, of entries and of multiply-accumulates."""
    entries = parameters(shape, method, chosen) / shape.entries
    return max(entries, macs(shape, method, chosen) / (shape.entries * shape.positions))


# --- The methods. -----------------------------------------------------------------------------------------------------


def _one(shape: Shape, index: int) -> tuple[int, ...]:
    return (index,)


def _in_turn(index: int, tops: tuple[int, ...]) -> tuple[int, ...]:
    """1 everywhere at index 1; each further index raises one rank, from the last to the first and over again."""
    count = len(tops)
    return tuple(min(1 + (index - 1 + k) // count, top) for k, top in enumerate(tops))


def _spatial_kernel(shape: Shape) -> bool:
    return len(shape.kernel) == 2 and min(shape.kernel) > 1 and shape.entering > 0


def _svd(shape: Shape, ranks: tuple[int, ...]) -> Factors:
    (r,) = ranks
    return (r * shape.fan_in, shape.positions), (r * shape.outputs, shape.positions)


def _eigendamage(shape: Shape, ranks: tuple[int, ...]) -> Factors:
    columns, rows = ranks
    return tuple(
        (entries, shape.positions) for entries in (columns * shape.fan_in, columns * rows, rows * shape.outputs)
    )


def _spatial(shape: Shape, ranks: tuple[int, ...]) -> Factors:
    (r,), (height, width) = ranks, shape.kernel
    return (r * shape.inputs * height, shape.halfway), (r * shape.outputs * width, shape.positions)


def _tucker2(shape: Shape, ranks: tuple[int, ...]) -> Factors:
    first, second = ranks
    core = first * second * prod(shape.kernel)
    return (
        (shape.inputs * first, shape.entering),
        (core, shape.positions),
        (second * shape.outputs, shape.positions),
    )


def _cp(shape: Shape, ranks: tuple[int, ...]) -> Factors:
    (r,), (height, width) = ranks, shape.kernel
    return (
        (r * shape.inputs, shape.entering),
        (r * height, shape.halfway),
        (r * width, shape.positions),
        (r * shape.outputs, shape.positions),
    )


CORES = 3
"""Cores of a tensor train."""


@lru_cache(maxsize=1 << 12)
def train_sizes(channels: int) -> tuple[int, int, int]:
    """Three nearly equal sizes, smallest first, whose product is `channels` or up to a tenth more.

    Novikov et al. factor the channels exactly; pruning leaves primes, so a few zero channels are appended here.
    """
    best = (1, 1, channels)
    for a in range(1, round(channels ** (1 / 3)) + 1):
        for b in range(a, int((channels / a) ** 0.5) + 2):
            c = max(b, -(-channels // (a * b)))
            if a * b * c <= 1.1 * channels and (a + b + c, a * b * c) < (sum(best), prod(best)):
                best = (a, b, c)
    return best


def train_modes(inputs: int, outputs: int) -> tuple[tuple[int, int], ...]:
    """(input size, output size) of each core: large inputs and small outputs first, which multiplies least."""
    return tuple(zip(reversed(train_sizes(inputs)), train_sizes(outputs), strict=True))


def _bonds(shape: Shape) -> tuple[int, ...]:
    """The largest rank each bond of a tensor train can use."""
    sizes = [n * m for n, m in train_modes(shape.inputs, shape.outputs)]
    return tuple(min(prod(sizes[:k]), prod(sizes[k:])) for k in range(1, CORES))


def _tt(shape: Shape, ranks: tuple[int, ...]) -> Factors:
    modes = train_modes(shape.inputs, shape.outputs)
    bonds = (1, *ranks, 1)
    found = []
    for k, (n, m) in enumerate(modes):
        times = prod(x for x, _ in modes[k + 1 :]) * prod(y for _, y in modes[:k])
        found.append((bonds[k] * n * m * bonds[k + 1], times * shape.positions))
    return tuple(found)


METHODS: Mapping[str, Method] = {
    "svd": Method(
        fits=lambda s: len(s.kernel) <= 2,
        top=lambda s: min(s.outputs, s.fan_in),
        ranks=_one,
        factors=_svd,
    ),
    "spatial": Method(
        fits=_spatial_kernel,
        top=lambda s: min(s.inputs * s.kernel[0], s.outputs * s.kernel[1]),
        ranks=_one,
        factors=_spatial,
    ),
    "tucker2": Method(
        fits=lambda s: len(s.kernel) == 2 and prod(s.kernel) > 1 and s.entering > 0,
        top=lambda s: 2 * max(s.inputs, s.outputs),
        ranks=lambda s, r: _in_turn(r, (s.inputs, s.outputs)),
        factors=_tucker2,
    ),
    "cp": Method(
        fits=_spatial_kernel,
        top=lambda s: prod(s.kernel) * min(s.inputs, s.outputs),
        ranks=_one,
        factors=_cp,
    ),
    "eigendamage": Method(
        fits=lambda s: len(s.kernel) <= 2,
        top=lambda s: 2 * max(s.outputs, s.fan_in),
        ranks=lambda s, r: _in_turn(r, (s.fan_in, s.outputs)),
        factors=_eigendamage,
    ),
    "tt": Method(
        fits=lambda s: s.kind == "linear",
        top=lambda s: (CORES - 1) * max(_bonds(s)),
        ranks=lambda s, r: _in_turn(r, _bonds(s)),
        factors=_tt,
    ),
}
