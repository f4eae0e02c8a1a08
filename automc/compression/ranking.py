"""Ranking across layers: what each level of a decision removes, measured by a criterion's own scores.

A criterion that ranks within a layer says which units leave; taken as they are, its scores also say from which layers
(Han et al. 2015 with one threshold for a network, LAMP, SNIP, GraSP, SynFlow, Taylor). A level's threshold is the
largest score among what it removes, so one number orders the levels of all layers. Curvature has no scores: there what
counts is the loss each removal adds, relative to the layer's output, never falling along the order.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.compression.patterns import Layout, block_means
from automc.criteria.criterion import Criterion, LayerView
from automc.criteria.surgeon import Traces
from automc.errors import PolicyError
from automc.graph.facts import Group, LayerFacts, Member, ModelFacts
from automc.pattern import Pattern
from automc.space import Axis

FloatArray = NDArray[np.float64]
View = Callable[[str], LayerView | None]
"""From a layer's name to what the criterion sees of it; None where it cannot."""


def unit_scores(facts: ModelFacts, group: Group, criterion: Criterion, view: View, *, scaled: bool) -> FloatArray:
    """Scores summed over each unit's weights in every layer that counts (U,); `scaled`, each layer to a mean of one."""
    total = np.zeros(group.units)
    counted = 0
    for member in group.members:
        if member.kind != "layer" or criterion.side not in ("both", member.axis):
            continue
        seen = view(member.target)
        if seen is None:
            continue
        unit = _sum_by_unit(_scores(criterion, seen, member.target), member, facts.layer(member.target))
        unit = np.abs(unit) if criterion.sign == "absolute" else unit
        total += unit / max(float(np.abs(unit).mean()), 1e-30) if scaled else unit
        counted += 1
    if not counted:
        raise PolicyError(
            f"Criterion {criterion.name!r} must fit a layer of each group; {group.name!r} has none: choose l1."
        )
    return total


def weight_scores(criterion: Criterion, view: LayerView, pattern: Pattern, where: Layout, name: str) -> FloatArray:
    """Mean scores of a layer's blocks, single weights included, in ascending order."""
    score = _scores(criterion, view, name)
    score = score.abs() if criterion.sign == "absolute" else score
    mean, entries = block_means(score, pattern, where)
    return np.sort(mean[entries > 0].numpy())


def trace_scores(traces: Traces, energy: float) -> FloatArray:
    """Losses relative to the output's energy, never falling along each row set's order, all in ascending order."""
    return np.sort(traces.loss.cummax(dim=1).values.flatten().numpy()) / max(energy, 1e-30)


def thresholds(axis: Axis, scores: FloatArray) -> FloatArray:
    """At each level of an axis of shares the largest of the ascending scores that it removes; -inf at the dense one."""
    shares = np.array([1 - float(v) if axis.field == "keep" else float(v) for v in axis.values])
    removed = np.minimum(np.round(shares * len(scores)).astype(np.int64), len(scores))
    return np.where(removed > 0, scores[np.maximum(removed, 1) - 1], -np.inf)


def _scores(criterion: Criterion, view: LayerView, name: str) -> Tensor:
    score = criterion.score(view).detach().to(torch.float64)
    if not bool(torch.isfinite(score).all()):
        raise PolicyError(f"Criterion {criterion.name!r} must give finite scores; {name!r} got others: check it.")
    return score


def _sum_by_unit(score: Tensor, member: Member, layer: LayerFacts) -> FloatArray:
    """Scores of a weight (out, in / groups, ...) summed per unit of a group (U,); a transposed convolution's may have
    a row for each output and place of the kernel."""
    if member.axis == "out":
        channel = score.reshape(layer.out_channels, -1).sum(dim=1)
    else:
        by_group = score.reshape(layer.groups, -1, *score.shape[1:]).sum(dim=1)  # (groups, in / groups, ...)
        channel = by_group.flatten(2).sum(dim=2).flatten() if score.dim() > 2 else by_group.flatten()
    return np.asarray(channel.numpy()[member.index].sum(axis=1), dtype=np.float64)
