"""How many bits each layer's weights and inputs take.

HAQ (Wang et al. 2019, section 3.2) decides both for every layer, the weights first, and pins the first and the last
layer to 8 bits. Deviations: float stays open, since a policy must be able to leave a layer as it is; the inputs of the
first layer, which HAQ's code leaves alone, are open as those of the last one; linear layers that read the same tensor
(query, key and value) are decided together, because they run as one matrix and their input is rounded once.
"""

from collections.abc import Iterable, Mapping, Sequence

from automc.graph.facts import ModelFacts
from automc.policy import FULL_BITS
from automc.search_spaces.options import BITS, CODEBOOKS, Bits, Codebooks
from automc.space import Axis, Field


def bits(facts: ModelFacts, *, levels: Bits = BITS) -> tuple[Axis, ...]:
    """Weight and activation bits of every layer, of fused layers once."""
    alike = {name: names for names in facts.fused for name in names}
    places = dict.fromkeys(alike.get(x.name, (x.name,)) for x in facts.weighed)
    return _opened(facts, places, {"weight_bits": levels.weights, "activation_bits": levels.activations}, levels.ends)


def weight_bits(facts: ModelFacts, *, levels: Bits = BITS) -> tuple[Axis, ...]:
    """Weight bits of every layer by itself; inputs stay float."""
    return _opened(facts, [(x.name,) for x in facts.weighed], {"weight_bits": levels.weights}, levels.ends)


def activation_bits(facts: ModelFacts, *, levels: Bits = BITS) -> tuple[Axis, ...]:
    """Bits of every layer's input by itself, all layers alike."""
    return _opened(
        facts, [(x.name,) for x in facts.weighed], {"activation_bits": levels.activations}, levels.activations
    )


def shared_bits(facts: ModelFacts, *, levels: Bits = BITS, codebooks: Codebooks = CODEBOOKS) -> tuple[Axis, ...]:
    """Weight bits of every layer, and whether their levels are evenly spaced or a codebook."""
    decided = weight_bits(facts, levels=levels)
    return tuple(axis for a in decided for axis in (a, Axis(a.place, "layer", "codebook", codebooks.cheapest_first)))


def _opened(
    facts: ModelFacts, places: Iterable[tuple[str, ...]], fields: Mapping[Field, Sequence[int]], ends: Sequence[int]
) -> tuple[Axis, ...]:
    """An axis for each field of each place, in that order; where only float is left, none."""
    outer = {x.name for x in (*facts.layers[:1], *facts.layers[-1:])}
    axes = []
    for names in places:
        for field, levels in fields.items():
            if field == "activation_bits" and any(facts.layer(n).calls > 1 for n in names):
                continue  # what one call gets says nothing of the others, and one range serves them all
            fewer = ends if levels and not outer.isdisjoint(names) else levels
            axes.append(Axis(names[0], "layer", field, tuple(sorted({*fewer, FULL_BITS})), names[1:]))
    return tuple(a for a in axes if len(a.values) > 1)
