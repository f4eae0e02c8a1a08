"""Optimal Brain Surgeon on a layer's Gram matrix: units leave one by one, the rest is adjusted after each.

Removing the columns p of weight rows W costs tr(W_p ([G^-1]_pp)^-1 W_p^T), half of it in Hassibi and Stork 1993; the
best adjustment of the others is -W_p ([G^-1]_pp)^-1 [G^-1]_p, and G^-1 loses a rank of |p| (Frantar and Alistarh 2022,
OBC, eqs. 3-5). One machine serves every pattern, since only what leaves together differs:

    channels of a group   all rows together, the columns of one input channel
    single weights        each row by itself, one column
    1 x k blocks          each row by itself, k columns
    k x 1 blocks          k rows together, one column

Deviation from OBC's implementation: the rank-one updates of G^-1 wait until `PENDING` of them make one matrix product,
which is bound by arithmetic instead of memory. Rows are independent and processed in chunks of bounded memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automc.criteria.curvature import damped_inverse

PENDING = 32
CHUNK_BYTES = 2**25


@dataclass(frozen=True, eq=False, slots=True)
class Reader:
    """A layer that reads a group's units."""

    weight: Tensor
    """(out, n)"""
    gram: Tensor
    """Second moment of its inputs (n, n)."""
    columns: Tensor
    """Columns of each unit (U, k)."""


@dataclass(frozen=True, eq=False, slots=True)
class Elimination:
    """The order in which units leave a layer, and what their absence costs."""

    order: Tensor
    """Units in the order removed (U,)."""
    error: Tensor
    """Output error, relative to the output's energy, after 0, 1, ..., U removals (U + 1,)."""


@dataclass(frozen=True, eq=False, slots=True)
class Traces:
    """The order in which column blocks leave each set of rows, and the loss each removal adds."""

    order: Tensor
    """(R, steps) block numbers."""
    loss: Tensor
    """(R, steps), absolute."""


def eliminate(readers: Sequence[Reader], order: Sequence[int] | None = None) -> Elimination:
    """Removes units from the layers that read them, cheapest first or in a given `order`, compensating after each.

    With several readers a unit's cost is the sum of its relative errors. O(U n^2 k) for each reader.
    """
    surgeons, energies = [], []
    for reader in readers:
        columns = reader.columns.flatten()
        weight, gram = reader.weight.to(torch.float64), reader.gram.to(torch.float64)
        energies.append(((weight @ gram) * weight).sum().clamp_min(1e-30))
        inverse = damped_inverse(gram)[columns][:, columns]
        surgeons.append(Surgeon(weight[None][:, :, columns], inverse[None], reader.columns.shape[1]))
    units = len(readers[0].columns)
    alive = torch.ones(units, dtype=torch.bool)
    removed: list[int] = []
    errors = [0.0]
    while len(removed) < units:
        if order is not None:
            unit = int(order[len(removed)])
        else:
            losses = torch.stack([s.losses()[0] / e for s, e in zip(surgeons, energies, strict=True)]).sum(dim=0)
            unit = int(losses.masked_fill(~alive, torch.inf).argmin())
        at = torch.tensor([unit])
        errors.append(errors[-1] + sum(float(s.remove(at)[0] / e) for s, e in zip(surgeons, energies, strict=True)))
        alive[unit] = False
        removed.append(unit)
    return Elimination(torch.tensor(removed), torch.tensor(errors, dtype=torch.float64))


def trace(weight: Tensor, inverse: Tensor, width: int = 1, quota: Tensor | None = None) -> Traces:
    """Removes blocks of `width` columns from row sets (R, r, n) until nothing is left, cheapest first.

    inverse: damped inverse Gram matrices (R, n, n) or one for all (1, n, n), float64. With a quota (n / M,) single
    columns leave, that many of each M consecutive ones. O(n^3) for each row set.
    """
    rows = max(1, CHUNK_BYTES // (8 * weight.shape[2] ** 2))
    parts = []
    for start in range(0, len(weight), rows):
        own = inverse if len(inverse) == 1 else inverse[start : start + rows]
        parts.append(_trace(Surgeon(weight[start : start + rows].to(torch.float64), own, width), quota))
    return Traces(torch.cat([p.order for p in parts]), torch.cat([p.loss for p in parts]))


class Surgeon:
    """Row sets (R, r, n) and their inverse Gram matrices while blocks of columns leave, one a row set at a time."""

    def __init__(self, weight: Tensor, inverse: Tensor, width: int) -> None:
        self.weight = weight.to(torch.float64).clone()
        sets, _, n = weight.shape
        self._width, self._units = width, n // width
        self._sets = torch.arange(sets)
        self._inverse = inverse if len(inverse) == sets else inverse.expand(sets, n, n)
        """As of the last flush."""
        self._own = False
        """Whether the inverse may be changed; until the first flush it is the caller's, maybe one for all row sets."""
        self._pending = torch.zeros(sets, 0, n, dtype=torch.float64)
        """Factors V (R, waiting, n): the current inverse is the flushed one minus V^T V."""
        blocks = torch.arange(n).reshape(self._units, width)
        self._diagonal = self._inverse[:, blocks[:, :, None], blocks[:, None, :]].clone()
        """The current inverse's diagonal blocks (R, U, width, width)."""

    def losses(self) -> Tensor:
        """What removing each block would cost each row set (R, U); meaningless for blocks already gone."""
        sets, rows, _ = self.weight.shape
        blocks = self.weight.reshape(sets, rows, self._units, self._width)
        if self._width == 1:
            return blocks.square().sum(dim=(1, 3)) / self._diagonal[:, :, 0, 0].clamp_min(1e-300)
        eye = 1e-12 * torch.eye(self._width, dtype=torch.float64)
        core = torch.linalg.inv(self._diagonal + eye * self._diagonal.diagonal(dim1=2, dim2=3).amax().clamp_min(1e-300))
        columns = blocks.transpose(1, 2)  # (R, U, r, width)
        losses: Tensor = ((columns @ core) * columns).sum(dim=(2, 3))
        return losses

    def remove(self, units: Tensor) -> Tensor:
        """Removes one block from each row set (R,) with compensation; returns the losses (R,)."""
        columns = units[:, None] * self._width + torch.arange(self._width)  # (R, width)
        factor, root = self._factor(columns)
        gone = self.weight.gather(2, columns[:, None].expand(-1, self.weight.shape[1], -1))  # (R, r, width)
        scaled = torch.linalg.solve_triangular(root.mT, gone, upper=True, left=False)
        self.weight.baddbmm_(scaled, factor, alpha=-1)
        self.weight.scatter_(2, columns[:, None].expand_as(gone), 0.0)
        self._downdate(factor)
        losses: Tensor = scaled.square().sum(dim=(1, 2))
        return losses

    def _factor(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """V (R, width, n), V^T V being what the inverse loses, and the removed block's lower root L: V = L^-1 H_p."""
        rows = self._inverse[self._sets[:, None], columns]  # (R, width, n)
        index = columns[:, None].expand(-1, self._pending.shape[1], -1)
        rows = rows - self._pending.gather(2, index).mT @ self._pending
        core = rows.gather(2, columns[:, None].expand(-1, self._width, -1))
        root = torch.linalg.cholesky_ex(core)[0] if self._width > 1 else core.clamp_min(1e-300).sqrt()
        return torch.linalg.solve_triangular(root, rows, upper=False), root

    def _downdate(self, factor: Tensor) -> None:
        sets, width, n = factor.shape
        blocks = factor.reshape(sets, width, self._units, self._width)
        self._diagonal -= torch.einsum("swui,swuj->suij", blocks, blocks)
        self._pending = torch.cat((self._pending, factor), dim=1)
        if self._pending.shape[1] >= max(PENDING, width):
            if not self._own:
                self._inverse, self._own = self._inverse.clone(), True
            self._inverse.baddbmm_(self._pending.mT, self._pending, alpha=-1)
            self._pending = torch.zeros(sets, 0, n, dtype=torch.float64)


def _trace(surgeon: Surgeon, quota: Tensor | None) -> Traces:
    sets, units = surgeon.losses().shape
    left = torch.full((1,), units) if quota is None else quota.clone()  # removals each run of neighbours still allows
    left = left.expand(sets, -1).clone()
    run = units // left.shape[1]
    gone = torch.zeros(sets, units, dtype=torch.bool)
    every, steps = torch.arange(sets), int(left[0].sum())
    order = torch.zeros(sets, steps, dtype=torch.int64)
    loss = torch.zeros(sets, steps, dtype=torch.float64)
    for step in range(steps):
        closed = gone | (left <= 0).repeat_interleave(run, dim=1)
        chosen = surgeon.losses().masked_fill(closed, torch.inf).argmin(dim=1)
        order[:, step], loss[:, step] = chosen, surgeon.remove(chosen)
        gone[every, chosen] = True
        left[every, chosen // run] -= 1
    return Traces(order, loss)
