"""How many bits each layer's weights take; inputs stay float unless asked for."""

from automc.graph.facts import ModelFacts
from automc.space import Axis

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 32)
ACTIVATION_BITS = (4, 5, 6, 7, 8, 32)


def bits(facts: ModelFacts) -> tuple[Axis, ...]:
    """Weight bits of every layer; at least 8 in the first and the last one, as HAQ pins them."""
    ends = {facts.layers[0].name, facts.layers[-1].name} if facts.layers else set()
    return tuple(Axis(x.name, "layer", "weight_bits", (8, 32) if x.name in ends else WEIGHT_BITS) for x in facts.layers)


def activation_bits(facts: ModelFacts) -> tuple[Axis, ...]:
    """Bits of every layer's input."""
    return tuple(Axis(x.name, "layer", "activation_bits", ACTIVATION_BITS) for x in facts.layers)


def shared_bits(facts: ModelFacts) -> tuple[Axis, ...]:
    """Weight bits of every layer, and whether their levels are evenly spaced or a codebook."""
    return tuple(axis for a in bits(facts) for axis in (a, Axis(a.place, "layer", "codebook", ("uniform", "kmeans"))))
