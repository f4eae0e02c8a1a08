"""From a traced model to a program of compiled steps, where each of its operations has one.

A convolution takes the addition and the activation behind it along. What is flattened stays where it is: the linear
layer behind it becomes a convolution as large as its input. One operation without a step, and torch runs the model.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from automc.compression.quantize import ActivationQuantizer
from automc.kernels.tiles import FREE, Limits, Pair, Program, Shape, Window

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_ACTIVATIONS: dict[Any, Limits] = {
    **dict.fromkeys((F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"), Limits(0.0)),
    F.relu6: Limits(0.0, 6.0),
}
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
_CLAMPS = {nn.ReLU: Limits(0.0), nn.ReLU6: Limits(0.0, 6.0)}


class UnsupportedError(Exception):
    """An operation has no step; says which."""


class Lowering:
    """A program and the values of the graph's nodes in it."""

    def __init__(self, module: fx.GraphModule, shape: Shape) -> None:
        self.module, self.program = module, Program(shape)
        self.values: dict[fx.Node, int] = {}
        """The value that holds each node's result once its step has run."""
        self.flat: set[fx.Node] = set()
        """Nodes whose result has no height and width."""
        self.output = -1
        for node in module.graph.nodes:
            if node not in self.values:
                self._lower(node)

    def _lower(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if 0 in self.values.values():
                raise UnsupportedError("several inputs")
            self._set(node, 0, flat=self.program.shapes[0][:2] == (1, 1))
        elif node.op == "output":
            if not isinstance(_args(node)[0], fx.Node):
                raise UnsupportedError("several outputs")
            self.output = self.value(_args(node)[0])
            self.result = _args(node)[0]
        elif node.op == "call_module":
            self._module(node, self.module.get_submodule(str(node.target)))
        elif node.op in ("call_function", "call_method"):
            self._function(node)
        elif node.users:
            raise UnsupportedError(f"{node.op} {node.target}")

    def value(self, node: Any) -> int:
        """The value of a node that was lowered."""
        if not isinstance(node, fx.Node) or node not in self.values:
            raise UnsupportedError(f"an argument {node!r}")
        return self.values[node]

    def _set(self, node: fx.Node, value: int, *, flat: bool) -> None:
        self.values[node] = value
        if flat:
            self.flat.add(node)

    def _module(self, node: fx.Node, module: Any) -> None:
        source = _args(node)[0]
        x, flat = self.value(source), source in self.flat
        kind = type(module)
        if kind is nn.Conv2d and not flat:
            self._convolution(node, x, module)
        elif kind is nn.Linear:
            self._linear(node, x, module, flat)
        elif kind in _CLAMPS:
            self._set(node, self.program.add(x, limits=_CLAMPS[kind]), flat=flat)
        elif isinstance(module, _NOTHING):
            self._set(node, x, flat=flat)
        elif kind in (nn.BatchNorm2d, nn.BatchNorm1d):
            self._norm(node, x, module, flat)
        elif kind in (nn.MaxPool2d, nn.AvgPool2d):
            self._pool(node, x, module)
        elif kind is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
            self._set(node, self._mean(x), flat=False)
        elif kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            self._set(node, x, flat=True)
        elif kind is ActivationQuantizer:
            self._set(node, self._quantizer(x, module), flat=flat)
        else:
            raise UnsupportedError(kind.__name__)

    def _function(self, node: fx.Node) -> None:
        target = node.target
        for targets, lower in _FUNCTIONS:
            if target in targets:
                lower(self, node)
                return
        raise UnsupportedError(str(target))

    def _convolution(self, node: fx.Node, x: int, conv: nn.Conv2d) -> None:
        if conv.padding_mode != "zeros":
            raise UnsupportedError(f"padding by {conv.padding_mode}")
        window = Window(_pair(conv.kernel_size), _pair(conv.stride), _padding(conv), _pair(conv.dilation))
        other, limits, covered = self._tail(node, (*window.over(self.program.shapes[x]), conv.out_channels))
        weight, bias = conv.weight.detach().numpy(), None if conv.bias is None else conv.bias.detach().numpy()
        found = self.program.convolution(x, weight, bias, window, conv.groups, limits, other)
        for each in covered:
            self._set(each, found, flat=False)

    def _linear(self, node: fx.Node, x: int, linear: nn.Linear, flat: bool) -> None:
        height, width, channels = self.program.shapes[x]
        if (height, width) != (1, 1) and not flat:
            raise UnsupportedError("a linear layer over the last of several dimensions")
        weight = linear.weight.detach().numpy().reshape(-1, channels, height, width)
        bias = None if linear.bias is None else linear.bias.detach().numpy()
        other, limits, covered = self._tail(node, (1, 1, linear.out_features))
        found = self.program.convolution(x, weight, bias, Window((height, width)), 1, limits, other)
        for each in covered:
            self._set(each, found, flat=True)

    def _tail(self, node: fx.Node, shape: Shape) -> tuple[int, Limits, list[fx.Node]]:
        """What follows a layer and goes along with it: an addition, an activation; and all nodes so covered."""
        covered, other = [node], -1
        user = _only_user(node)
        if user is not None and user.target in _ADDITIONS and user.op != "call_module":
            rest = [a for a in _args(user) if a is not node]
            known = len(rest) == 1 and not user.kwargs and rest[0] in self.values
            if known and self.program.shapes[self.values[rest[0]]] == shape:
                other = self.values[rest[0]]
                covered.append(user)
                user = _only_user(user)
        limits = self._clamp(user)
        if limits is not None and user is not None:
            covered.append(user)
        return other, limits or FREE, covered

    def _clamp(self, node: fx.Node | None) -> Limits | None:
        """The limits of a node that is an activation of one input and nothing else."""
        if node is None:
            return None
        if node.op == "call_module":
            return _CLAMPS.get(type(self.module.get_submodule(str(node.target))))
        return _ACTIVATIONS.get(node.target)

    def _norm(self, node: fx.Node, x: int, norm: nn.BatchNorm2d, flat: bool) -> None:
        if norm.running_mean is None or norm.running_var is None or (flat and self.program.shapes[x][:2] != (1, 1)):
            raise UnsupportedError("a batch norm without statistics")
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.detach().double()
        shift = -norm.running_mean.double() * scale
        shift = shift if norm.bias is None else shift + norm.bias.detach().double()
        limits, covered = self._followed(node)
        found = self.program.affine(x, scale.float().numpy(), shift.float().numpy(), limits)
        for each in covered:
            self._set(each, found, flat=flat)

    def _followed(self, node: fx.Node) -> tuple[Limits, list[fx.Node]]:
        user = _only_user(node)
        limits = self._clamp(user)
        return (FREE, [node]) if limits is None or user is None else (limits, [node, user])

    def _pool(self, node: fx.Node, x: int, pool: nn.MaxPool2d | nn.AvgPool2d) -> None:
        largest = isinstance(pool, nn.MaxPool2d)
        dilation = _pair(pool.dilation) if isinstance(pool, nn.MaxPool2d) else (1, 1)
        window = Window(_pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding), dilation)
        plain = not pool.ceil_mode and not getattr(pool, "return_indices", False)
        if not largest:
            counted = pool.count_include_pad or window.padding == (0, 0)
            plain = plain and counted and pool.divisor_override is None
        if not plain:
            raise UnsupportedError("a pooling with options")
        self._set(node, self.program.pool(x, window, largest=largest), flat=False)

    def _mean(self, x: int) -> int:
        height, width, _ = self.program.shapes[x]
        return self.program.pool(x, Window((height, width)), largest=False)

    def _quantizer(self, x: int, quantizer: ActivationQuantizer) -> int:
        step, zero, top = quantizer.levels()
        return self.program.rounded(x, step, zero, top)

    def activation(self, node: fx.Node) -> None:
        """Of one input."""
        found = self.program.add(self.value(_args(node)[0]), limits=_ACTIVATIONS[node.target])
        self._set(node, found, flat=_args(node)[0] in self.flat)

    def addition(self, node: fx.Node) -> None:
        """Of two values of one shape, with the activation behind it."""
        if len(_args(node)) != 2 or node.kwargs:
            raise UnsupportedError("an addition with options")
        x, other = (self.value(a) for a in _args(node))
        if self.program.shapes[x] != self.program.shapes[other]:
            raise UnsupportedError("an addition that broadcasts")
        limits, covered = self._followed(node)
        found = self.program.add(x, other, limits)
        for each in covered:
            self._set(each, found, flat=_args(node)[0] in self.flat)

    def flatten(self, node: fx.Node) -> None:
        """From the first dimension on."""
        if _args(node)[1:] not in ((1,), (1, -1)) or node.kwargs:
            raise UnsupportedError("a flatten of some dimensions")
        self._set(node, self.value(_args(node)[0]), flat=True)

    def global_pool(self, node: fx.Node) -> None:
        """Adaptive, to a single position."""
        if tuple(_args(node)[1:]) not in ((1,), ((1, 1),)) or node.kwargs:
            raise UnsupportedError("an adaptive pooling to several positions")
        self._set(node, self._mean(self.value(_args(node)[0])), flat=False)

    def mean(self, node: fx.Node) -> None:
        """Over height and width."""
        arguments = dict(zip(("dim", "keepdim"), _args(node)[1:], strict=False)) | node.kwargs
        dims = arguments.pop("dim", None)
        if not isinstance(dims, (tuple, list)) or sorted(d % 4 for d in dims) != [2, 3]:
            raise UnsupportedError("a mean over other dimensions than height and width")
        keep = bool(arguments.pop("keepdim", False))
        if arguments or _args(node)[0] in self.flat:
            raise UnsupportedError("a mean with options")
        self._set(node, self._mean(self.value(_args(node)[0])), flat=not keep)

    def concatenation(self, node: fx.Node) -> None:
        """Along the channels."""
        arguments = dict(zip(("tensors", "dim"), _args(node), strict=False)) | node.kwargs
        parts = arguments.get("tensors")
        if arguments.get("dim") not in (1, -3) or not isinstance(parts, (tuple, list)):
            raise UnsupportedError("a concatenation along another dimension than the channels")
        values = [self.value(p) for p in parts]
        shapes = [self.program.shapes[v] for v in values]
        if len({s[:2] for s in shapes}) > 1 or any(p in self.flat for p in parts):
            raise UnsupportedError("a concatenation of different sizes")
        offsets = np.cumsum([0, *(s[2] for s in shapes)]).tolist()
        self._set(node, self.program.joined(list(zip(values, offsets, strict=False)), offsets[-1]), flat=False)

    def slicing(self, node: fx.Node) -> None:
        """x[:, :, ::a, ::b], with the zero channels that `F.pad` puts around it, if that is what follows."""
        index = _args(node)[1]
        whole = slice(None, None, None)
        if not isinstance(index, tuple) or len(index) != 4 or index[:2] != (whole, whole):
            raise UnsupportedError("an index")
        if not all(isinstance(i, slice) and i.start is i.stop is None for i in index[2:]):
            raise UnsupportedError("an index of some positions")
        stride = (index[2].step or 1, index[3].step or 1)
        user = _only_user(node)
        if user is not None and user.target in (F.pad, torch._C._nn.pad) and self._pads_channels(user):
            self._pad(user, _args(node)[0], stride)
            self.values[node] = self.values[user]  # nobody else reads it
        else:
            x = self.value(_args(node)[0])
            self._set(node, self.program.joined([(x, 0)], self.program.shapes[x][2], stride), flat=False)

    def padding(self, node: fx.Node) -> None:
        """Zero channels before and behind."""
        if not self._pads_channels(node):
            raise UnsupportedError("a padding of height or width")
        self._pad(node, _args(node)[0], (1, 1))

    def _pads_channels(self, node: fx.Node) -> bool:
        amounts = _args(node)[1] if len(_args(node)) == 2 else None
        if node.kwargs.get("mode", "constant") != "constant" or node.kwargs.get("value"):
            return False
        if not isinstance(amounts, tuple) or len(amounts) != 6 or any(amounts[:4]):
            return False
        return all(isinstance(n, int) and n >= 0 for n in amounts)

    def _pad(self, node: fx.Node, source: Any, stride: Pair) -> None:
        x = self.value(source)
        before, behind = _args(node)[1][4:]
        channels = self.program.shapes[x][2] + before + behind
        self._set(node, self.program.joined([(x, before)], channels, stride), flat=False)

    def nothing(self, node: fx.Node) -> None:
        """What does nothing when a model is scored."""
        self._set(node, self.value(_args(node)[0]), flat=_args(node)[0] in self.flat)


_FUNCTIONS: tuple[tuple[set[Any], Callable[[Lowering, fx.Node], None]], ...] = (
    (_ADDITIONS, Lowering.addition),
    (set(_ACTIVATIONS), Lowering.activation),
    ({torch.flatten, "flatten"}, Lowering.flatten),
    ({F.adaptive_avg_pool2d}, Lowering.global_pool),
    ({torch.mean, "mean"}, Lowering.mean),
    ({torch.cat}, Lowering.concatenation),
    ({operator.getitem}, Lowering.slicing),
    ({F.pad, torch._C._nn.pad}, Lowering.padding),
    ({F.dropout, "contiguous"}, Lowering.nothing),
)


def lowered(module: nn.Module, shape: Shape) -> Lowering | None:
    """A model's program for samples of a shape; None where it has no trace or an operation has no step."""
    if not isinstance(module, fx.GraphModule) or not all(_plain(x) for x in module.parameters()):
        return None
    try:
        return Lowering(module, shape)
    except UnsupportedError:
        return None


def _plain(x: torch.Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided


def _args(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _padding(conv: nn.Conv2d) -> Pair:
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        sums = [d * (k - 1) for d, k in zip(_pair(conv.dilation), _pair(conv.kernel_size), strict=True)]
        if any(n % 2 for n in sums):
            raise UnsupportedError("an uneven padding")
        return (sums[0] // 2, sums[1] // 2)
    return _pair(conv.padding)
