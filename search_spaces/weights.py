"""Which share of each layer's single weights is zero."""

from automc.graph.facts import ModelFacts
from automc.space import Axis

SPARSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0)


def sparsity(facts: ModelFacts) -> tuple[Axis, ...]:
    """Unstructured sparsity of every layer; open to models that cannot be traced, too."""
    return tuple(Axis(x.name, "layer", "sparsity", SPARSITIES) for x in facts.layers)
