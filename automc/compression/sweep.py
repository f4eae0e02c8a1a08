"""Settling a layer's weights column by column, each column's error handed on to the columns still open.

GPTQ (Frantar et al. 2023, algorithm 1) settles by rounding, SparseGPT (Frantar and Alistarh 2023, algorithm 1) by
masking, both by doing both; OBQ (Frantar and Alistarh 2022) does the same in the best order for each row. With U the
upper root of the inverse Gram matrix, G^-1 = U^T U, column i's error e = (w_i - q_i) / U_ii moves the open columns by
-e U_i. O(n^3 / 3 + out n^2) for a layer; with masks of their own rows have roots of their own, O(out n^3 / 3), up to
`EXACT_WORK`; beyond that the root is shared, as in SparseGPT.

Deviations: columns go by falling second moment in every case (GPTQ's act-order), and a masked row's root is that of the
weights it keeps, so nothing is handed to weights that are gone, which SparseGPT does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from automc.criteria.roots import damped, root
from automc.pattern import Pattern

BLOCK = 128
DAMPING = 1e-2
EXACT_WORK = 4e12
_CHUNK_BYTES = 2**23
"""Small enough that memory is handed round instead of asked of the system each time."""

Settle = Callable[[int, Tensor], Tensor]
"""From a column's number and its weights (rows,) to what they are settled at (rows,)."""


def refit_masked(gram: Tensor, cross: Tensor, mask: Tensor, ridge: float) -> Tensor:
    """Least squares of every row on the columns its mask keeps; rows (out, n), float64.

    gram (n, n) and cross (n, out), centred where the layer has an intercept; mask (out, n). Closed form, so it equals
    OBS's step-by-step compensation for the same mask. O(out k^3 / 3) for k columns kept; beyond `EXACT_WORK` the
    unmasked solution is masked and its error handed on column by column.
    """
    n = mask.shape[1]
    system = damped(gram, ridge)
    dense = torch.cholesky_solve(cross, root(system)).T
    if bool(mask.all()):
        return dense
    if _work(mask) > EXACT_WORK:
        return sweep(dense, inverse_root(gram, ridge), lambda i, w: w * mask[:, i])
    fitted = torch.zeros_like(dense)
    for part, kept in _by_row(mask):
        solved = torch.cholesky_solve(kept.take(cross.T[part])[:, :, None], root(kept.restrict(system)))
        fitted[part] = kept.put_back(solved[:, :, 0], n)
    return fitted


def round_rows(rows: Tensor, gram: Tensor, scale: Tensor, top: int, mask: Tensor | None = None) -> Tensor:
    """Integer codes (out, n) within +-top of rows (out, n) under scales (out,), with a low output error."""
    order = gram.diagonal().argsort(descending=True, stable=True)
    if mask is None or bool(mask.all()):
        return _rounded(rows[:, order], inverse_root(gram, DAMPING, order), scale, top)[:, order.argsort()]
    codes = torch.zeros(rows.shape, dtype=torch.float64)
    if _work(mask) > EXACT_WORK:
        shared = inverse_root(gram, DAMPING, order)
        codes[:, order] = _rounded(rows[:, order], shared, scale, top, mask[:, order])
        return codes
    system = damped(gram, DAMPING)[order][:, order]
    for part, kept in _by_row(mask[:, order]):
        found = _rounded(kept.take(rows[part][:, order]), upper_root(kept.restrict(system)), scale[part], top)
        codes[part] = kept.put_back(found, rows.shape[1])
    return codes[:, order.argsort()]


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

    sweep(rows, upper, lambda i, w: w * stays[:, i], choose, size)
    return stays


def inverse_root(gram: Tensor, damping: float, order: Tensor | None = None) -> Tensor:
    """Upper U (1, n, n) with U^T U the damped inverse of the ordered Gram matrix."""
    order = torch.arange(len(gram)) if order is None else order
    return upper_root(damped(gram, damping)[order][:, order][None])


def upper_root(systems: Tensor) -> Tensor:
    """Upper U with U^T U the inverse of each system (..., n, n)."""
    flipped = root(systems.flip(1, 2)).flip(1, 2)  # upper M with M M^T = G
    eye = torch.eye(systems.shape[-1], dtype=torch.float64).expand_as(flipped)
    inverse: Tensor = torch.linalg.solve_triangular(flipped, eye, upper=True)
    return inverse


def sweep(
    rows: Tensor,
    upper: Tensor,
    settle: Settle,
    begin: Callable[[int, Tensor], None] | None = None,
    size: int = BLOCK,
) -> Tensor:
    """Settles the columns of rows (out, n) from the first to the last, handing errors on; upper roots (1 or out, n, n).

    `begin(start, block)` sees each block's weights before its first column is settled.
    """
    open_rows = rows.to(torch.float64).clone()
    n = open_rows.shape[1]
    for start in range(0, n, size):
        stop = min(start + size, n)
        if begin is not None:
            begin(start, open_rows[:, start:stop])
        errors = torch.zeros(len(rows), stop - start, dtype=torch.float64)
        for i in range(start, stop):
            column = open_rows[:, i].clone()
            settled = settle(i, column)
            error = (column - settled) / upper[:, i, i]
            open_rows[:, i:stop] -= error[:, None] * upper[:, i, i:stop]
            open_rows[:, i] = settled
            errors[:, i - start] = error
        handed = errors @ upper[0, start:stop, stop:] if len(upper) == 1 else None
        if handed is None:
            handed = (errors[:, None] @ upper[:, start:stop, stop:])[:, 0]
        open_rows[:, stop:] -= handed
    return open_rows


def _rounded(rows: Tensor, upper: Tensor, scale: Tensor, top: int, mask: Tensor | None = None) -> Tensor:
    step = scale.to(torch.float64)

    def settle(i: int, column: Tensor) -> Tensor:
        value = (column / step).round().clamp(-top, top) * step
        return value if mask is None else value * mask[:, i]

    return (sweep(rows, upper, settle) / step[:, None]).round()


def _work(mask: Tensor) -> float:
    """Multiplications that a root of every row's own takes."""
    return float(mask.sum(dim=1, dtype=torch.float64).pow(3).sum()) / 3


@dataclass(frozen=True, eq=False, slots=True)
class _Kept:
    """The columns that each of some rows keeps, brought together; rows that keep fewer are filled up."""

    index: Tensor
    """(rows, most)"""
    valid: Tensor
    """Which of them are kept (rows, most)."""

    def take(self, rows: Tensor) -> Tensor:
        """The kept columns of rows (rows, n), zero where filled up."""
        return rows.to(torch.float64).gather(1, self.index) * self.valid

    def restrict(self, system: Tensor) -> Tensor:
        """A matrix (n, n) as each row sees it (rows, most, most), the identity where filled up."""
        both = self.valid[:, :, None] & self.valid[:, None, :]
        own = system[self.index[:, :, None], self.index[:, None, :]] * both
        return own + torch.diag_embed((~self.valid).to(torch.float64))

    def put_back(self, values: Tensor, n: int) -> Tensor:
        """Rows (rows, n) with the values at the kept columns and zeros elsewhere."""
        return torch.zeros(len(values), n, dtype=torch.float64).scatter_(1, self.index, values * self.valid)


def _by_row(mask: Tensor) -> Iterator[tuple[Tensor, _Kept]]:
    """Rows of a mask (out, n) that keep about as many columns, as many at once as memory allows."""
    counts = mask.sum(dim=1)
    waiting = counts.argsort(descending=True, stable=True)
    while len(waiting):
        most = max(1, int(counts[waiting[0]]))
        part = waiting[: max(1, _CHUNK_BYTES // (8 * most * most))]
        waiting = waiting[len(part) :]
        index = (~mask[part]).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        yield part, _Kept(index, torch.arange(most) < counts[part, None])
