"""Dense linear layers in floats whose weights a library of torch's has laid out beforehand: MKL's, or oneDNN's.

torch hands a weight over as it is, and the library lays it out at each call; for a dozen rows that takes nearly as long
as the product. Where a layer is recorded, for export or to count its memory, it is torch's own.
"""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.kernels.packed import Packed, packed
from automc.kernels.plan import plain

Library: TypeAlias = Literal["mkl", "mkldnn"]


def libraries() -> list[Library]:
    """Those that torch was built with."""
    found: list[Library] = []
    if torch._C.has_mkl and hasattr(torch.ops.mkl, "_mkl_linear"):
        found.append("mkl")
    if torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found.append("mkldnn")
    return found


class PackedLinear(nn.Module):
    """x W^T + b, fastest for so many rows of x as it is made for."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, library: Library, rows: int) -> None:
        """The weight is the layer's own; it is laid out at first use."""
        super().__init__()
        self.library, self.rows = library, rows
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", layer.weight.detach().contiguous())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in); (..., out)"""
        held: Any = self._buffers
        weight, bias = held["weight"], held["bias"]
        if not (plain(x) and plain(weight) and x.numel() and x.dim() > 1):
            return F.linear(x, weight, bias)
        made = packed(weight, f"{self.library}, {self.rows} rows", self._laid).weights[0]
        if self.library == "mkl":  # for another number of rows that is torch's own
            return torch.ops.mkl._mkl_linear.default(x, made, weight, bias, self.rows)  # type: ignore[no-any-return]
        return torch.ops.mkldnn._linear_pointwise.default(x, made, bias, "none", [], "")  # type: ignore[no-any-return]

    def _laid(self) -> Packed:
        if self.library == "mkl":
            return Packed((torch.ops.mkl._mkl_reorder_linear_weight(self.weight, self.rows),))
        return Packed((torch.ops.mkldnn._reorder_linear_weight(self.weight, self.rows),))

    def extra_repr(self) -> str:
        """As torch's own layer has it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
