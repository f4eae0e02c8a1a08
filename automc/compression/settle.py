"""What happens to one layer's weights, in this order: refit, prune, refit within the mask, round with zeros kept.

The order is that of OBC (Frantar and Alistarh 2022, section 5, "joint"): rounding last, on the weights pruning left.
A layer that is factored into two goes through it twice: its first factor keeps to what it gave before, its second to
what the whole layer should give, from what is left of the first.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from automc.compression.chains import FactoredLayer
from automc.compression.lowrank import fit_
from automc.compression.place import Place
from automc.compression.prune import weight_mask
from automc.compression.quantize import QuantizedLayer, weight_scale
from automc.compression.regression import Regression
from automc.compression.sweep import round_rows
from automc.compression.tensor_train import TensorTrain
from automc.criteria.criterion import LayerView, Need, fan_in_view
from automc.criteria.surgeon import Traces
from automc.policy import FULL_BITS, Recipe
from automc.registry import CRITERIA


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the dense layer, made when asked for."""

    statistics: Callable[[Collection[Need]], Mapping[str, Tensor]]
    """What gradients say of the weights that are left, by the need of a criterion."""
    traces: Callable[[], Traces] | None = None
    """Its eliminations, where it still has all of its channels."""


@torch.no_grad()
def settle(
    place: Place,
    recipe: Recipe,
    fit: Regression | None = None,
    rows: Tensor | None = None,
    known: Known | None = None,
) -> None:
    """Sets the weights of one layer.

    fit: what the layer reads and should give, where that is known; rows (out, n): the weights refitted to it, or None
    to leave weights as they are, save for what is decided; a factored layer has none of its own and must get some.
    """
    if isinstance(place.holder, (FactoredLayer, TensorTrain)):
        assert rows is not None  # there is no weight to start from
        needs_loss = place.holder.method == "eigendamage" and known is not None
        moment = known.statistics(["output_gram"])["output_gram"][0] if needs_loss else None  # type: ignore[union-attr]
        fit_(place.holder, rows, torch.eye(rows.shape[1]) if fit is None else fit.gram[0], moment)
        if place.decision.sparsity > 0 or place.decision.weight_bits < FULL_BITS:
            _settle_factors(place, recipe, fit)
        return
    weight, decision = place.weight, place.decision
    if rows is not None:
        weight.copy_(rows.reshape(weight.shape))
    mask = None
    if decision.sparsity > 0:
        mask = _mask(place, recipe, fit, known)
        if fit is not None and rows is not None:
            weight.copy_(fit.solve(recipe.ridge, fan_in_view(mask)).reshape(weight.shape))
        else:
            weight *= mask
    if isinstance(place.holder, QuantizedLayer) and decision.weight_bits < FULL_BITS:
        if decision.codebook == "kmeans":
            place.holder.share_(None if fit is None else _importance(fit, weight))
        else:
            _round(place.holder, weight, recipe, fit, mask)


def _settle_factors(place: Place, recipe: Recipe, fit: Regression | None) -> None:
    """Prunes and rounds the two factors of a layer that is fitted."""
    factored = place.holder
    assert isinstance(factored, FactoredLayer)
    first, second = (replace(place, decision=replace(place.decision, rank=1.0), holder=x) for x in factored.parts)
    refits = fit is not None and recipe.reconstruct != "none"
    rows = fan_in_view(first.weight).to(torch.float64)
    before = None if fit is None else fit.towards(rows)
    settle(first, recipe, before, rows if refits else None)
    behind = None if fit is None else fit.behind(factored.product().basis(factored.tensors()))
    settle(second, recipe, behind, behind.solve(recipe.ridge) if refits and behind is not None else None)


def _mask(place: Place, recipe: Recipe, fit: Regression | None, known: Known | None) -> Tensor:
    generator = torch.Generator().manual_seed(recipe.seed)
    gram = None if fit is None else fit.second_moment.to(place.weight.dtype)
    statistics = {} if known is None else known.statistics(CRITERIA.load(place.decision.criterion).needs)
    view = LayerView(place.weight, gram, generator=generator, **statistics)
    return weight_mask(place, view, None if fit is None else fit.gram, None if known is None else known.traces)


def _importance(fit: Regression, weight: Tensor) -> Tensor:
    """The Hessian's diagonal at every weight, by which k-means weighs errors (Choi et al. 2017, eq. 8)."""
    each = fit.gram.diagonal(dim1=1, dim2=2).repeat_interleave(len(weight) // len(fit.gram), dim=0)  # (out, n)
    return each.reshape(weight.shape)


def _round(holder: QuantizedLayer, weight: Tensor, recipe: Recipe, fit: Regression | None, mask: Tensor | None) -> None:
    scale = weight_scale(weight, holder.weight_bits)
    top = 2 ** (holder.weight_bits - 1) - 1
    if fit is None or recipe.rounding == "nearest":
        holder.round_(scale)
        return
    groups, n = fit.gram.shape[:2]
    parts = [x.reshape(groups, -1, *x.shape[1:]) for x in (fan_in_view(weight), scale)]
    masks = [None] * groups if mask is None else list(fan_in_view(mask).reshape(groups, -1, n))
    codes = [round_rows(w, g, s, top, m) for w, g, s, m in zip(parts[0], fit.gram, parts[1], masks, strict=True)]
    holder.round_(scale, torch.cat(codes).to(weight.dtype).reshape(weight.shape))
