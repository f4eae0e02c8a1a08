"""How far each layer is factored into smaller ones."""

from automc.graph.facts import ModelFacts
from automc.graph.ranks import Shape, least_share, offered
from automc.search_spaces.options import FACTORS, Factors
from automc.space import Axis

LEAST_ENTRIES = 1024
"""Smaller layers gain less than their factors' names take in a file."""


def ranks(facts: ModelFacts, *, factors: Factors = FACTORS) -> tuple[Axis, ...]:
    """Every layer a method is defined on, at the shares that leave it rank one; factors are fitted to its outputs."""
    axes: list[Axis] = []
    for layer in facts.weighed:
        shape = Shape.of(layer)
        method = next((m for m in factors.methods if offered(shape, m)), None)
        if layer.weight_numel < LEAST_ENTRIES or method is None:
            continue
        shares = tuple(s for s in sorted({*factors.shares, 1.0}) if s >= least_share(shape, method))
        if len(shares) > 1:
            axes.append(Axis(layer.name, "layer", "rank", shares))
            axes.append(Axis(layer.name, "layer", "factorization", (method,)))
    return tuple(axes)


def svd(facts: ModelFacts, *, factors: Factors = FACTORS) -> tuple[Axis, ...]:
    """A bottleneck of fewer channels in each layer."""
    return factored(facts, "svd", factors)


def spatial(facts: ModelFacts, *, factors: Factors = FACTORS) -> tuple[Axis, ...]:
    """A vertical and a horizontal convolution for each convolution."""
    return factored(facts, "spatial", factors)


def tucker(facts: ModelFacts, *, factors: Factors = FACTORS) -> tuple[Axis, ...]:
    """Channels down, a small convolution, channels up."""
    return factored(facts, "tucker2", factors)


def eigendamage(facts: ModelFacts, *, factors: Factors = FACTORS) -> tuple[Axis, ...]:
    """Three factors a layer, in the eigenbasis where the loss's curvature is known."""
    return factored(facts, "eigendamage", factors)


def factored(facts: ModelFacts, method: str, factors: Factors = FACTORS) -> tuple[Axis, ...]:
    """Every layer a method is defined on."""
    return ranks(facts, factors=factors.model_copy(update={"method": method}))
