"""Criteria that look at the inputs a layer reads, on calibration data.

* activation: |w| times the norm of the input it multiplies (Sun et al. 2023, Wanda, eq. 1), the root of the Gram
  matrix's diagonal. Wanda compares the weights of one output with each other; here, as by every criterion, it is all
  weights of a layer that are ranked, or what a pattern puts together.
* mean_activation: the mean of the input, in absolute value (Molchanov et al. 2017, section 2.2, "activation").
* apoz: how often the input is not zero, one minus the average percentage of zeros (Hu et al. 2016, eq. 1).

The last two say nothing about single weights: every weight of an input shares its score, so that a channel's sum over
a layer is the channel's own. Statistics are those of what the readers see, after activation functions and pooling and
with the zeros of padding; the papers take them at the activation's output.
"""

from torch import Tensor

from automc.criteria.criterion import Criterion, LayerView, fan_in_view


def _activation(view: LayerView) -> Tensor:
    assert view.gram is not None  # the caller checks needs
    norms = view.gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()  # (groups, n)
    return _by_group(view.weight, norms) * view.weight.abs()


def _mean_activation(view: LayerView) -> Tensor:
    assert view.mean is not None
    return _by_group(view.weight, view.mean.abs()) / _sharing(view.weight)


def _apoz(view: LayerView) -> Tensor:
    assert view.active is not None
    return _by_group(view.weight, view.active) / _sharing(view.weight)


def _by_group(weight: Tensor, of_input: Tensor) -> Tensor:
    """A figure per conv-group and input (groups, n), at every weight that reads the input."""
    rows = fan_in_view(weight).reshape(of_input.shape[0], -1, of_input.shape[1])  # (groups, out / groups, n)
    return of_input[:, None].expand_as(rows).reshape(weight.shape)


def _sharing(weight: Tensor) -> int:
    """Weights of one output position that read one input channel's positions: all rows, every kernel entry."""
    return weight.shape[0] * weight[0, 0].numel()


ACTIVATION = Criterion("activation", _activation, side="in", needs=frozenset({"inputs"}))
MEAN_ACTIVATION = Criterion(
    "mean_activation", _mean_activation, side="in", needs=frozenset({"inputs"}), tells_weights_apart=False
)
APOZ = Criterion("apoz", _apoz, side="in", needs=frozenset({"inputs"}), tells_weights_apart=False)
