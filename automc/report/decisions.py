"""One policy as bars: what is kept of each group, and the bits and zeros of each layer."""

from rich.table import Table

from automc.policy import FULL_BITS, LayerDecision, Policy
from automc.report import text

_WIDTH = 24


def tables(policy: Policy) -> list[Table]:
    """Tables of blocks, groups and layers; a table without rows is left out."""
    return [t for t in (_blocks(policy), _groups(policy), _layers(policy)) if t.row_count]


def _groups(policy: Policy) -> Table:
    result = Table("group", "kept", "", "criterion", title="channels", title_justify="left")
    for name, decision in policy.groups:
        share, criterion = f"{100 * decision.keep:.0f}%", text.plain(decision.criterion)
        result.add_row(text.plain(name), share, _bar(decision.keep), criterion)
    return result


def _layers(policy: Policy) -> Table:
    columns = ("layer", "weights", "", "activations", "zeros", "factors")
    result = Table(*columns, title="weights", title_justify="left")
    for name, decision in policy.layers:
        if decision.effective != LayerDecision():
            stored = decision.rank * min(decision.weight_bits, 8) / 8 * (1 - decision.sparsity)
            zeros = f"{100 * decision.sparsity:.0f}% {_chosen(decision)}" if decision.sparsity else "-"
            factors = text.plain(f"{decision.factorization} {100 * decision.rank:.0f}%" if decision.rank < 1 else "-")
            weights, activations = _weights(decision), _bits(decision.activation_bits)
            result.add_row(text.plain(name), weights, _bar(stored), activations, text.plain(zeros), factors)
    return result


def _blocks(policy: Policy) -> Table:
    result = Table("block", "", title="residual blocks", title_justify="left")
    for name, decision in policy.blocks:
        result.add_row(text.plain(name), "stays" if decision.keep else "left out")
    return result


def _chosen(decision: LayerDecision) -> str:
    """By which criterion, in which pattern."""
    return decision.criterion if decision.pattern == "element" else f"{decision.pattern} {decision.criterion}"


def _weights(decision: LayerDecision) -> str:
    shared = decision.weight_bits < FULL_BITS and decision.codebook == "kmeans"
    return f"{_bits(decision.weight_bits)}, shared" if shared else _bits(decision.weight_bits)


def _bits(bits: int) -> str:
    return "float" if bits == FULL_BITS else f"{bits} bits"


def _bar(share: float) -> str:
    filled = round(share * _WIDTH)
    return "█" * filled + "░" * (_WIDTH - filled)
