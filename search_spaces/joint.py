"""Channels, criteria and weight bits together, in forward order: the decisions of a layer stand side by side."""

from automc.graph.facts import ModelFacts
from automc.search_spaces.bits import bits
from automc.search_spaces.criteria import criteria
from automc.space import Axis


def joint(facts: ModelFacts) -> tuple[Axis, ...]:
    """Every group's share and criterion, every layer's weight bits."""
    order = {x.name: i for i, x in enumerate(facts.layers)}
    first = {g.name: min(order[p] for p in g.producers) for g in facts.groups if g.producers}
    axes = [(first[a.place], a) for a in criteria(facts)] + [(order[a.place], a) for a in bits(facts)]
    return tuple(axis for _, axis in sorted(axes, key=lambda pair: pair[0]))


def channels_bops(facts: ModelFacts) -> tuple[Axis, ...]:
    """As `joint`, and every layer's activation bits."""
    order = {x.name: i for i, x in enumerate(facts.layers)}
    ends = {facts.layers[0].name, facts.layers[-1].name} if facts.layers else set()
    first = {g.name: min(order[p] for p in g.producers) for g in facts.groups if g.producers}
    axes = [(first[a.place], a) for a in criteria(facts)]
    for a in bits(facts):
        values = (8, 32) if a.place in ends else (2, 3, 4, 5, 6, 7, 8, 32)
        axes += [(order[a.place], a), (order[a.place], Axis(a.place, "layer", "activation_bits", values))]
    return tuple(axis for _, axis in sorted(axes, key=lambda pair: pair[0]))
