"""Layers in bfloat16 between float activations: factors and outputs of 8 bits of mantissa, sums in floats.

An input that is no number spoils every output that reads it, as in floats, but sometimes neighbours of these as well:
oneDNN fills its registers with what lies beside, times zero.
"""

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.kernels.dense32 import libraries
from automc.kernels.packed import Packed, packed
from automc.kernels.plan import plain

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d


class BFloat16Linear(nn.Module):
    """x W^T + b, x rounded on the way in; fastest for so many rows of x as it is made for."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        super().__init__()
        self.rows, self.in_features, self.out_features = rows, layer.in_features, layer.out_features
        self.lays_out = "mkldnn" in libraries() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        self.register_buffer("weight", layer.weight.detach().bfloat16().contiguous())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in), float32; (..., out)"""
        held: Any = self._buffers
        weight, bias, half = held["weight"], held["bias"], x.bfloat16()
        if not (self.lays_out and plain(x) and weight.is_cpu and x.numel()):
            return F.linear(half, weight, bias).float()
        made = packed(weight, f"bfloat16, {self.rows} rows", self._laid).weights[0]
        found: Tensor = torch.ops.mkldnn._linear_pointwise.default(half, made, bias, "none", [], "")
        return found.float()

    def _laid(self) -> Packed:
        return Packed((torch.ops.mkldnn._reorder_linear_weight(self.weight, self.rows),))

    def extra_repr(self) -> str:
        """As torch's own layer has it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class BFloat16Conv(nn.Module):
    """A convolution whose input is rounded on the way in; its output lies in memory as torch's own would."""

    def __init__(self, layer: Convolution) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).bfloat16().requires_grad_(False)
        if isinstance(layer, nn.Conv2d):  # the layout in which it is fastest, whatever that of the images
            self.layer.weight.data = self.layer.weight.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """x (images, channels, ...), float32; (images, outputs, ...)"""
        found: Tensor = self.layer(x.bfloat16()).float()
        return found.contiguous() if x.is_contiguous() else found
