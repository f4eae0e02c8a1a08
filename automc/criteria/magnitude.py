"""Criteria that look at weights alone.

* l1: |w| (Han et al. 2015); summed over a filter it is Li et al. 2016, "Pruning Filters for Efficient ConvNets".
* l2: w^2.
* lamp: w^2 over the sum of all squares of the layer that are at least as large (Lee et al. 2021, eq. 1): the share of
  what is left once the smaller weights are gone, which makes scores of different layers comparable.
* probabilistic: |w| over a draw from Exp(1); keeping the largest then draws weights without replacement with chances
  in proportion to |w| (Efraimidis and Spirakis 2006).
* bn_scale: |gamma| of the batch norm behind the layer (Liu et al. 2017, Network Slimming), the same for each
  weight of a filter.
* random: uniform noise, the control every comparison needs.
"""

import torch
from torch import Tensor

from automc.criteria.criterion import Criterion, LayerView


def _l1(view: LayerView) -> Tensor:
    return view.weight.abs()


def _l2(view: LayerView) -> Tensor:
    return view.weight.square()


def _lamp(view: LayerView) -> Tensor:
    squares, order = view.weight.square().flatten().sort()
    at_least = squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(squares.dtype).tiny)
    return torch.empty_like(squares).scatter_(0, order, squares / at_least).reshape(view.weight.shape)


def _probabilistic(view: LayerView) -> Tensor:
    draw = torch.empty(view.weight.shape).exponential_(generator=view.generator)
    return view.weight.abs() / draw.clamp_min(torch.finfo(draw.dtype).tiny)


def _random(view: LayerView) -> Tensor:
    return torch.rand(view.weight.shape, generator=view.generator)


def _bn_scale(view: LayerView) -> Tensor:
    assert view.norm_scale is not None  # the caller checks needs
    scale = view.norm_scale.abs().reshape(-1, *[1] * (view.weight.dim() - 1))
    return scale.expand_as(view.weight) / view.weight[0].numel()


L1 = Criterion("l1", _l1)
L2 = Criterion("l2", _l2)
LAMP = Criterion("lamp", _lamp)
PROBABILISTIC = Criterion("probabilistic", _probabilistic)
RANDOM = Criterion("random", _random, side="out")
BN_SCALE = Criterion("bn_scale", _bn_scale, side="out", needs=frozenset({"norm"}), tells_weights_apart=False)
