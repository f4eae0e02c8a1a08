"""Activation-weighted magnitude: |w| times the norm of the input it multiplies (Sun et al. 2023, Wanda, eq. 1).

The norm is the root of the Gram matrix's diagonal, one entry per input channel and kernel position.
"""

from torch import Tensor

from automc.criteria.criterion import Criterion, LayerView, fan_in_view


def _activation(view: LayerView) -> Tensor:
    assert view.gram is not None  # the caller checks needs_gram
    norms = view.gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()  # (groups, n)
    rows = fan_in_view(view.weight).abs().reshape(norms.shape[0], -1, norms.shape[1])  # (groups, out / groups, n)
    return (rows * norms[:, None]).reshape(view.weight.shape)


ACTIVATION = Criterion("activation", _activation, side="in", needs_gram=True)
