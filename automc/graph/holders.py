"""Channel ids of everything that holds weights: layers, batch norms, embeddings, bare parameters.

Ids belong to the weight tensor, not to the call, so a module called twice and layers with tied weights share them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from automc.graph.channels import Classes
from automc.graph.facts import IntArray, Refusal

Transposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | Transposed
Norm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
GroupNorm: TypeAlias = nn.GroupNorm | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_GROUP_NORMS = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def as_layer(module: nn.Module) -> Layer | None:
    """The module as a layer: conv or linear with a plain weight that computes what its torch class does; else None.

    A transposed convolution is one if it has no conv-groups.
    """
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        return None
    if isinstance(module, _LAYERS) and "weight" in module._parameters:
        base = torchs_class(module)
        if type(module).forward is base.forward or _same(module, base):
            return module
    return None


def torchs_class(layer: Layer) -> type[nn.Module]:
    """The class of torch's that a layer is one of."""
    return next(kind for kind in _LAYERS if isinstance(layer, kind))


_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _same(module: Layer, base: type[nn.Module]) -> bool:
    """Whether a forward of somebody's own gives what the torch class gives, for inputs of an odd and an even size."""
    if module not in _known:
        try:
            with torch.no_grad():
                _known[module] = all(torch.equal(module.forward(x), base.forward(module, x)) for x in _inputs(module))
        except Exception:  # whatever it asks of its input that these do not meet
            _known[module] = False
    return _known[module]


def _inputs(layer: Layer) -> Iterator[Tensor]:
    """Small inputs of a layer."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        sizes: list[tuple[int, ...]] = [(2, layer.in_features)]
    else:
        least = [d * (k - 1) + 2 * s for d, k, s in zip(layer.dilation, layer.kernel_size, layer.stride, strict=True)]
        sizes = [(2, layer.in_channels, *(n + more for n in least)) for more in (0, 1)]
    for size in sizes:
        yield torch.randn(size, generator=generator).to(layer.weight)


def as_norm(module: nn.Module) -> Norm | None:
    """The module as a batch norm, whatever it does to each channel besides; else None.

    Some norms of others have the activation behind them inside. That they mix no channels, the check of groups tells.
    """
    return module if isinstance(module, _NORMS) else None


def as_group_norm(module: nn.Module) -> GroupNorm | None:
    """The module as a norm over groups of a sample's own channels, if it is torch's; else None."""
    return module if isinstance(module, _GROUP_NORMS) and type(module) in _GROUP_NORMS else None


def norm_groups(norm: GroupNorm) -> int:
    """How many groups of channels have a mean and a variance of their own."""
    return norm.num_groups if isinstance(norm, nn.GroupNorm) else norm.num_features


def axes(layer: nn.Module) -> tuple[int, int]:
    """Dimensions of a layer's weight along which its outputs and its inputs lie."""
    return (1, 0) if isinstance(layer, TRANSPOSED) else (0, 1)


def sizes(layer: Layer) -> tuple[int, int, int]:
    """(out channels, in channels, conv-groups) of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features, 1
    return layer.out_channels, layer.in_channels, layer.groups


@dataclass(frozen=True, eq=False, slots=True)
class Holder:
    """One side of one tensor holder."""

    target: str
    kind: str
    axis: str | int
    ids: IntArray
    produces: bool
    """Whether channels come into being here."""


class Holders:
    """Ids of all holders of a model, handed out at first use, in forward order."""

    def __init__(self, model: nn.Module, classes: Classes) -> None:
        self.refused: list[Refusal] = []
        self._classes = classes
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(name)
        self._layers: dict[str, tuple[IntArray, IntArray]] = {}
        self._weights: dict[int, tuple[IntArray, IntArray]] = {}  # ids along a weight's first two dimensions
        self._biases: dict[int, IntArray] = {}
        self._norms: dict[str, IntArray] = {}
        self._parameters: dict[str, tuple[int, IntArray, bool]] = {}

    def __iter__(self) -> Iterator[Holder]:
        for name, (rows, columns) in self._layers.items():
            yield Holder(name, "layer", "out", rows, True)
            yield Holder(name, "layer", "in", columns, False)
        for name, ids in self._norms.items():
            yield Holder(name, "norm", "out", ids, False)
        for name, (dim, ids, produces) in self._parameters.items():
            yield Holder(name, "parameter", dim, ids, produces)

    def layer(self, name: str, layer: Layer) -> tuple[IntArray, IntArray]:
        """(out ids, in ids) of a layer; weights used by anything but layers are pinned."""
        if name in self._layers:
            return self._layers[name]
        known = self._weights.get(id(layer.weight))
        out, fan_in = axes(layer)
        rows, columns = (known[out], known[fan_in]) if known else self._tied_by_conv_groups(layer)
        self._layers[name] = rows, columns
        self._weights[id(layer.weight)] = (rows, columns) if out == 0 else (columns, rows)
        outside = self._users_outside_layers(layer.weight)
        if outside:
            self._classes.pin(rows)
            self._classes.pin(columns)
            self.refused.append(Refusal(name, "tied weight", f"its weight is also {outside}, which is no layer"))
        if layer.bias is not None:
            self._classes.union(self._biases.setdefault(id(layer.bias), rows), rows)
        return rows, columns

    def norm(self, name: str, channels: int) -> IntArray:
        """Ids of a batch norm's channels."""
        if name not in self._norms:
            self._norms[name] = self._classes.fresh(channels)
        return self._norms[name]

    def parameter(self, parameter: Tensor, dim: int, *, produces: bool = False) -> tuple[int, IntArray]:
        """(dimension, ids) of a bare parameter's channels; the dimension of its first use stays."""
        name = self._names[id(parameter)][0]
        if name not in self._parameters:
            self._parameters[name] = dim, self._classes.fresh(parameter.shape[dim]), produces
        found, ids, _ = self._parameters[name]
        return found, ids

    def names(self, parameter: Tensor) -> list[str]:
        """All paths of a parameter; empty for a tensor that is none."""
        return self._names.get(id(parameter), [])

    def owner(self, parameter: Tensor) -> tuple[str, Layer] | None:
        """The first layer whose weight this parameter is."""
        for path in self.names(parameter):
            name, _, leaf = path.rpartition(".")
            layer = as_layer(self._modules[name])
            if layer is not None and leaf == "weight":
                return name, layer
        return None

    def _tied_by_conv_groups(self, layer: Layer) -> tuple[IntArray, IntArray]:
        """New ids; conv-groups lose the same positions, a depthwise output leaves with its input."""
        out, fan_in, groups = sizes(layer)
        rows, columns = self._classes.fresh(out), self._classes.fresh(fan_in)
        if groups > 1 and groups == fan_in:
            self._classes.union(rows, np.repeat(columns, out // fan_in))
        elif groups > 1:
            for ids in (rows.reshape(groups, -1), columns.reshape(groups, -1)):
                self._classes.union(ids, np.broadcast_to(ids[:1], ids.shape))
        return rows, columns

    def _users_outside_layers(self, weight: Tensor) -> str | None:
        for path in self.names(weight):
            module, _, leaf = path.rpartition(".")
            if leaf != "weight" or as_layer(self._modules[module]) is None:
                return path
        return None
