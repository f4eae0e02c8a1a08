"""Which criterion ranks the channels of each group."""

from automc.graph.facts import ModelFacts
from automc.search_spaces.channels import channels
from automc.search_spaces.options import RANKING, WIDTHS, Ranking, Widths
from automc.space import Axis


def criteria(facts: ModelFacts, *, widths: Widths = WIDTHS, ranking: Ranking = RANKING) -> tuple[Axis, ...]:
    """Channels kept per group, and the criterion that chooses them."""
    keeps = channels(facts, widths=widths)
    return tuple(axis for keep in keeps for axis in (keep, Axis(keep.place, "group", "criterion", ranking.root)))
