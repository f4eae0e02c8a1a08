"""Which single weights of a layer stay: from a decision to a mask.

A criterion chooses in one of three ways: by its scores and the pattern (magnitude, Wanda, OBD and the rest), by
eliminating weights one at a time with compensation (obs: OBC), or column by column (sparsegpt).
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from automc.compression.patterns import Layout, layout, mask_by_score, mask_by_trace
from automc.compression.place import Place
from automc.compression.sweep import mask_by_sweep
from automc.criteria.criterion import Criterion, LayerView
from automc.criteria.curvature import damped_inverse
from automc.criteria.surgeon import Traces, trace
from automc.errors import PolicyError
from automc.graph.facts import LayerFacts
from automc.pattern import Pattern, parse
from automc.registry import CRITERIA


def weight_mask(
    place: Place,
    view: LayerView,
    gram: Tensor | None = None,
    traces: Callable[[], Traces] | None = None,
) -> Tensor:
    """True for the weights that stay, of the weight's shape; PolicyError where pattern or criterion do not fit.

    gram: the Hessian that elimination and sweep use (groups, n, n), centred where an intercept takes up the mean;
    `traces` gives the eliminations of this layer where somebody keeps them.
    """
    decision, name = place.decision, place.facts.name
    criterion: Criterion = CRITERIA.load(decision.criterion)
    pattern = parse(decision.pattern)
    shape = tuple(view.weight.shape)
    check_fits(place.facts, criterion, pattern)
    missing = [need for need in criterion.needs if getattr(view, "gram" if need == "inputs" else need, None) is None]
    if missing:
        raise PolicyError(
            f"Criterion {criterion.name!r} must have the statistics {', '.join(missing)}; layer {name!r} has none: "
            "choose l1."
        )
    where = layout(shape, place.conv_groups, pattern)
    if gram is not None and criterion.second_order:
        found = traces() if traces is not None else eliminations(view.weight, gram, pattern, where)
        return mask_by_trace(found, decision.sparsity, pattern, where)
    if gram is not None and criterion.sweeps:
        return _swept(view.weight, gram, decision.sparsity, pattern, where)
    score = criterion.score(view)
    return mask_by_score(score.abs() if criterion.sign == "absolute" else score, decision.sparsity, pattern, where)


def check_fits(layer: LayerFacts, criterion: Criterion, pattern: Pattern) -> None:
    """Raises PolicyError unless this criterion can choose single weights of the dense layer in this pattern.

    A layer that channel pruning has made narrower than a block keeps the pattern, with smaller blocks.
    """
    if not criterion.tells_weights_apart:
        raise PolicyError(
            f"A criterion for sparsity must tell weights apart; {criterion.name!r} ranks channels: choose l1."
        )
    if criterion.sweeps and pattern.rows * pattern.columns > 1:
        raise PolicyError(
            f"Criterion {criterion.name!r} must have pattern element or N:M; layer {layer.name!r} has {pattern.name}: "
            "choose obs."
        )
    outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    if not pattern.fits(outputs, inputs):
        raise PolicyError(
            f"Pattern {pattern.name} must find {pattern.rows} outputs and {pattern.span} inputs; layer {layer.name!r} "
            f"has {outputs} and {inputs}: choose element."
        )


def eliminations(weight: Tensor, gram: Tensor, pattern: Pattern, where: Layout) -> Traces:
    """Every row set's order of elimination, for all levels at once (OBC); gram (groups, n, n)."""
    inverse = torch.stack([damped_inverse(g) for g in where.lay_square(gram.to(torch.float64))])
    laid = where.lay(weight.detach().to(torch.float64))
    if len(inverse) > 1:
        inverse = inverse.repeat_interleave(len(laid) // len(inverse), dim=0)
    return trace(laid, inverse, pattern.columns, where.quota(pattern))


def _swept(weight: Tensor, gram: Tensor, sparsity: float, pattern: Pattern, where: Layout) -> Tensor:
    """Group by group; the columns in the pattern's layout."""
    if sparsity <= 0:
        return torch.ones_like(weight, dtype=torch.bool)
    groups = len(gram)
    laid = where.lay(weight.detach()).reshape(groups, -1, len(where.columns))
    grams = where.lay_square(gram.to(torch.float64))
    stays = torch.stack([mask_by_sweep(w, g, sparsity, pattern) for w, g in zip(laid, grams, strict=True)])
    mask = where.restore(stays.reshape(where.index.shape))
    short = int(prod(weight.shape) * sparsity) - int((~mask).sum())
    if short > 0:  # whole weights a block rounded down
        alive = weight.abs().masked_fill(~mask, torch.inf).flatten()
        mask.view(-1)[alive.topk(short, largest=False).indices] = False
    return mask
