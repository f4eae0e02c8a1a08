"""Optimal Brain Damage and Surgeon from a layer's Gram matrix.

The layer's output error is quadratic in its weights with Hessian G = X X^T, the same for every row (layer-wise:
Frantar and Alistarh 2022). Removing one weight costs w_j^2 G_jj (OBD, LeCun et al. 1990, eq. 5: the diagonal alone);
adjusting the others, w_j^2 / [G^-1]_jj (OBS, Hassibi and Stork 1993). Removing a whole input channel (a block p of
columns) costs tr(W_p ([G^-1]_pp)^-1 W_p^T); the block form is used for channels, one at a time, W and G^-1 downdated
after each. Without the factor 1/2 of the papers, which changes no ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automc.criteria.criterion import Criterion, LayerView, fan_in_view

DAMPING = 1e-4


@dataclass(frozen=True, eq=False, slots=True)
class Elimination:
    """The order in which units leave a layer, and what their absence costs."""

    order: Tensor
    """Units in the order removed (U,)."""
    error: Tensor
    """Output error, relative to the output's energy, after 0, 1, ..., U removals (U + 1,)."""


@dataclass(frozen=True, eq=False, slots=True)
class Reader:
    """A layer that reads a group's units."""

    weight: Tensor
    """(out, n)"""
    gram: Tensor
    """Second moment of its inputs (n, n)."""
    columns: Tensor
    """Columns of each unit (U, k)."""


def damped_inverse(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """(G + damping * mean(diag G) I)^-1 in float64; inputs that are always zero get a unit diagonal."""
    matrix = gram.to(torch.float64).clone()
    diagonal = matrix.diagonal()
    dead = diagonal <= 0
    diagonal += damping * diagonal.mean()
    diagonal[dead] = diagonal[~dead].mean() if bool((~dead).any()) else 1.0
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def eliminate(readers: Sequence[Reader], order: Sequence[int] | None = None) -> Elimination:
    """Removes units from the layers that read them, cheapest first or in a given `order`, compensating after each.

    With several readers a unit's cost is the sum of its relative errors. O(U n^2 (k + out / n)) for each reader.
    """
    states = [_State(reader) for reader in readers]
    alive = list(range(len(readers[0].columns)))
    removed: list[int] = []
    errors = [0.0]
    while alive:
        if order is not None:
            unit = order[len(removed)]
        else:
            losses = torch.stack([s.losses(alive) for s in states]).sum(dim=0)
            unit = alive[int(losses.argmin())]
        errors.append(errors[-1] + sum(s.remove(unit) for s in states))
        alive.remove(unit)
        removed.append(unit)
    return Elimination(torch.tensor(removed), torch.tensor(errors, dtype=torch.float64))


class _State:
    """Weights and inverse Gram matrix of one reader while units leave."""

    def __init__(self, reader: Reader) -> None:
        self.weight = reader.weight.to(torch.float64).clone()
        self.inverse = damped_inverse(reader.gram)
        self.columns = reader.columns
        self.energy = float(((self.weight @ reader.gram.to(torch.float64)) * self.weight).sum().clamp_min(1e-30))

    def losses(self, units: list[int]) -> Tensor:
        """tr(W_p ([G^-1]_pp)^-1 W_p^T) of every unit's block p, relative to the output's energy (U,)."""
        blocks = self.columns[units]
        core = torch.linalg.inv(self.inverse[blocks[:, :, None], blocks[:, None, :]])  # (U, k, k)
        columns = self.weight[:, blocks].transpose(0, 1)  # (U, out, k)
        losses: Tensor = ((columns @ core) * columns).sum(dim=(1, 2)) / self.energy
        return losses

    def remove(self, unit: int) -> float:
        """Removes one unit with compensation; returns its relative loss."""
        p = self.columns[unit]
        core = torch.linalg.inv(self.inverse[p][:, p])
        block = self.weight[:, p]
        loss = float(((block @ core) * block).sum()) / self.energy
        rows = core @ self.inverse[p]
        self.weight -= block @ rows
        self.inverse -= self.inverse[:, p] @ rows
        self.weight[:, p] = 0
        return loss


def _obd(view: LayerView) -> Tensor:
    assert view.gram is not None  # the caller checks needs_inputs
    diagonal = view.gram.diagonal(dim1=1, dim2=2).clamp_min(0)  # (groups, n)
    rows = fan_in_view(view.weight).reshape(diagonal.shape[0], -1, diagonal.shape[1])
    return (rows.square() * diagonal[:, None]).reshape(view.weight.shape)


def _obs(view: LayerView) -> Tensor:
    assert view.gram is not None  # the caller checks needs_inputs
    diagonal = torch.stack([damped_inverse(g).diagonal() for g in view.gram]).to(view.weight.dtype)  # (groups, n)
    rows = fan_in_view(view.weight).reshape(diagonal.shape[0], -1, diagonal.shape[1])
    return (rows.square() / diagonal[:, None]).reshape(view.weight.shape)


OBD = Criterion("obd", _obd, side="in", needs_inputs=True)
OBS = Criterion("obs", _obs, side="in", needs_inputs=True, second_order=True)
