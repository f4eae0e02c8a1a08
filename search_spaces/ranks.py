"""How far each layer is factored into smaller ones."""

from automc.graph.facts import ModelFacts
from automc.graph.ranks import Shape, least_share, offered
from automc.space import Axis

SHARES = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0)
LEAST_ENTRIES = 1024
"""Smaller layers gain less than their factors' names take in a file."""


def ranks(facts: ModelFacts) -> tuple[Axis, ...]:
    """Two factors a layer, fitted to its outputs: a bottleneck of fewer channels."""
    return factored(facts, "svd")


def spatial(facts: ModelFacts) -> tuple[Axis, ...]:
    """A vertical and a horizontal convolution for each convolution."""
    return factored(facts, "spatial")


def tucker(facts: ModelFacts) -> tuple[Axis, ...]:
    """Channels down, a small convolution, channels up."""
    return factored(facts, "tucker2")


def eigendamage(facts: ModelFacts) -> tuple[Axis, ...]:
    """Three factors a layer, in the eigenbasis where the loss's curvature is known."""
    return factored(facts, "eigendamage")


def factored(facts: ModelFacts, method: str) -> tuple[Axis, ...]:
    """Every layer the method is defined on, at the shares that leave it rank one."""
    axes: list[Axis] = []
    for layer in facts.layers:
        shape = Shape.of(layer)
        if layer.weight_numel < LEAST_ENTRIES or not offered(shape, method):
            continue
        shares = tuple(s for s in SHARES if s >= least_share(shape, method))
        axes += [Axis(layer.name, "layer", "rank", shares), Axis(layer.name, "layer", "factorization", (method,))]
    return tuple(axes)
