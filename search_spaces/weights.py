"""Which share of each layer's single weights is zero, in which pattern, chosen by which criterion."""

from automc.graph.facts import LayerFacts, ModelFacts
from automc.pattern import parse
from automc.space import Axis

SPARSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0)
PATTERNS = ("element", "1x4", "4x1", "16x1")
HALVES = ("2:4", "4:8")
"""Of the N:M patterns those that keep one half."""
CRITERIA = ("obs", "activation", "l1")


def sparsity(facts: ModelFacts) -> tuple[Axis, ...]:
    """Unstructured sparsity of every layer; open to models that cannot be traced, too."""
    return tuple(Axis(x.name, "layer", "sparsity", SPARSITIES) for x in facts.layers)


def weights(facts: ModelFacts) -> tuple[Axis, ...]:
    """Sparsity, pattern and criterion of every layer; only patterns a layer has room for."""
    return tuple(
        axis
        for x in facts.layers
        for axis in (
            Axis(x.name, "layer", "sparsity", SPARSITIES),
            Axis(x.name, "layer", "pattern", _fitting(x, PATTERNS)),
            Axis(x.name, "layer", "criterion", CRITERIA if facts.traceable else ("l1",)),
        )
    )


def semi_structured(facts: ModelFacts) -> tuple[Axis, ...]:
    """Dense, or one half of each group of inputs; layers with fewer inputs than a group stay dense."""
    return tuple(
        axis
        for x in facts.layers
        if (patterns := _fitting(x, HALVES))
        for axis in (Axis(x.name, "layer", "sparsity", (0.5, 0.0)), Axis(x.name, "layer", "pattern", patterns))
    )


def _fitting(layer: LayerFacts, patterns: tuple[str, ...]) -> tuple[str, ...]:
    outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    return tuple(name for name in patterns if parse(name).fits(outputs, inputs))
