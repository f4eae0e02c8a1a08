"""How many channels each group keeps: every whole count from a tenth up, at most 64 levels a group."""

from automc.graph.facts import Group, ModelFacts
from automc.space import Axis

LEAST_KEEP = 0.1
MOST_LEVELS = 64


def channels(facts: ModelFacts) -> tuple[Axis, ...]:
    """Groups with one producing layer: the inner channels of residual blocks, chains, expansions.

    Channels of a residual stream belong to many layers at once and are dear to lose; `all_channels` opens them too.
    A model with no other groups has all of them opened.
    """
    inner = tuple(g for g in facts.groups if not g.coupled)
    return tuple(keep_axis(g) for g in inner or facts.groups)


def all_channels(facts: ModelFacts) -> tuple[Axis, ...]:
    """Every group, residual streams included."""
    return tuple(keep_axis(g) for g in facts.groups)


def keep_axis(group: Group) -> Axis:
    """The share of one group's units kept."""
    least = max(1, round(LEAST_KEEP * group.units))
    stride = -(-(group.units - least + 1) // MOST_LEVELS)
    counts = range(group.units, least - 1, -stride)
    return Axis(group.name, "group", "keep", tuple(sorted(count / group.units for count in counts)))
