"""A compressed module in the form in which it leaves: few-bit weights as the codes that stand for them.

A `QuantizedLayer` computes on float weights, exactly those its codes mean. Here the codes are what the module holds,
one byte each, and the forward makes weights of them, so that a file of its tensors is as small as they are. In which
operations it does so, is the format's to say.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from automc.compression.quantize import ActivationQuantizer, quantized_layers


@dataclass(frozen=True, slots=True)
class Operations:
    """What a format has for the three things that quantized layers do."""

    even: Callable[[Tensor, Tensor], Tensor]
    """Weights from codes (out, ...), int8, and a scale for each output channel (out,)."""
    shared: Callable[[Tensor, Tensor], Tensor]
    """Weights from codes of any shape, uint8, and centroids (2^bits,)."""
    rounding: Callable[[ActivationQuantizer, str], nn.Module]
    """What stands where an activation quantizer stood, at a path."""


def portable(module: nn.Module, operations: Operations) -> nn.Module:
    """A copy in eval mode and on the CPU; `module` is untouched."""
    made = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    for name, holder in list(quantized_layers(made)):
        codes = holder.codes
        if codes is not None and holder.centroids is not None:
            _store(holder.layer, codes.to(torch.uint8), _Meaning(holder.centroids, operations.shared))
        elif codes is not None and holder.weight_scale is not None:
            _store(holder.layer, codes.to(torch.int8), _Meaning(holder.weight_scale, operations.even))
        if holder.input is not None:
            holder.input = operations.rounding(holder.input, f"{name}.input")  # type: ignore[assignment]
    return made


class _Meaning(nn.Module):
    """From a weight's codes to the weight, by the values they stand for."""

    def __init__(self, values: Tensor, means: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.means = means
        self.register_buffer("values", values)

    values: Tensor

    def forward(self, codes: Tensor) -> Tensor:
        return self.means(codes, self.values)


def _store(layer: nn.Module, codes: Tensor, meaning: _Meaning) -> None:
    """Has the layer hold codes, of which its weight is made whenever it is asked for."""
    layer.weight = nn.Parameter(codes, requires_grad=False)
    parametrize.register_parametrization(layer, "weight", meaning, unsafe=True)  # another type than the weight's
