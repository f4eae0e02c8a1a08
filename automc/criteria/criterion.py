"""What a criterion is given and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class LayerView:
    """One layer as a criterion sees it."""

    weight: Tensor
    """(out, in / groups, *kernel)"""
    gram: Tensor | None = None
    """Second moment of the layer's inputs per conv-group (groups, n, n), n = in / groups * kernel area."""
    mean: Tensor | None = None
    """Mean of the layer's inputs per conv-group (groups, n)."""
    active: Tensor | None = None
    """Share of the layer's inputs that are not zero, per conv-group (groups, n)."""
    norm_scale: Tensor | None = None
    """Scale of the batch norm behind the layer (out,)."""
    gradient: Tensor | None = None
    """Mean gradient of the loss, of the weight's shape."""
    hessian_gradient: Tensor | None = None
    """The loss's Hessian over all layers times its gradient, of the weight's shape."""
    output_gram: Tensor | None = None
    """Second moment of the loss's gradient at the outputs, per conv-group (groups, out / groups, out / groups)."""
    flow: Tensor | None = None
    """Synaptic flow |w dR/dw|, of the weight's shape."""
    sensitivity: Tensor | None = None
    """Mean magnitude of the outputs' derivatives, of the weight's shape."""
    generator: torch.Generator | None = None
    """Source of the random criterion."""


Side = Literal["out", "in", "both"]
Need = Literal["inputs", "norm", "gradient", "hessian_gradient", "output_gram", "flow", "sensitivity"]
Sign = Literal["positive", "absolute", "ordered"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A registered way to rank weights; larger scores stay."""

    name: str
    score: Callable[[LayerView], Tensor]
    """From a layer to one score per weight, of the weight's shape."""
    side: Side = "both"
    """Which layers of a group count for a channel: those that make it (out), those that read it (in), or both."""
    needs: frozenset[Need] = frozenset()
    """What of a `LayerView` must be there; "inputs" stands for gram, mean and active, "norm" for norm_scale."""
    sign: Sign = "positive"
    """Scores are never negative; or count by the magnitude of their sum; or by their order, signs and all."""
    tells_weights_apart: bool = True
    """Whether weights of one channel get scores of their own; if not, it ranks channels and no single weights."""
    second_order: bool = False
    """Whether units are ranked by eliminating them one by one with compensation, not by summed scores."""
    sweeps: bool = False
    """Whether single weights are chosen column by column with compensation; no channels and no blocks."""


def fan_in_view(weight: Tensor) -> Tensor:
    """A weight as rows of its inputs (out, n), n = in / groups * kernel area, in the Gram matrix's order."""
    return weight.reshape(weight.shape[0], -1)
