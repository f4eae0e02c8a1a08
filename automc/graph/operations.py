"""What each operation does to channel indices. An operation that stands in no table is refused by name.

Operations that move data are executed on the indices themselves, so an index map cannot disagree with PyTorch.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from automc.graph.channels import Classes, Lane, Lanes, leaves


class UnfollowableError(Exception):
    """Raised by a rule that cannot say what becomes of the channels; the message is the reason."""


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One call seen while the model runs."""

    name: str
    """Name of the operation, the same for torch.relu, F.relu, Tensor.relu_ and nn.ReLU's kind."""
    run: Callable[..., Any]
    """Executes the operation on other tensors."""
    args: tuple[Any, ...]
    """Its arguments, with lanes in place of tensors."""
    kwargs: dict[str, Any]
    result: Any
    """What it returned on the real tensors."""

    def lane(self) -> Lane:
        """The first argument's lane."""
        if not self.args or not isinstance(self.args[0], Lane):
            raise UnfollowableError("its input is no single tensor")
        return self.args[0]

    def lanes(self) -> list[Lane]:
        """The lanes of all arguments."""
        found: list[Lane] = []
        fx.node.map_aggregate((self.args, self.kwargs), lambda x: found.append(x) if isinstance(x, Lane) else None)
        return found

    def option(self, position: int, *names: str, default: Any = None) -> Any:
        """A plain argument by position or name."""
        for name in names:
            if name in self.kwargs:
                return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default


Rule = Callable[[Classes, Call], Lanes]


def refuse(classes: Classes, call: Call) -> Lanes:
    """Pins every input, and everything that comes out."""
    for lane in call.lanes():
        classes.pin(lane.ids)
    return fixed(call.result)


def fixed(result: Any) -> Lanes:
    """Lanes of a result of which nothing can be pruned."""
    if isinstance(result, Tensor):
        return Lane.fixed(result.shape)
    if isinstance(result, (tuple, list)) and not isinstance(result, torch.Size):
        return tuple(fixed(part) for part in result)
    return None


def move(classes: Classes, call: Call) -> Lanes:
    """Data movement: the same operation, executed on the classes of all elements."""
    if not any(lane.dim is not None and classes.free(lane) for lane in call.lanes()):
        return refuse(classes, call)
    if call.name == "getitem" and len(call.lanes()) > 1:
        raise UnfollowableError("it picks positions by a tensor")
    args, kwargs = fx.node.map_aggregate(
        (call.args, call.kwargs), lambda x: classes.full(x).contiguous() if isinstance(x, Lane) else x
    )
    return _read(classes, call.run(*args, **kwargs))


def _read(classes: Classes, moved: Any) -> Lanes:
    if isinstance(moved, Tensor):
        return classes.read(moved)
    return tuple(_read(classes, part) for part in moved)


def same(classes: Classes, call: Call) -> Lanes:
    """Element-wise: operands are tied channel by channel after broadcasting."""
    if not isinstance(call.result, Tensor):
        return fixed(call.result) if not call.lanes() else refuse(classes, call)
    lane, fits = classes.join(call.lanes(), call.result.shape)
    if not fits:
        raise UnfollowableError("its operands have their channels in different dimensions")
    return lane


def keep(classes: Classes, call: Call) -> Lanes:
    """Changes type, place or layout in memory of its first argument, nothing else."""
    return call.lane()


def glu(classes: Classes, call: Call) -> Lanes:
    """Gated linear unit: the two halves along a dimension are tied."""
    lane = call.lane()
    first, second = classes.full(lane).chunk(2, dim=call.option(1, "dim", default=-1))
    classes.union(first.numpy(), second.numpy())
    return _read(classes, torch.from_numpy(classes.roots(first.numpy())))


def cat(classes: Classes, call: Call) -> Lanes:
    """Joins along a dimension; spared from executing on indices because dense nets do it a lot."""
    parts, dim = call.option(0, "tensors"), call.option(1, "dim", "axis", default=0)
    shape = tuple(call.result.shape)
    dim = dim % len(shape)
    others = {part.dim for part in parts} - {None}
    if others - {dim}:
        return move(classes, Call(call.name, call.run, (list(parts), dim), {}, call.result))
    if not others:
        return Lane.fixed(shape)
    ids = [part.ids if part.dim == dim else np.zeros(part.shape[dim], dtype=np.int64) for part in parts]
    return Lane(shape, dim, np.concatenate(ids))


def pad(classes: Classes, call: Call) -> Lanes:
    """Zero padding makes a new channel of each new position; padding other dimensions keeps the channels."""
    lane, amounts = call.lane(), list(call.option(1, "pad"))
    shape = tuple(call.result.shape)
    if lane.dim is None:
        return Lane.fixed(shape)
    place = 2 * (len(shape) - 1 - lane.dim)
    before, after = amounts[place : place + 2] if place < len(amounts) else (0, 0)
    if (before, after) == (0, 0):
        return Lane(shape, lane.dim, lane.ids)
    if call.option(2, "mode", default="constant") != "constant" or min(before, after) < 0:
        raise UnfollowableError("it pads channels with other than new constant ones")
    ids = np.concatenate([classes.fresh(before), lane.ids, classes.fresh(after)])
    return Lane(shape, lane.dim, ids)


def spatial(classes: Classes, call: Call) -> Lanes:
    """Pooling and resizing: each channel by itself, channels in dimension 1."""
    digits = [int(c) for c in call.name if c.isdigit()]
    lane = call.lane()
    count = digits[-1] if digits else len(lane.shape) - 2
    if len(lane.shape) != count + 2 or not isinstance(call.result, Tensor):
        raise UnfollowableError("only batched input without returned indices is followed")
    if lane.dim is None:
        return Lane.fixed(call.result.shape)
    if lane.dim != 1:
        raise UnfollowableError("the channels lie in another dimension than 1")
    return Lane(tuple(call.result.shape), 1, lane.ids)


def reduce(classes: Classes, call: Call) -> Lanes:
    """Reduction over dimensions that hold no channels; of two tensors (torch.maximum's other name), element-wise."""
    if len(call.lanes()) > 1:
        return same(classes, call)
    lane, dims = call.lane(), call.option(1, "dim", "axis")
    count = len(lane.shape)
    dims = range(count) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % count for d in dims} or set(range(count))
    if lane.dim is None:
        return fixed(call.result)
    if lane.dim in gone:
        raise UnfollowableError("it mixes channels")
    value = call.result if isinstance(call.result, Tensor) else call.result[0]
    kept = lane.dim if value.dim() == count else lane.dim - sum(d < lane.dim for d in gone)
    result = Lane(tuple(value.shape), kept, lane.ids)
    return result if isinstance(call.result, Tensor) else (result, *(Lane.fixed(r.shape) for r in call.result[1:]))


def along(classes: Classes, call: Call) -> Lanes:
    """Normalises along a dimension that holds no channels (softmax over positions)."""
    lane = call.lane()
    default = 1 if call.name == "normalize" else None
    dim = call.option(2 if call.name == "normalize" else 1, "dim", default=default)
    if lane.dim is None:
        return Lane.fixed(lane.shape)
    if not isinstance(dim, int) or dim % len(lane.shape) == lane.dim:
        raise UnfollowableError("it mixes channels")
    return lane


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_named(same, """
        relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh softplus softsign
        logsigmoid tanhshrink hardshrink softshrink threshold rrelu add sub mul div truediv floordiv true_divide rsub
        subtract multiply divide neg negative pow square sqrt rsqrt exp expm1 log log1p log2 abs absolute sign clamp
        clamp_min clamp_max clip sin cos erf reciprocal maximum minimum where masked_fill lerp addcmul addcdiv fmod
        remainder round floor ceil dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
        eq ne lt le gt ge logical_not logical_and logical_or logical_xor iadd isub imul itruediv nan_to_num
        expand_as
        """),
    **_named(move, """
        view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t squeeze unsqueeze getitem
        chunk split unbind select narrow expand repeat tile stack flip pixel_shuffle pixel_unshuffle channel_shuffle
        view_as reshape_as
        """),
    **_named(keep, "float double half bfloat16 to type type_as contiguous clone detach zeros_like ones_like fill zero"),
    **_named(cat, "cat concat concatenate"),
    **_named(pad, "pad"),
    **_named(spatial, """
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d interpolate upsample
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d
        """),
    **_named(reduce, "mean sum amax amin max min std var logsumexp"),
    **_named(along, "softmax log_softmax normalize softmin cumsum"),
    "glu": glu,
}  # fmt: skip

_SAME_MODULES = """
    ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh Softplus Softsign
    LogSigmoid Tanhshrink Hardshrink Softshrink Threshold RReLU Dropout Dropout1d Dropout2d Dropout3d AlphaDropout
    FeatureAlphaDropout Identity
    """
_SPATIAL_MODULES = """
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d
    AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d UpsamplingNearest2d UpsamplingBilinear2d
    Upsample ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d
    ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d CircularPad1d CircularPad2d CircularPad3d
    """
MODULE_RULES: dict[type[nn.Module], Rule] = {
    **{getattr(nn, name): same for name in _SAME_MODULES.split()},
    **{getattr(nn, name): spatial for name in _SPATIAL_MODULES.split()},
    **dict.fromkeys((nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), move),
}

# Public names come first, so that torch.relu and F.relu both read "relu" whatever their __name__ says.
_FUNCTIONS = {
    id(value): name
    for space in (operator, F, torch)
    for name, value in vars(space).items()
    if callable(value) and not name.startswith("__")
}


def operation_name(node: fx.Node) -> str | None:
    """The operation of a function or method node as the tables name it; None for a function that is not PyTorch's."""
    name = node.target if isinstance(node.target, str) else _FUNCTIONS.get(id(node.target))
    return None if name is None else name.rstrip("_")


OVER_CHANNELS = "it normalises over the channels, so that removing one changes all others"
"""Why a norm is refused whose mean and variance are those of all channels."""
_PRODUCT = "it multiplies two activations"
_RECURRENT = "automc does not cut the weights of its gates"
_REASONS = {
    **dict.fromkeys(["LayerNorm", "RMSNorm", "LocalResponseNorm", "layer_norm", "rms_norm"], OVER_CHANNELS),
    **dict.fromkeys(["matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"], _PRODUCT),
    **dict.fromkeys(["RNN", "LSTM", "GRU"], _RECURRENT),
    **dict.fromkeys(["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"], "it is transposed and has conv-groups"),
}


def why_unknown(name: str) -> str:
    """Why an operation that stands in no table is refused."""
    return _REASONS.get(name, "automc does not know what it does to channels")


def rule_for(name: str) -> Rule | None:
    """The rule of a function or method; None when it is unknown."""
    return RULES.get(name)


def any_free(classes: Classes, call: Call) -> bool:
    """Whether a refusal costs anything: whether some input could still be pruned."""
    return any(classes.free(lane) for lane in leaves(tuple(call.lanes())))
