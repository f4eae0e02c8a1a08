"""FPGM: filters close to the geometric median of their layer are replaceable (He et al. 2019, section 3.3).

A filter's score is the sum of its Euclidean distances to all filters of the layer, shared evenly by its weights.
"""

import torch
from torch import Tensor

from automc.criteria.criterion import Criterion, LayerView, fan_in_view


def _fpgm(view: LayerView) -> Tensor:
    filters = fan_in_view(view.weight)
    distance = torch.cdist(filters, filters).sum(dim=1)  # (out,)
    share = distance / filters.shape[1]
    return share.reshape(-1, *[1] * (view.weight.dim() - 1)).expand_as(view.weight)


FPGM = Criterion("fpgm", _fpgm, side="out", tells_weights_apart=False)
