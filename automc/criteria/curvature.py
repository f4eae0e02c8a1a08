"""Optimal Brain Damage and Surgeon from a layer's Gram matrix.

The layer's output error is quadratic in its weights with Hessian G = X X^T, the same for every row (layer-wise:
Frantar and Alistarh 2022). Removing one weight costs w_j^2 G_jj (OBD, LeCun et al. 1990, eq. 5: the diagonal alone);
adjusting the others, w_j^2 / [G^-1]_jj (OBS, Hassibi and Stork 1993). Without the factor 1/2 of the papers, which
changes no ranking. Where OBS chooses, units leave one at a time and the rest is adjusted after each (`surgeon`).
SparseGPT (Frantar and Alistarh 2023, eq. 4) adjusts only columns still open: w_j^2 / U_jj^2 with U the upper root of
G^-1; where it chooses, that is done column by column (`automc.compression.sweep`).
"""

import torch
from torch import Tensor

from automc.criteria.criterion import Criterion, LayerView, fan_in_view
from automc.criteria.roots import damped, root

DAMPING = 1e-4


def damped_inverse(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """(G + damping * mean(diag G) I)^-1 in float64; inputs that are always zero get the others' mean diagonal."""
    return torch.cholesky_inverse(root(damped(gram, damping)))


def _obd(view: LayerView) -> Tensor:
    assert view.gram is not None  # the caller checks needs
    diagonal = view.gram.diagonal(dim1=1, dim2=2).clamp_min(0)  # (groups, n)
    rows = fan_in_view(view.weight).reshape(diagonal.shape[0], -1, diagonal.shape[1])
    return (rows.square() * diagonal[:, None]).reshape(view.weight.shape)


def _obs(view: LayerView) -> Tensor:
    assert view.gram is not None  # the caller checks needs
    diagonal = torch.stack([damped_inverse(g).diagonal() for g in view.gram]).to(view.weight.dtype)  # (groups, n)
    rows = fan_in_view(view.weight).reshape(diagonal.shape[0], -1, diagonal.shape[1])
    return (rows.square() / diagonal[:, None]).reshape(view.weight.shape)


OBD = Criterion("obd", _obd, side="in", needs=frozenset({"inputs"}))


def _sparsegpt(view: LayerView) -> Tensor:
    assert view.gram is not None  # the caller checks needs
    roots = torch.stack([torch.linalg.cholesky(damped_inverse(g), upper=True).diagonal() for g in view.gram])
    rows = fan_in_view(view.weight).reshape(len(roots), -1, roots.shape[1])
    return (rows / roots[:, None].to(rows.dtype)).square().reshape(view.weight.shape)


OBS = Criterion("obs", _obs, side="in", needs=frozenset({"inputs"}), second_order=True)
SPARSEGPT = Criterion("sparsegpt", _sparsegpt, side="in", needs=frozenset({"inputs"}), sweeps=True)
