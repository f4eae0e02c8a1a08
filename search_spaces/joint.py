"""Every kind of decision together, or channels beside ranks or bits: the decisions of a layer stand side by side."""

from automc.graph.facts import ModelFacts
from automc.search_spaces.bits import bits, weight_bits
from automc.search_spaces.criteria import criteria
from automc.search_spaces.depth import depth
from automc.search_spaces.joined import joined
from automc.search_spaces.options import BITS, FACTORS, RANKING, WIDTHS, ZEROS, Bits, Factors, Ranking, Widths, Zeros
from automc.search_spaces.ranks import ranks
from automc.search_spaces.weights import weights
from automc.space import Axis

SINGLE = Zeros(sparsities=(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), patterns=("element",), criteria=("obs",))


def joint(
    facts: ModelFacts,
    *,
    widths: Widths = WIDTHS,
    ranking: Ranking = RANKING,
    factors: Factors = FACTORS,
    zeros: Zeros = ZEROS,
    levels: Bits = BITS,
) -> tuple[Axis, ...]:
    """Which blocks stay, every group's share and criterion, every layer's rank, zeros and bits.

    A block that is left out takes all other decisions about its layers with it (see `joined` for what else goes
    together).
    """
    axes = [*depth(facts), *criteria(facts, widths=widths, ranking=ranking), *ranks(facts, factors=factors)]
    return joined(facts, [*axes, *weights(facts, zeros=zeros), *bits(facts, levels=levels)])


def channels_ranks(
    facts: ModelFacts, *, widths: Widths = WIDTHS, ranking: Ranking = RANKING, factors: Factors = FACTORS
) -> tuple[Axis, ...]:
    """Every group's share and criterion, every layer's rank: what multiply-accumulates depend on.

    A vertical and a horizontal convolution lose less than one with fewer channels, at equal cost.
    """
    return joined(facts, [*criteria(facts, widths=widths, ranking=ranking), *ranks(facts, factors=factors)])


def channels_bits(
    facts: ModelFacts, *, widths: Widths = WIDTHS, ranking: Ranking = RANKING, levels: Bits = BITS
) -> tuple[Axis, ...]:
    """Every group's share and criterion, every layer's weight bits: what makes a file smaller."""
    return joined(facts, [*criteria(facts, widths=widths, ranking=ranking), *weight_bits(facts, levels=levels)])


def zeros_bits(facts: ModelFacts, *, zeros: Zeros = SINGLE, levels: Bits = BITS) -> tuple[Axis, ...]:
    """Every layer's share of single zeros, weight and activation bits: what bit operations depend on.

    At as many bit operations, half the weights at four bits lose far less than all of them at three.
    """
    return joined(facts, [*weights(facts, zeros=zeros), *bits(facts, levels=levels)])


def channels_bops(
    facts: ModelFacts, *, widths: Widths = WIDTHS, ranking: Ranking = RANKING, levels: Bits = BITS
) -> tuple[Axis, ...]:
    """Every group's share and criterion, every layer's weight and activation bits: for machines that skip no zeros."""
    return joined(facts, [*criteria(facts, widths=widths, ranking=ranking), *bits(facts, levels=levels)])
