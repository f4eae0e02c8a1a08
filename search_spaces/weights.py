"""Which share of each layer's single weights is zero, in which pattern, chosen by which criterion.

N:M fixes the share of zeros, so a space of many shares cannot open 2:4 at all of them. It opens the family N:8 instead,
2:8 at three quarters of zeros, 4:8 at one half, which any share in eighths is a member of; where only halves are open,
2:4 and 4:8 stand beside single weights and blocks by themselves.
"""

from automc.graph.facts import LayerFacts, ModelFacts
from automc.pattern import member, parse
from automc.search_spaces.options import ZEROS, Zeros
from automc.space import Axis, Field, Value

SINGLE = Zeros(sparsities=(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), patterns=("element",), criteria=("l1",))
HALVES = Zeros(sparsities=(0.5,), patterns=("2:4", "4:8"), criteria=("l1",))
"""Of the N:M patterns those that keep one half."""
UNUSED: dict[Field, Value] = {"sparsity": 0.0, "pattern": "element", "criterion": "l1"}
"""What a layer has where nobody decides it."""


def weights(facts: ModelFacts, *, zeros: Zeros = ZEROS) -> tuple[Axis, ...]:
    """Sparsity, pattern and criterion of every layer; only patterns a layer has room for, and where it has room for
    none, it stays dense. Models that cannot be traced know of no inputs: magnitude chooses there."""
    criteria = zeros.criteria if facts.traceable else ("l1",)
    axes = []
    for layer in facts.weighed:
        patterns = tuple(name for name in zeros.patterns if _fits(layer, name))
        if patterns and any(zeros.sparsities):
            shares = tuple(sorted({*zeros.sparsities, 0.0}, reverse=True))
            axes.append(Axis(layer.name, "layer", "sparsity", shares))
            axes.append(Axis(layer.name, "layer", "pattern", patterns))
            axes.append(Axis(layer.name, "layer", "criterion", criteria))
    return tuple(a for a in axes if a.values != (UNUSED[a.field],))


def sparsity(facts: ModelFacts, *, zeros: Zeros = SINGLE) -> tuple[Axis, ...]:
    """Unstructured sparsity of every layer, by magnitude; open to models that cannot be traced, too."""
    return weights(facts, zeros=zeros)


def semi_structured(facts: ModelFacts, *, zeros: Zeros = HALVES) -> tuple[Axis, ...]:
    """Dense, or one half of each group of inputs; layers with fewer inputs than a group stay dense."""
    return weights(facts, zeros=zeros)


def _fits(layer: LayerFacts, pattern: str) -> bool:
    outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    return parse(member(pattern, 0.0)).fits(outputs, inputs)
