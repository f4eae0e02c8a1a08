"""Which residual blocks stay."""

from automc.graph.facts import ModelFacts
from automc.search_spaces.channels import channels
from automc.search_spaces.options import WIDTHS, Widths
from automc.space import Axis


def depth(facts: ModelFacts) -> tuple[Axis, ...]:
    """Every residual block, there or not."""
    return tuple(Axis(b.name, "block", "keep", (0.0, 1.0)) for b in facts.blocks)


def depth_and_channels(facts: ModelFacts, *, widths: Widths = WIDTHS) -> tuple[Axis, ...]:
    """Whole blocks, and the channels of those that stay."""
    return (*depth(facts), *channels(facts, widths=widths))
