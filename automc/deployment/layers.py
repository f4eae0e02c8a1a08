"""Layers of any model, each by the way that is fastest here for the inputs it sees."""

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from automc.compression.structure import replace_module
from automc.deployment.network import convolution_of
from automc.deployment.timing import seconds_of
from automc.graph.runs import copies
from automc.kernels import tokens
from automc.kernels.matrix import BLOCKS, FloatArray
from automc.kernels.tiles import shape_of
from automc.kernels.tokens import ACROSS, TokenChoice

DENSE = 0.6
"""Share of weights that are not zero from which on no sparse way is tried."""
MARGIN = 0.97
"""A sparse way must take at most so much of the dense one's time: a tie is not worth a kernel."""


class PlannedLinear(nn.Module):
    """A planned linear layer; its plan is a buffer, and suits processors with vectors of the same width."""

    def __init__(self, plan: Tensor, inputs: int, outputs: int) -> None:
        super().__init__()
        from automc.kernels import ops  # noqa: F401  (registers the operation)

        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("plan", plan)

    plan: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in), float32; (..., out)"""
        found: Tensor = torch.ops.automc.tokens(x, self.plan, self.out_features)
        return found

    def extra_repr(self) -> str:
        """As torch's own layer has it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def layerwise(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module | None:
    """A copy of a module, each layer with zeros by its fastest way; None where dense is as fast in all of them."""
    small, changed = copy.deepcopy(module), False
    for name, x in _seen(small, inputs).items():
        layer = small.get_submodule(name)
        planned = _linear(layer, x) if isinstance(layer, nn.Linear) else _convolution(layer, x)
        if planned is not None:
            replace_module(small, name, planned)
            changed = True
    for part in small.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0  # its fast path computes with the weights of its layers, not by them
    return small if changed else None


def _seen(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What each layer with zeros reads for some inputs, by name; the last of several."""
    seen: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given and given[0].numel():
            seen[name] = given[0].detach().clone()

    handles = [layer.register_forward_pre_hook(partial(see, name)) for name, layer in _sparse_layers(module)]
    try:
        with torch.no_grad():
            module(*copies(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _sparse_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose kernels are here: of these types exactly, float32, on a CPU, with zeros enough to try."""
    for name, layer in module.named_modules():
        weight = layer.weight if type(layer) in (nn.Linear, nn.Conv2d) else None
        if not isinstance(weight, Tensor) or weight.dtype != torch.float32 or weight.device.type != "cpu":
            continue
        if int(weight.count_nonzero()) < DENSE * weight.numel():
            yield name, layer


def _faster(layer: nn.Module, x: Tensor, others: list[nn.Module]) -> nn.Module | None:
    """The fastest of other ways to compute a layer; None where the layer itself is as fast."""
    with torch.no_grad():
        dense, *seconds = seconds_of([partial(layer, x), *(partial(other, x) for other in others)])
    best = int(np.argmin(seconds)) if seconds else -1
    return others[best] if seconds and seconds[best] <= MARGIN * dense else None


def _convolution(layer: nn.Module, x: Tensor) -> nn.Module | None:
    shape = shape_of(x) if x.dim() == 4 else None
    found = None if shape is None or not isinstance(layer, nn.Conv2d) else convolution_of(layer, shape)
    return None if found is None else _faster(layer, x, [found])


def _linear(layer: nn.Linear, x: Tensor) -> nn.Module | None:
    if not tokens.lanes():
        return None
    weight = layer.weight.detach().numpy()
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    plans = [tokens.planned(weight, bias, choice) for choice in _choices(weight, x.numel() // weight.shape[1])]
    return _faster(layer, x, [PlannedLinear(plan, layer.in_features, layer.out_features) for plan in plans])


def _choices(weight: FloatArray, rows: int) -> list[TokenChoice]:
    """Ways worth trying: every block, as many tokens at once as fill the registers or half of that, in parts where the
    inputs of so many tokens leave the first cache."""
    found = [TokenChoice(ACROSS)]
    for block in BLOCKS:
        most = min(tokens.most_vectors(block), -(-rows // tokens.lanes()))
        for vectors in sorted({most, max(1, most // 2)}):
            bytes_read = 4 * weight.shape[1] * vectors * tokens.lanes()
            parts = [1, *(n for n in (2, 4, 8) if bytes_read > 2**14 * n)]
            found += [TokenChoice(block, vectors, n) for n in parts]
    return found
