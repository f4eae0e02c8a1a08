"""Linear layers on a GPU whose weight keeps at most two of every four inputs, by torch's 2:4 semi-structured kernels.

Tensor cores skip the other half from compute capability 8.0 on. torch has two libraries of such kernels: cuSPARSELt,
and CUTLASS for capabilities 8.x. Weights and inputs are float16 or bfloat16: in float32 CUTLASS alone multiplies,
through TF32, and keeps one of every two. Where a layer is recorded, moved to a processor, or given nothing, it is
torch's dense one.
"""

import warnings
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import PolicyError
from automc.kernels.packed import Packed, packed
from automc.kernels.plan import unwatched

Backend: TypeAlias = Literal["cusparselt", "cutlass"]
BACKENDS: dict[Backend, Any] = {
    "cusparselt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    "cutlass": torch.sparse.SparseSemiStructuredTensorCUTLASS,
}
TYPES = (torch.float16, torch.bfloat16)


def keeps_two_of_four(weight: Tensor) -> bool:
    """Whether of every four consecutive inputs of a weight (out, in) at most two are not zero."""
    if weight.shape[1] % 4:
        return False
    return not bool(((weight.reshape(-1, 4) != 0).sum(1) > 2).any())


class SemiStructuredLinear(nn.Module):
    """x W^T + b, the weight in 2:4; inputs of another type than the weight's are made its, outputs are theirs."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, backend: Backend) -> None:
        """The weight is held dense, as what can be moved, saved and recorded; it is laid out at first use."""
        super().__init__()
        self.backend = backend
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear, backend: Backend, dtype: torch.dtype | None = None) -> "SemiStructuredLinear":
        """dtype: what weights and inputs are rounded to, by default nothing.

        PolicyError for a weight that is not in 2:4, not of a type or shape that the library takes, or not on a GPU.
        """
        weight = layer.weight.detach().to(dtype or layer.weight.dtype).contiguous()
        _check(weight, backend)
        bias = None if layer.bias is None else layer.bias.detach().to(weight.dtype)
        return cls(weight, bias, backend)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in); (..., out)"""
        held: Any = self._buffers
        weight, bias, given = held["weight"], held["bias"], x.to(held["weight"].dtype)
        if not (weight.is_cuda and unwatched(x) and x.numel()):
            return F.linear(given, weight, bias).to(x.dtype)
        made = packed(weight, f"2:4, {self.backend}", self._laid).weights[0]
        rows = given.reshape(-1, self.in_features).contiguous()  # torch's kernels view them so
        return F.linear(rows, made, bias).reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def _laid(self) -> Packed:
        with warnings.catch_warnings():  # that torch's interface may change is ours to follow
            warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor")
            return Packed((BACKENDS[self.backend].from_dense(self.weight),))

    def extra_repr(self) -> str:
        """As torch's own layer has it, and the library."""
        return f"in_features={self.in_features}, out_features={self.out_features}, backend={self.backend}"


def _check(weight: Tensor, backend: Backend) -> None:
    outputs, inputs = weight.shape
    if weight.dtype not in TYPES:
        raise PolicyError(f"A weight must be float16 or bfloat16 to run in 2:4; it is {weight.dtype}: convert it.")
    least = BACKENDS[backend]._DTYPE_SHAPE_CONSTRAINTS[weight.dtype]
    rows, columns = least.sparse_min_rows, least.sparse_min_cols
    if not outputs or not inputs or outputs % rows or inputs % columns:
        raise PolicyError(
            f"A weight must have a multiple of {rows} outputs and of {columns} inputs to run in 2:4 by {backend}; it "
            f"has {outputs} and {inputs}: leave it dense."
        )
    if not keeps_two_of_four(weight):
        raise PolicyError(
            "A weight must keep at most 2 of every 4 consecutive inputs to run in 2:4; this one keeps more: prune it "
            "in the pattern 2:4."
        )
    if not weight.is_cuda:
        raise PolicyError(f"A weight must be on a GPU to run in 2:4; it is on {weight.device}: move it to cuda.")
