"""Which criterion ranks the channels of each group."""

from automc.graph.facts import ModelFacts
from automc.search_spaces.channels import channels
from automc.space import Axis

CRITERIA = ("obs", "activation", "fpgm", "l1")


def criteria(facts: ModelFacts) -> tuple[Axis, ...]:
    """Channels kept per group, and the criterion that chooses them."""
    keeps = channels(facts)
    return tuple(axis for keep in keeps for axis in (keep, Axis(keep.place, "group", "criterion", CRITERIA)))
