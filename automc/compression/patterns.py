"""From scores or traces to masks, for every pattern.

A weight (out, in / groups, *kernel) is laid out as row sets (S, R, n'): R consecutive outputs of one conv-group,
columns ordered with channels running fastest and padded to whole blocks, so that a block or an N:M group is always a
run of neighbouring columns. One index does it in both directions.
"""

from dataclasses import dataclass
from math import floor, prod

import torch
from torch import Tensor

from automc.criteria.surgeon import Traces
from automc.pattern import Pattern


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """Where each entry of the laid-out matrix comes from; one past the end stands for padding."""

    shape: tuple[int, ...]
    """(out, in / groups, *kernel)"""
    index: Tensor
    """Position in the flattened weight (S, R, n')."""
    columns: Tensor
    """Column of the flattened fan-in (n',)."""

    @property
    def present(self) -> Tensor:
        """What is no padding (S, R, n')."""
        return self.index < prod(self.shape)

    def quota(self, pattern: Pattern) -> Tensor | None:
        """How many columns of each M consecutive ones leave under N:M (n' / M,); None for other patterns.

        Padding counts as gone: of t real ones floor(t N / M) stay, so that at least the pattern's share leaves.
        """
        if pattern.keep is None:
            return None
        n, m = pattern.keep
        real = (self.columns < prod(self.shape[1:])).reshape(-1, m).sum(dim=1)
        return m - real * n // m

    def lay(self, values: Tensor) -> Tensor:
        """Values of the weight's shape, laid out (S, R, n'); zeros in padding."""
        flat = torch.cat((values.reshape(-1), values.new_zeros(1)))
        return flat[self.index]

    def restore(self, laid: Tensor) -> Tensor:
        """The laid-out values (S, R, n') in the weight's shape."""
        flat = laid.new_zeros(prod(self.shape) + 1)
        flat[self.index.reshape(-1)] = laid.reshape(-1)
        return flat[:-1].reshape(self.shape)

    def lay_square(self, matrices: Tensor) -> Tensor:
        """Fan-in matrices (groups, n, n) as (groups, n', n'), the identity in padding."""
        n = matrices.shape[1]
        padded = torch.zeros(len(matrices), n + 1, n + 1, dtype=matrices.dtype)
        padded[:, :n, :n] = matrices
        laid = padded[:, self.columns[:, None], self.columns]
        laid.diagonal(dim1=1, dim2=2)[:, self.columns == n] = 1.0
        return laid


def layout(shape: tuple[int, ...], conv_groups: int, pattern: Pattern) -> Layout:
    """The layout of a weight (out, in / groups, *kernel) for a pattern."""
    out, inputs, area = shape[0], shape[1], prod(shape[2:])
    each, padding = out // conv_groups, out * inputs * area
    rows = _padded(torch.arange(out).reshape(conv_groups, each), pattern.rows, out).reshape(-1, pattern.rows)
    channels = _padded(torch.arange(inputs)[None], pattern.span, inputs)[0]  # (inputs',)
    columns = (channels[None, :] * area + torch.arange(area)[:, None]).reshape(-1)  # channels fastest
    columns = torch.where(columns >= inputs * area, inputs * area, columns)
    index = rows[:, :, None] * (inputs * area) + columns
    missing = (rows[:, :, None] == out) | (columns == inputs * area)
    return Layout(shape, torch.where(missing, padding, index), columns)


def mask_by_score(score: Tensor, sparsity: float, pattern: Pattern, where: Layout) -> Tensor:
    """True for weights that stay, of the weight's shape: blocks with the lowest mean scores leave.

    At least floor(numel * sparsity) weights leave: whole blocks until that is reached; with N:M all but N of each M, in
    an incomplete last group of t at least as large a share.
    """
    if sparsity <= 0:
        return torch.ones(where.shape, dtype=torch.bool)
    if pattern.keep is not None:
        laid = where.lay(score.detach().to(torch.float64))
        return where.restore(_keep_of_each(laid.masked_fill(~where.present, -torch.inf), pattern.keep, where))
    mean, entries = block_means(score, pattern, where)
    return _without(_first(mean, entries, sparsity, where), pattern, where)


def block_means(score: Tensor, pattern: Pattern, where: Layout) -> tuple[Tensor, Tensor]:
    """The mean score of each block, and how many weights it has (S, blocks), 0 for one of padding alone."""
    laid = where.lay(score.detach().to(torch.float64))
    sets, _, n = laid.shape
    cells = (sets, pattern.rows, n // pattern.columns, pattern.columns)
    entries = where.present.reshape(cells).sum(dim=(1, 3))
    return laid.reshape(cells).sum(dim=(1, 3)) / entries.clamp_min(1), entries


def mask_by_trace(traces: Traces, sparsity: float, pattern: Pattern, where: Layout) -> Tensor:
    """True for weights that stay, of the weight's shape, from the order in which each row set's blocks leave.

    Row sets compete: the next block to leave is the one with the least loss for each weight at the head of its set's
    order (OBC, section 4, "step 2: global mask selection"), which is the order of the running maxima.
    """
    if sparsity <= 0:
        return torch.ones(where.shape, dtype=torch.bool)
    sets, _, n = where.index.shape
    blocks = n // pattern.columns
    if pattern.keep is not None:  # the trace stops where the pattern does
        gone = torch.zeros(sets, blocks, dtype=torch.bool).scatter_(1, traces.order, True)
        return _without(gone, pattern, where)
    entries = where.present.reshape(sets, pattern.rows, blocks, pattern.columns).sum(dim=(1, 3)).gather(1, traces.order)
    head = (traces.loss / entries.clamp_min(1)).masked_fill(entries == 0, 0.0).cummax(dim=1).values
    first = _first(head, entries, sparsity, where)
    gone = torch.zeros_like(first).scatter_(1, traces.order, first)
    return _without(gone, pattern, where)


def _first(cost: Tensor, entries: Tensor, sparsity: float, where: Layout) -> Tensor:
    """The cheapest blocks (S, blocks), as few as hold floor(numel * sparsity) weights."""
    order = cost.flatten().argsort(stable=True)
    before = entries.flatten()[order].cumsum(0) - entries.flatten()[order]
    chosen = torch.zeros(cost.numel(), dtype=torch.bool)
    chosen[order] = before < floor(prod(where.shape) * sparsity)
    return chosen.reshape(cost.shape)


def _without(gone: Tensor, pattern: Pattern, where: Layout) -> Tensor:
    sets, rows, n = where.index.shape
    stays = ~gone.repeat_interleave(pattern.columns, dim=1)
    return where.restore(stays[:, None].expand(sets, rows, n))


def _keep_of_each(score: Tensor, keep: tuple[int, int], where: Layout) -> Tensor:
    """True for the weights with the highest scores of each group of M, floor(t N / M) of one with t real weights."""
    n, m = keep
    groups = score.reshape(*score.shape[:2], -1, m)
    real = where.present.reshape(groups.shape).sum(dim=3, keepdim=True)
    rank = groups.argsort(dim=3, descending=True, stable=True).argsort(dim=3, stable=True)
    return (rank < real * n // m).reshape(score.shape)


def _padded(numbers: Tensor, size: int, filler: int) -> Tensor:
    """Rows of numbers (B, t) padded with `filler` to a multiple of `size`."""
    short = -numbers.shape[1] % size
    return torch.cat((numbers, numbers.new_full((len(numbers), short), filler)), dim=1)
