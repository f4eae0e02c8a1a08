"""Layers as a search may make them, to be timed: with fewer channels, with zeros, in factors, in few bits."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from automc.compression.compress import channels_last, in_channels_last
from automc.compression.place import Place
from automc.compression.quantize import Observed, QuantizedLayer, quantized_layers
from automc.compression.settle import settle
from automc.compression.structure import opened
from automc.compression.variants import factors_of
from automc.criteria.criterion import fan_in_view
from automc.deployment.layers import layerwise
from automc.deployment.network import network_of
from automc.graph.facts import LayerFacts
from automc.policy import LayerDecision, Recipe

Plain: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BY_SIZE = Recipe(reconstruct="none", rounding="nearest")
"""What takes long does not depend on which values are left."""


def narrowed(layer: Plain, inputs: int, outputs: int) -> Plain:
    """A copy with the first channels of either side; of a depthwise layer, whose sides go together, the outputs say
    how many."""
    small = copy.deepcopy(layer)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    if isinstance(small, nn.Linear):
        small.in_features, small.out_features = inputs, outputs
    else:
        if groups == small.in_channels > 1:
            inputs = groups = small.groups = outputs * groups // small.out_channels
        small.in_channels, small.out_channels = inputs, outputs
    small.weight = nn.Parameter(layer.weight[:outputs, : inputs // groups].detach().clone())
    if layer.bias is not None:
        small.bias = nn.Parameter(layer.bias[:outputs].detach().clone())
    return small


def narrowed_input(layer: Plain, x: Tensor) -> Tensor:
    """The part of an input that a narrowed layer reads."""
    return x[..., : layer.in_features] if isinstance(layer, nn.Linear) else x[:, : layer.in_channels].contiguous()


def decided(layer: Plain, facts: LayerFacts, decision: LayerDecision, x: Tensor) -> nn.Module:
    """A copy with a decision carried out, by magnitude and to the nearest level, for an input like x."""
    bits = (decision.weight_bits, decision.activation_bits, decision.codebook)
    holder = opened(copy.deepcopy(layer), bits, factors_of(facts, decision))
    rows = fan_in_view(layer.weight.detach()) if decision.rank < 1 else None
    settle(Place(facts, decision, holder), BY_SIZE, rows=rows)
    if isinstance(holder, QuantizedLayer) and holder.input is not None:
        holder.input.calibrate(Observed.of([x]))
    return holder


def passage(x: Tensor) -> Callable[[], object] | None:
    """What a plan takes to read its input and to hand over such values, hardly computing; None where there is none."""
    plan = network_of(nn.Sequential(nn.ReLU()).eval(), (x,))
    return None if plan is None else partial(plan, x)


def ways(layer: nn.Module, x: Tensor, *, planned: bool) -> Iterator[Callable[[], object]]:
    """How a layer may be run on an input: as part of one plan, where there is one, or by its fastest own way."""
    alone = nn.Sequential(copy.deepcopy(layer)).eval()
    plan = network_of(alone, (x,)) if planned else None
    if plan is not None:
        yield partial(plan, x)
        return
    yield partial(alone, x)
    yield from _layerwise(alone, x)
    if x.dim() == 4:
        last, given = in_channels_last(copy.deepcopy(alone)), channels_last(x)
        yield partial(last, given)
        if any(quantized_layers(alone)):
            yield from _layerwise(last, given)


def _layerwise(module: nn.Module, x: Tensor) -> Iterator[Callable[[], object]]:
    faster = layerwise(module, (x,))
    if faster is not None:
        yield partial(faster, x)
