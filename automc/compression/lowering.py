"""From a traced model to a program of compiled steps, where each of its operations has one.

A convolution takes the addition and the activation behind it along. What is flattened stays where it is: the linear
layer behind it becomes a convolution as large as its input. One operation without a step, and torch runs the model.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from automc.compression import calibration
from automc.compression.chains import FactoredLayer
from automc.compression.quantize import ActivationQuantizer, QuantizedLayer, bare
from automc.graph.blocks import ADDITIONS, only_user, other_operand, stays
from automc.graph.holders import as_layer, torchs_class
from automc.graph.reach import needed
from automc.kernels.steps import FREE, FloatArray, Limits, Pair, Shape, Steps, Window
from automc.kernels.tiles import Program, Room, from_tiles

_ACTIVATIONS: dict[Any, Limits] = {
    **dict.fromkeys((F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"), Limits(0.0)),
    F.relu6: Limits(0.0, 6.0),
}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that do nothing in eval mode."""
_CLAMPS = {nn.ReLU: Limits(0.0), nn.ReLU6: Limits(0.0, 6.0)}


def limits_of(module: fx.GraphModule, node: fx.Node | None) -> Limits | None:
    """The limits of a node that is an activation of one input and nothing else."""
    if node is None:
        return None
    if node.op == "call_module":
        return _CLAMPS.get(type(module.get_submodule(str(node.target))))
    return _ACTIVATIONS.get(node.target)


class UnsupportedError(Exception):
    """An operation has no step; says which."""


S = TypeVar("S", bound=Steps)


class Lowering(Generic[S]):
    """Steps and the values of the graph's nodes in them."""

    def __init__(self, module: fx.GraphModule, program: S) -> None:
        self.module, self.program = module, program
        self.inputs: list[fx.Node] = []
        """Nodes whose values every run is given."""
        self.output: fx.Node | None = None
        self._values: dict[fx.Node, int] = {}
        self._flat: set[fx.Node] = set()
        self._inner: set[fx.Node] = set()
        """Nodes whose own value is nowhere, since what follows them went along."""
        self._nodes: set[fx.Node] = set()

    def given(self, node: fx.Node, shape: Shape, *, flat: bool) -> None:
        """A node whose value comes from elsewhere; flat: it has no height and width."""
        self.inputs.append(node)
        self._set(node, self.program.given(shape), flat=flat)

    def lower(self, nodes: Sequence[fx.Node]) -> None:
        """Steps for nodes in the graph's order; an operation that has none raises UnsupportedError."""
        self._nodes = set(nodes)
        for node in nodes:
            if node not in self._values:
                self._lower(node)

    def holds(self, node: fx.Node) -> bool:
        """Whether a node's own value is there to be kept."""
        return node in self._values and node not in self._inner

    def shape(self, node: fx.Node) -> Shape:
        """Height, width and channels of a node's value as tiles hold it."""
        return self.program.shapes[self._values[node]]

    def is_flat(self, node: fx.Node) -> bool:
        """Whether a node's value has no height and width, whatever its tiles have."""
        return node in self._flat

    def samples(self, node: fx.Node, tiles: Tensor, count: int) -> Tensor:
        """A node's value as torch has it, (count, channels, height, width) or (count, features)."""
        whole = from_tiles(tiles, count)
        return whole.flatten(1) if node in self._flat else whole

    def _lower(self, node: fx.Node) -> None:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise UnsupportedError("several outputs")
            self.value(node.args[0])
            self.output = node.args[0]
        elif node.op == "call_module":
            self._module(node, self.module.get_submodule(str(node.target)))
        elif node.op in ("call_function", "call_method"):
            self._function(node)
        elif node.users:
            raise UnsupportedError(f"{node.op} {node.target}")

    def value(self, node: Any) -> int:
        """The value of a node that was lowered."""
        if not isinstance(node, fx.Node) or node not in self._values:
            raise UnsupportedError(f"an argument {node!r}")
        return self._values[node]

    def _set(self, node: fx.Node, value: int, *, flat: bool) -> None:
        self._values[node] = value
        if flat:
            self._flat.add(node)

    def _cover(self, nodes: Sequence[fx.Node], value: int, *, flat: bool) -> None:
        """Several nodes become one value, that of the last."""
        for node in nodes:
            self._set(node, value, flat=flat)
        self._inner |= set(nodes[:-1])

    def _module(self, node: fx.Node, module: Any) -> None:
        if not node.args:
            raise UnsupportedError("an input by name")
        source = _args(node)[0]
        x, flat = self.value(source), source in self._flat
        if isinstance(module, FactoredLayer):
            for part in list(module.parts)[:-1]:
                x = self._layer(*self._read(x, part))
            module = module.parts[-1]
        x, module = self._read(x, module)
        layer = as_layer(module)  # somebody's own that computes what torch's does
        kind = type(module) if layer is None else torchs_class(layer)
        if kind is nn.Conv2d and not flat:
            self._convolution(node, x, module)
        elif kind is nn.Linear:
            self._linear(node, x, module, flat)
        elif kind in _CLAMPS:
            self._set(node, self.program.add(x, limits=_CLAMPS[kind]), flat=flat)
        elif isinstance(module, NOTHING):
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
        if node.target not in _FUNCTIONS:
            raise UnsupportedError(str(node.target))
        _FUNCTIONS[node.target](self, node)

    def _convolution(self, node: fx.Node, x: int, conv: nn.Conv2d) -> None:
        tail = self._tail(node, (*_window(conv).over(self.program.shapes[x]), conv.out_channels), nn.BatchNorm2d)
        self._cover(tail.covered, self._layer(x, conv, tail), flat=False)

    def _linear(self, node: fx.Node, x: int, linear: nn.Linear, flat: bool) -> None:
        if not flat:
            raise UnsupportedError("a linear layer over the last of several dimensions")
        tail = self._tail(node, (1, 1, linear.out_features), nn.BatchNorm1d)
        self._cover(tail.covered, self._layer(x, linear, tail), flat=True)

    def _layer(self, x: int, layer: nn.Module, tail: "_Tail | None" = None) -> int:
        """A convolution, or a linear layer as one, with what goes along with it."""
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            raise UnsupportedError(type(layer).__name__)
        tail = tail or _Tail([], None, -1, FREE)
        weight, bias = _rows(layer, tail.norm)
        if isinstance(layer, nn.Conv2d):
            window, groups = _window(layer), layer.groups
        else:
            height, width, channels = self.program.shapes[x]
            window, groups = Window((height, width)), 1
            weight = weight.reshape(-1, channels, height, width)
        return self.program.convolution(x, weight, bias, window, groups, tail.limits, tail.other)

    def _tail(self, node: fx.Node, shape: Shape, norm: type[nn.BatchNorm1d | nn.BatchNorm2d]) -> "_Tail":
        """What follows a layer and goes along with it: a batch norm, an addition, an activation."""
        covered, other, folded = [node], -1, None
        user = self._only_user(node)
        behind = None if user is None or user.op != "call_module" else self.module.get_submodule(str(user.target))
        if user is not None and type(behind) is norm and behind.running_mean is not None:
            folded = behind
            covered.append(user)
            user = self._only_user(user)
        added = None if user is None else other_operand(user, covered[-1])
        if user is not None and added in self._values and self.program.shapes[self._values[added]] == shape:
            other = self._values[added]
            covered.append(user)
            user = self._only_user(user)
        limits = limits_of(self.module, user)
        if limits is not None and user is not None:
            covered.append(user)
        return _Tail(covered, folded, other, limits or FREE)

    def _norm(self, node: fx.Node, x: int, norm: nn.BatchNorm2d, flat: bool) -> None:
        if norm.running_mean is None or (flat and self.program.shapes[x][:2] != (1, 1)):
            raise UnsupportedError("a batch norm without statistics")
        scale, shift = _scale_and_shift(norm)
        limits, covered = self._followed(node)
        found = self.program.affine(x, scale.float().numpy(), shift.float().numpy(), limits)
        self._cover(covered, found, flat=flat)

    def _followed(self, node: fx.Node) -> tuple[Limits, list[fx.Node]]:
        user = self._only_user(node)
        limits = limits_of(self.module, user)
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

    def _read(self, x: int, module: Any) -> tuple[int, Any]:
        """What a layer reads, rounded where it is quantized, and the layer itself."""
        if isinstance(module, QuantizedLayer) and module.input is not None:
            x = self._quantizer(x, module.input)
        return x, bare(module)

    def _quantizer(self, x: int, quantizer: ActivationQuantizer) -> int:
        step, zero, top = quantizer.levels()
        return self.program.rounded(x, step, zero, top)

    def activation(self, node: fx.Node) -> None:
        """Of one input."""
        found = self.program.add(self.value(_args(node)[0]), limits=_ACTIVATIONS[node.target])
        self._set(node, found, flat=_args(node)[0] in self._flat)

    def addition(self, node: fx.Node) -> None:
        """Of two values of one shape, with the activation behind it."""
        if len(_args(node)) != 2 or node.kwargs:
            raise UnsupportedError("an addition with options")
        x, other = (self.value(a) for a in _args(node))
        if self.program.shapes[x] != self.program.shapes[other]:
            raise UnsupportedError("an addition that broadcasts")
        limits, covered = self._followed(node)
        found = self.program.add(x, other, limits)
        self._cover(covered, found, flat=_args(node)[0] in self._flat)

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

    def window_pool(self, node: fx.Node) -> None:
        """Largest values or means under a window."""
        largest = node.target is F.max_pool2d
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        if not largest:
            names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        arguments = dict(zip(names, _args(node)[1:], strict=False)) | node.kwargs
        kind: type[nn.MaxPool2d | nn.AvgPool2d] = nn.MaxPool2d if largest else nn.AvgPool2d
        self._pool(node, self.value(_args(node)[0]), kind(**arguments))

    def mean(self, node: fx.Node) -> None:
        """Over height and width."""
        arguments = dict(zip(("dim", "keepdim"), _args(node)[1:], strict=False)) | node.kwargs
        dims = arguments.pop("dim", None)
        if not isinstance(dims, (tuple, list)) or sorted(d % 4 for d in dims) != [2, 3]:
            raise UnsupportedError("a mean over other dimensions than height and width")
        keep = bool(arguments.pop("keepdim", False))
        if arguments or _args(node)[0] in self._flat:
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
        if len({s[:2] for s in shapes}) > 1 or any(p in self._flat for p in parts):
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
        user = self._only_user(node)
        if user is not None and user.target in (F.pad, torch._C._nn.pad) and self._pads_channels(user):
            self._pad(user, _args(node)[0], stride)
            self._values[node] = self._values[user]  # nobody else reads it
            self._inner.add(node)
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
        if not isinstance(amounts, (tuple, list)) or len(amounts) != 6 or any(amounts[:4]):
            return False
        return all(isinstance(n, int) and n >= 0 for n in amounts)

    def _pad(self, node: fx.Node, source: Any, stride: Pair) -> None:
        x = self.value(source)
        before, behind = _args(node)[1][4:]
        channels = self.program.shapes[x][2] + before + behind
        self._set(node, self.program.joined([(x, before)], channels, stride), flat=False)

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        """The one node that reads this one, where it is lowered along with it."""
        user = only_user(node)
        return user if user in self._nodes else None

    def nothing(self, node: fx.Node) -> None:
        """What does nothing when a model is scored."""
        self._set(node, self.value(_args(node)[0]), flat=_args(node)[0] in self._flat)


_FUNCTIONS: dict[Any, Callable[[Lowering[Any], fx.Node], None]] = {
    **dict.fromkeys(ADDITIONS, Lowering.addition),
    **dict.fromkeys(_ACTIVATIONS, Lowering.activation),
    **dict.fromkeys((torch.flatten, "flatten"), Lowering.flatten),
    F.adaptive_avg_pool2d: Lowering.global_pool,
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d), Lowering.window_pool),
    **dict.fromkeys((torch.mean, "mean"), Lowering.mean),
    torch.cat: Lowering.concatenation,
    operator.getitem: Lowering.slicing,
    **dict.fromkeys((F.pad, torch._C._nn.pad), Lowering.padding),
    **dict.fromkeys((F.dropout, "contiguous", stays), Lowering.nothing),
}


@dataclass(frozen=True, slots=True)
class _Tail:
    """What goes along with a layer."""

    covered: list[fx.Node]
    """The layer's own node and those behind it."""
    norm: nn.Module | None
    other: int
    """The value that is added, or -1."""
    limits: Limits


def run_tiles(
    lowering: Lowering[Program], given: Mapping[fx.Node, Tensor], wanted: Sequence[fx.Node], room: Room | None = None
) -> list[Tensor]:
    """Tiles of the wanted nodes for tiles of given ones, put in `room`."""
    values = {lowering.value(node): tiles for node, tiles in given.items()}
    return lowering.program.run(values, [lowering.value(node) for node in wanted], room=room)


def lowered(module: nn.Module, shape: Shape, program: S) -> Lowering[S] | None:
    """A model's steps for samples of a shape, recorded by `program`; None where it has no trace or an operation has no
    step."""
    if not isinstance(module, fx.GraphModule) or not all(_plain(x) for x in module.parameters()):
        return None
    if any(x._forward_hooks or x._forward_pre_hooks for x in module.modules()):
        return None  # a step would compute the layer alone
    read = needed(module.graph)  # what only looks at sizes has no step, and a shape has been chosen
    nodes = [node for node in module.graph.nodes if node in read or node.op == "placeholder"]
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        return None
    found = Lowering(module, program)
    found.given(inputs[0], shape, flat=shape[:2] == (1, 1))
    try:
        found.lower(nodes)
    except UnsupportedError:
        return None
    return found


def window_of(layer: nn.Module, shape: Shape) -> Window | None:
    """How a layer without conv-groups reads a value of a shape; None for any other layer."""
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return _window(layer)
    return Window(shape[:2]) if isinstance(layer, nn.Linear) else None


def _plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided


def _args(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _rows(layer: nn.Conv2d | nn.Linear, norm: Any = None) -> tuple[FloatArray, FloatArray | None]:
    """Weight and bias of a layer, a batch norm behind it taken along."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if norm is not None:
        scale, shift = _scale_and_shift(norm)
        weight = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
        bias = shift if bias is None else shift + scale * bias.double()
    return weight.float().numpy(), None if bias is None else bias.float().numpy()


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch norm as scale * x + shift, both (channels,), float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _pair(value: Any) -> Pair:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return int(numbers[0]), int(numbers[-1])


def _window(conv: nn.Conv2d) -> Window:
    if conv.padding_mode != "zeros":
        raise UnsupportedError(f"padding by {conv.padding_mode}")
    (top, bottom), (left, right) = calibration.padding(conv)
    if (top, left) != (bottom, right):
        raise UnsupportedError("an uneven padding")
    return Window(_pair(conv.kernel_size), _pair(conv.stride), (top, left), _pair(conv.dilation))
