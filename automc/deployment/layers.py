"""Layers of any model, each by the way that is fastest here for the inputs it sees."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from automc.compression.calibration import watched
from automc.compression.quantize import QuantizedLayer
from automc.compression.structure import replace_module
from automc.deployment.fusing import fuse_
from automc.deployment.network import convolution_of
from automc.deployment.timing import seconds_of
from automc.errors import PolicyError
from automc.graph.runs import copies
from automc.kernels import tokens
from automc.kernels.bfloat16 import BFloat16Conv, BFloat16Linear, Convolution
from automc.kernels.blocks import BlockLinear, has_triton, sizes
from automc.kernels.dense32 import PackedLinear, libraries
from automc.kernels.matrix import BLOCKS, FloatArray
from automc.kernels.pointwise import Pointwise, linear_of
from automc.kernels.semistructured import BACKENDS, SemiStructuredLinear
from automc.kernels.steps import shape_of
from automc.kernels.tokens import ACROSS, PlannedLinear, TokenChoice

Ways: TypeAlias = Callable[[nn.Module, Tensor], list[nn.Module]]
Choose: TypeAlias = Callable[[nn.Module, Tensor, list[nn.Module]], nn.Module | None]
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that have another way."""
DENSE = 0.6
"""Share of weights that are not zero from which on no sparse way is tried."""
TYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.float16, torch.bfloat16)}
"""Weights that have another way, by device."""
SIZES = 3
"""Of blocks that are tried on a GPU: each is compiled anew."""
MARGIN = 0.97
"""Another way must take at most so much of the layer's own time: a tie is not worth a kernel."""


def layerwise(
    module: nn.Module, inputs: tuple[Tensor, ...], ways: Ways | None = None, choose: Choose | None = None
) -> nn.Module | None:
    """A copy of a module, each layer by its fastest way; None where none has a faster one.

    ways: other ways to compute a layer on an input, by default `all_ways`; choose: which of them is taken, if any, by
    default `faster`.
    """
    small, changed = copy.deepcopy(module), set[str]()
    for name, x in seen(small, inputs, [name for name, _ in _layers(small)]).items():
        if any(name.startswith(f"{holder}.") for holder in changed):
            continue  # what rounded it has become a layer of 8 bits
        layer = small.get_submodule(name)
        planned = (choose or faster)(layer, x, (ways or all_ways)(layer, x))
        if planned is not None:
            replace_module(small, name, planned)
            changed.add(name)
    for part in small.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0  # its fast path computes with the weights of its layers, not by them
    if changed and isinstance(small, fx.GraphModule):
        fuse_(small, inputs)
    return small if changed else None


def all_ways(layer: nn.Module, x: Tensor) -> list[nn.Module]:
    """Of 8 bits in integers; with zeros in blocks, or in 2:4 on a GPU; else with its weight packed."""
    if isinstance(layer, QuantizedLayer):
        return _eight_bit(layer)
    if x.is_cuda:
        return _on_gpu(layer, x)
    sparse = has_zeros(layer)
    if isinstance(layer, nn.Linear):
        return packed_ways(layer, x) + (_linear(layer, x) if sparse else [])
    return _convolution(layer, x) if sparse and isinstance(layer, nn.Conv2d) else []


def packed_ways(layer: nn.Module, x: Tensor) -> list[nn.Module]:
    """A linear layer by torch's libraries, its weight laid out beforehand."""
    if type(layer) is not nn.Linear or not x.is_cpu:
        return []
    return [PackedLinear(layer, library, x.numel() // layer.in_features) for library in libraries()]


def by_torch(layer: nn.Module, x: Tensor) -> list[nn.Module]:
    """Every way of torch's own kernels, bfloat16 among them."""
    return packed_ways(layer, x) + _bfloat16(layer, x)


def every_way(layer: nn.Module, x: Tensor) -> list[nn.Module]:
    """All ways, bfloat16 among them."""
    sparse = _on_gpu(layer, x, torch.bfloat16) if x.is_cuda and _is_float32(layer) else []
    return all_ways(layer, x) + _bfloat16(layer, x) + sparse


def _bfloat16(layer: nn.Module, x: Tensor) -> list[nn.Module]:
    if not _is_float32(layer):
        return []
    if type(layer) is nn.Linear:
        return [BFloat16Linear(layer, x.numel() // layer.in_features)]
    return [BFloat16Conv(layer)] if isinstance(layer, Convolution) else []


def _is_float32(layer: nn.Module) -> bool:
    return isinstance(layer, KINDS) and layer.weight.dtype == torch.float32


def has_zeros(layer: nn.Module) -> bool:
    """Whether a linear layer or convolution has zeros enough to try what skips them."""
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return False
    return int(layer.weight.count_nonzero()) < DENSE * layer.weight.numel()


def seen(module: nn.Module, inputs: tuple[Tensor, ...], names: Iterable[str]) -> dict[str, Tensor]:
    """What layers read for some inputs, by name; the last of several times, and nothing that is empty."""
    found: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, given: Tensor) -> None:
        if given.numel():
            found[name] = given.detach().clone()

    with torch.no_grad(), watched(module, tuple(names), see):
        module(*copies(inputs))
    return found


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose kernels are here: of 8 bits with rounded inputs, on a CPU; else of these types exactly. What rounds
    a layer comes before it."""
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLayer) and layer.input is not None and layer.weight_scale is not None:
            if layer.weight_scale.is_cpu:
                yield name, layer
            continue
        weight = layer.weight if type(layer) in KINDS else None
        if isinstance(weight, Tensor) and weight.dtype in TYPES.get(weight.device.type, ()):
            yield name, layer


def faster(layer: nn.Module, x: Tensor, others: list[nn.Module]) -> nn.Module | None:
    """The fastest of other ways to compute a layer; None where the layer itself is as fast."""
    if not others:
        return None
    with torch.no_grad():
        dense, *seconds = seconds_of([partial(layer, x), *(partial(other, x) for other in others)])
    best = int(np.argmin(seconds))
    return others[best] if seconds[best] <= MARGIN * dense else None


def _eight_bit(layer: QuantizedLayer) -> list[nn.Module]:
    """In integers, dense or in blocks of either size; none for weights without evenly spaced codes, or other kinds of
    layers."""
    from automc.kernels.dense8 import DenseInt8Linear  # these register operations of torch
    from automc.kernels.dense8_conv import DenseInt8Conv2d
    from automc.kernels.sparse8 import PATTERNS, SparseInt8Linear, level
    from automc.kernels.sparse8_conv import SparseInt8Conv2d

    makers: list[Callable[[], nn.Module]] = [partial(DenseInt8Linear.of, layer), partial(DenseInt8Conv2d.of, layer)]
    if level() >= 0:
        makers += [partial(SparseInt8Linear.of, layer, rows=rows) for rows in PATTERNS]
        makers += [partial(SparseInt8Conv2d.of, layer, rows=rows) for rows in PATTERNS]
    found = []
    for make in makers:
        with contextlib.suppress(PolicyError):
            found.append(make())
    return found


def _convolution(layer: nn.Conv2d, x: Tensor) -> list[nn.Module]:
    shape = shape_of(x) if x.dim() == 4 else None
    found = None if shape is None else convolution_of(layer, shape)
    return [] if found is None else [found]


def _linear(layer: nn.Linear, x: Tensor) -> list[nn.Module]:
    if not tokens.lanes():
        return []
    weight = layer.weight.detach().numpy()
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    plans = [tokens.planned(weight, bias, choice) for choice in token_choices(weight, x.numel() // weight.shape[1])]
    return [PlannedLinear(plan, layer.in_features, layer.out_features) for plan in plans]


def _on_gpu(layer: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> list[nn.Module]:
    """In 2:4 and in blocks; none where the weight has too few zeros for either, or where this GPU runs neither.

    dtype: what weights and inputs are rounded to, by default nothing.
    """
    linear = linear_of(layer) if has_zeros(layer) else None
    if linear is None:
        return []
    makers: list[Callable[[], nn.Module]] = [partial(SemiStructuredLinear.of, linear, b, dtype) for b in BACKENDS]
    if has_triton():
        found = sizes(linear.weight.detach(), DENSE * linear.weight.numel())[:SIZES]
        makers += [partial(BlockLinear.of, linear, size, dtype) for size in found]
    ways = (_tried(make, layer, x) for make in makers)
    return [way for way in ways if way is not None]


def _tried(make: Callable[[], nn.Module], layer: nn.Module, x: Tensor) -> nn.Module | None:
    """A way that runs on this GPU: what one has no kernels for, libraries say by any error, at the first call."""
    with contextlib.suppress(Exception), torch.no_grad():
        way = make()
        way = Pointwise(way, layer.stride) if isinstance(layer, nn.Conv2d) else way
        way(x)
        return way
    return None


def token_choices(weight: FloatArray, rows: int) -> list[TokenChoice]:
    """Ways worth trying: every block, as many tokens at once as fill the registers or half of that, in parts where the
    inputs of so many tokens leave the first cache."""
    found = [TokenChoice(ACROSS, parts=n) for n in _parts(weight, ACROSS)]
    count = -(-rows // tokens.lanes())
    for block in BLOCKS:
        turns = -(-count // tokens.most_vectors(block))
        most = -(-count // turns)  # the last turn should not be left with next to nothing
        for vectors in sorted({most, -(-most // 2)}):
            found += [TokenChoice(block, vectors, n) for n in _parts(weight, vectors * tokens.lanes())]
    return found


def _parts(weight: FloatArray, rows: int) -> list[int]:
    """Numbers of parts of the inputs worth trying where so many tokens are taken at once."""
    return [1, *(n for n in (2, 4, 8) if 4 * weight.shape[1] * rows > 2**14 * n)]
