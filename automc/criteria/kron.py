"""Structured second-order criteria from Kronecker factors of the Fisher information.

K-FAC (Martens and Grosse 2015; Grosse and Martens 2016 for convolutions) has F = S (x) A for one layer: A the second
moment of its inputs, S that of the loss's gradient at its outputs, with labels drawn from the model itself, so that no
labels are needed. For output channel i with weights w_i (Wang et al. 2019, EigenDamage, eqs. 8 and 10):

* kron_obd: S_ii w_i^T A w_i / 2, the loss of removing it.
* kron_obs: w_i^T A w_i / (2 [S^-1]_ii), the loss when the other channels are adjusted by `kron_obs_update`.

`eigendamage` prunes in the eigenbasis instead: W = U_S C U_A^T, where the Fisher is diagonal, rows and columns of C
with the least loss leave, and the layer becomes three (section 4.2). It factors a layer and ranks no channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from automc.criteria.criterion import Criterion, LayerView, Need, fan_in_view
from automc.criteria.curvature import damped_inverse


def input_energy(weight: Tensor, gram: Tensor) -> Tensor:
    """w_i^T A w_i of every output channel (out,); weight (out, in / groups, ...), gram (groups, n, n)."""
    rows = fan_in_view(weight).reshape(len(gram), -1, gram.shape[1])
    return ((rows @ gram) * rows).sum(dim=2).flatten().clamp_min(0)


def kron_obs_update(weight: Tensor, output_gram: Tensor, channel: int) -> Tensor:
    """Rows (out, n) after removing one and adjusting the others: W - S^-1[:, i] w_i / [S^-1]_ii; one conv-group."""
    inverse = damped_inverse(output_gram, 1e-8).to(weight.dtype)
    return weight - inverse[:, channel, None] * weight[channel] / inverse[channel, channel]


@dataclass(frozen=True, eq=False, slots=True)
class Bottleneck:
    """A layer in its Kronecker-factored eigenbasis: W is close to left @ core @ right."""

    left: Tensor
    """Kept eigenvectors of S (out, kept rows)."""
    core: Tensor
    """(kept rows, kept columns)"""
    right: Tensor
    """Kept eigenvectors of A, transposed (kept columns, n)."""
    loss: float
    """Predicted increase of the loss."""


def eigendamage(weight: Tensor, gram: Tensor, output_gram: Tensor, rows: int, columns: int) -> Bottleneck:
    """Keeps the rows and columns of the rotated weight whose absence would cost most; weight (out, n), float64.

    In the eigenbasis the Fisher is the outer product of eigenvalues, so a row costs sum_j C_ij^2 s_i a_j / 2 and a
    column sum_i C_ij^2 s_i a_j / 2 (eq. 13). Rows leave first, columns by what is left.
    """
    s, left = torch.linalg.eigh(output_gram.to(torch.float64))
    a, right = torch.linalg.eigh(gram.to(torch.float64))
    core = left.T @ weight.to(torch.float64) @ right
    cost = core.square() * s.clamp_min(0)[:, None] * a.clamp_min(0) / 2
    kept_rows = cost.sum(dim=1).topk(rows).indices.sort().values
    kept_columns = cost[kept_rows].sum(dim=0).topk(columns).indices.sort().values
    loss = float(cost.sum() - cost[kept_rows][:, kept_columns].sum())
    return Bottleneck(left[:, kept_rows], core[kept_rows][:, kept_columns], right[:, kept_columns].T, loss)


def _kron_obd(view: LayerView) -> Tensor:
    assert view.gram is not None and view.output_gram is not None  # the caller checks needs
    return _shared(view.weight, _diagonal(view.output_gram) * input_energy(view.weight, view.gram) / 2)


def _kron_obs(view: LayerView) -> Tensor:
    assert view.gram is not None and view.output_gram is not None
    inverse = torch.cat([damped_inverse(s).diagonal() for s in view.output_gram]).to(view.weight.dtype)
    return _shared(view.weight, input_energy(view.weight, view.gram) / (2 * inverse))


def _diagonal(output_gram: Tensor) -> Tensor:
    return output_gram.diagonal(dim1=1, dim2=2).flatten().clamp_min(0)


def _shared(weight: Tensor, of_channel: Tensor) -> Tensor:
    """A figure of each output channel, spread evenly over its weights."""
    share = of_channel.to(weight.dtype) / weight[0].numel()
    return share.reshape(-1, *[1] * (weight.dim() - 1)).expand_as(weight)


_NEEDS: frozenset[Need] = frozenset({"inputs", "output_gram"})
KRON_OBD = Criterion("kron_obd", _kron_obd, side="out", needs=_NEEDS, tells_weights_apart=False)
KRON_OBS = Criterion("kron_obs", _kron_obs, side="out", needs=_NEEDS, tells_weights_apart=False)
