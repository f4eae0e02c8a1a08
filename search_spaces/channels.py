"""How many channels each group keeps: whole counts from a tenth up, at most 64 levels a group.

With `multiple_of` only counts that are a multiple of it, and the dense one: narrower layers than that save no time on
hardware that computes so many channels at once. AMC's code rounds counts to multiples of 8 after the agent has chosen,
upwards, so that the last layer cannot make up for it; here other counts are no levels, and nothing is rounded.
"""

from automc.graph.facts import Group, ModelFacts
from automc.search_spaces.options import WIDTHS, Widths
from automc.space import Axis


def channels(facts: ModelFacts, *, widths: Widths = WIDTHS) -> tuple[Axis, ...]:
    """Groups with one producing layer: the inner channels of residual blocks, chains, expansions.

    Channels of a residual stream belong to many layers at once and are dear to lose; `coupled` opens them too. A model
    with no other groups has all of them opened. A group without a smaller count to keep has no axis.
    """
    inner = tuple(g for g in facts.groups if widths.coupled or not g.coupled)
    axes = (keep_axis(g, widths) for g in inner or facts.groups)
    return tuple(a for a in axes if len(a.values) > 1)


def all_channels(facts: ModelFacts, *, widths: Widths = WIDTHS) -> tuple[Axis, ...]:
    """Every group, residual streams included."""
    return channels(facts, widths=widths.model_copy(update={"coupled": True}))


def keep_axis(group: Group, widths: Widths = WIDTHS) -> Axis:
    """The share of one group's units kept."""
    least = max(1, round(widths.least_keep * group.units))
    smaller = [n for n in range(group.units - 1, least - 1, -1) if n % widths.multiple_of == 0]
    counts = [group.units, *smaller]
    stride = -(-len(counts) // widths.most_levels)
    return Axis(group.name, "group", "keep", tuple(sorted(count / group.units for count in counts[::stride])))
