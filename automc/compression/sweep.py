"""Settling a layer's weights column by column, each column's error handed on to the columns still open.

GPTQ (Frantar et al. 2023, algorithm 1) settles by rounding, SparseGPT (Frantar and Alistarh 2023, algorithm 1) by
masking, both by doing both; OBQ (Frantar and Alistarh 2022) does the same in the best order for each row. With U the
upper root of the inverse Gram matrix, G^-1 = U^T U, column i's error e = (w_i - q_i) / U_ii moves the open columns by
-e U_i. O(n^3 / 3 + out n^2) for a layer; with masks of their own rows have roots of their own, O(out n^3 / 3), up to
`EXACT_WORK`; beyond that the root is shared, as in SparseGPT.

Deviations: columns go by falling second moment in every case (GPTQ's act-order), and a masked row's root is that of the
weights it keeps, so nothing is handed to weights that are gone, which SparseGPT does.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from automc.criteria.roots import damped, root
from automc.pattern import Pattern

BLOCK = 128
DAMPING = 1e-2
EXACT_WORK = 4e12
_CHUNK_BYTES = 2**27

Settle = Callable[[int, Tensor], Tensor]
"""From a column's number and its weights (rows,) to what they are settled at (rows,)."""


def refit_masked(gram: Tensor, cross: Tensor, mask: Tensor, ridge: float) -> Tensor:
    """Least squares of every row on the columns its mask keeps; rows (out, n), float64.

    gram (n, n) and cross (n, out), centred where the layer has an intercept; mask (out, n). Closed form, so it equals
    OBS's step-by-step compensation for the same mask. O(out n^3 / 3); beyond `EXACT_WORK` the unmasked solution is
    masked and its error handed on column by column.
    """
    out, n = mask.shape
    system = damped(gram, ridge)
    dense = torch.cholesky_solve(cross, root(system)).T
    if bool(mask.all()):
        return dense
    if out * n**3 / 3 > EXACT_WORK:
        order = torch.arange(n)
        return sweep(dense, inverse_root(gram, ridge), lambda i, w: w * mask[:, i], order)
    rows = []
    for part, target in zip(*(x.split(_rows_at_once(n)) for x in (mask, cross.T)), strict=True):  # type: ignore[no-untyped-call]
        kept = part.to(torch.float64)
        restricted = system * kept[:, :, None] * kept[:, None, :] + torch.diag_embed(1 - kept)
        rows.append(torch.cholesky_solve((target * kept)[:, :, None], root(restricted))[:, :, 0])
    return torch.cat(rows) * mask


def round_rows(rows: Tensor, gram: Tensor, scale: Tensor, top: int, mask: Tensor | None = None) -> Tensor:
    """Integer codes (out, n) within +-top of rows (out, n) under scales (out,), with a low output error."""
    order = gram.diagonal().argsort(descending=True, stable=True)
    per_row = mask is not None and not bool(mask.all())
    if per_row and rows.numel() * rows.shape[1] ** 2 / 3 <= EXACT_WORK:
        assert mask is not None
        chunks = [
            _rounded(part, inverse_root(gram, DAMPING, order, kept), s, top, order, kept)
            for part, s, kept in zip(*(x.split(_rows_at_once(len(gram))) for x in (rows, scale, mask)), strict=True)  # type: ignore[no-untyped-call]
        ]
        return torch.cat(chunks)
    return _rounded(rows, inverse_root(gram, DAMPING, order), scale, top, order, mask if per_row else None)


def mask_by_sweep(rows: Tensor, gram: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """SparseGPT's mask (out, n): in every block of columns the lowest w_i^2 / U_ii^2, after what earlier blocks handed
    on.

    Single weights: the share `sparsity` of each block of 128 columns, across rows; N:M: in each row's groups. Columns
    go in the order given, so that groups of M are neighbours; n must be a multiple of M.
    """
    upper = inverse_root(gram, DAMPING)
    stays = torch.ones(rows.shape, dtype=torch.bool)
    size = BLOCK if pattern.keep is None else pattern.span

    def choose(start: int, block: Tensor) -> None:
        saliency = (block / upper[0].diagonal()[start : start + block.shape[1]]).square()
        if pattern.keep is None:
            drop = int(saliency.numel() * sparsity)
            chosen = torch.ones(saliency.numel(), dtype=torch.bool)
            chosen[saliency.flatten().argsort(stable=True)[:drop]] = False
            stays[:, start : start + block.shape[1]] = chosen.reshape(saliency.shape)
        else:
            best = saliency.topk(pattern.keep[0], dim=1).indices
            stays[:, start : start + size] = torch.zeros_like(saliency, dtype=torch.bool).scatter_(1, best, True)

    sweep(rows, upper, lambda i, w: w * stays[:, i], torch.arange(rows.shape[1]), choose, size)
    return stays


def inverse_root(gram: Tensor, damping: float, order: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Upper U (1, n, n), or (rows, n, n) with a mask (rows, n), with U^T U the damped inverse of the ordered Gram
    matrix restricted to each row's kept columns; the identity elsewhere."""
    order = torch.arange(len(gram)) if order is None else order
    system = damped(gram, damping)[order][:, order][None]
    if mask is not None:
        kept = mask[:, order].to(torch.float64)
        system = system * kept[:, :, None] * kept[:, None, :] + torch.diag_embed(1 - kept)
    flipped = root(system.flip(1, 2)).flip(1, 2)  # upper M with M M^T = G
    eye = torch.eye(len(gram), dtype=torch.float64).expand_as(flipped)
    inverse: Tensor = torch.linalg.solve_triangular(flipped, eye, upper=True)
    return inverse


def sweep(
    rows: Tensor,
    upper: Tensor,
    settle: Settle,
    order: Tensor,
    begin: Callable[[int, Tensor], None] | None = None,
    size: int = BLOCK,
) -> Tensor:
    """Settles the columns of rows (out, n) in `order`, handing errors on; upper roots (1 or out, n, n) in that order.

    `begin(start, block)` sees each block's weights before its first column is settled.
    """
    open_rows = rows.to(torch.float64)[:, order].clone()
    n = open_rows.shape[1]
    for start in range(0, n, size):
        stop = min(start + size, n)
        if begin is not None:
            begin(start, open_rows[:, start:stop])
        errors = torch.zeros(len(rows), stop - start, dtype=torch.float64)
        for i in range(start, stop):
            column = open_rows[:, i].clone()
            settled = settle(int(order[i]), column)
            error = (column - settled) / upper[:, i, i]
            open_rows[:, i:stop] -= error[:, None] * upper[:, i, i:stop]
            open_rows[:, i] = settled
            errors[:, i - start] = error
        handed = errors @ upper[0, start:stop, stop:] if len(upper) == 1 else None
        if handed is None:
            handed = (errors[:, None] @ upper[:, start:stop, stop:])[:, 0]
        open_rows[:, stop:] -= handed
    settled_rows = torch.empty_like(open_rows)
    settled_rows[:, order] = open_rows
    return settled_rows


def _rounded(rows: Tensor, upper: Tensor, scale: Tensor, top: int, order: Tensor, mask: Tensor | None) -> Tensor:
    step = scale.to(torch.float64)
    kept = torch.ones(rows.shape, dtype=torch.bool) if mask is None else mask

    def settle(i: int, column: Tensor) -> Tensor:
        return (column / step).round().clamp(-top, top) * step * kept[:, i]

    return (sweep(rows, upper, settle, order) / step[:, None]).round()


def _rows_at_once(n: int) -> int:
    return max(1, _CHUNK_BYTES // (8 * n * n))
