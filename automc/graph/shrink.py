"""Physical shrinking: a copy of the model without the removed channels.

Small tensors are cut first and handed to deepcopy as already copied, so dense weights are never copied and everything
that shared a parameter still shares it.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from automc.errors import GraphError
from automc.graph import holders
from automc.graph.blocks import dropped
from automc.graph.facts import Group, IntArray, Member, ModelFacts
from automc.graph.holders import TRANSPOSED
from automc.graph.model_graph import ModelGraph
from automc.graph.rewrite import BoolArray, Edit, edits


def shrink(graph: ModelGraph, model: nn.Module, kept: Mapping[str, IntArray], without: Sequence[str] = ()) -> nn.Module:
    """A copy of the dense `model` that keeps only `kept` units (sorted) of each named group, all of the others, and is
    `without` the named blocks.

    The user's own class when only modules change, else a GraphModule with rewritten constants. Raises GraphError for
    an unknown group or block and for units that are empty, out of range, unsorted or repeated.
    """
    checked = _checked(graph.facts, kept)
    small = _shrunk_copy(graph.facts, model, checked)
    changes = _changes(graph, checked)
    if without and graph.graph is not None:
        changes = changes | dropped(graph.graph, [graph.facts.block(name) for name in without])
    found = _graph_module(graph, small, changes) if changes else small
    if without and isinstance(found, fx.GraphModule):
        gone = frozenset[str]().union(*(graph.facts.block(name).nodes for name in without))
        bare = {str(n.target) for n in found.graph.nodes if n.op == "get_attr" and n.name in gone}
        found.graph.eliminate_dead_code(lambda node: node.name not in gone)  # what was dead before is counted still
        found.delete_all_unused_submodules()
        _delete_parameters_(found, bare)
        found.recompile()
    return found


def _delete_parameters_(module: fx.GraphModule, names: Iterable[str]) -> None:
    """Deletes those of some bare parameters that no node reads any more."""
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    left = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name in left & set(names) - read:
        parent, _, child = name.rpartition(".")
        delattr(module.get_submodule(parent), child)


def shrunk_graph_module(graph: ModelGraph, model: nn.Module, kept: Mapping[str, IntArray]) -> fx.GraphModule:
    """As `shrink`, but always a GraphModule whose nodes have the names of `graph.graph`'s."""
    checked = _checked(graph.facts, kept)
    return _graph_module(graph, _shrunk_copy(graph.facts, model, checked), _changes(graph, checked))


def removed_classes(graph: ModelGraph, kept: Mapping[str, IntArray]) -> BoolArray:
    """Which channel classes are gone (classes,)."""
    removed = np.zeros(graph.class_count, dtype=np.bool_)
    for name, units in kept.items():
        gone = np.ones(len(graph.unit_classes[name]), dtype=np.bool_)
        gone[units] = False
        removed[graph.unit_classes[name][gone]] = True
    return removed


def cut_tensors(model: nn.Module, members: Iterable[tuple[Member, IntArray]]) -> dict[int, Any]:
    """deepcopy's memo of small tensors by the dense ones' ids, for members and the units each of them loses."""
    keeps: dict[tuple[str, str | int], BoolArray] = {}
    kinds: dict[str, str] = {}
    for member, lost in members:
        key = member.target, member.axis
        keep = keeps.setdefault(key, np.ones(axis_size(model, member), dtype=np.bool_))
        keep[member.index[lost]] = False
        kinds[member.target] = member.kind
    memo: dict[int, Any] = {}
    done: dict[int, tuple[bytes, ...]] = {}
    for target, kind in kinds.items():
        axes = {axis: keep for (name, axis), keep in keeps.items() if name == target}
        for tensor, cuts in _cuts(model, target, kind, axes):
            key_bytes = tuple(cut.tobytes() for cut in cuts.values())
            if done.setdefault(id(tensor), key_bytes) != key_bytes:
                raise GraphError(
                    f"Tied tensors must lose the same channels; {target!r} shares one that does not: "
                    "leave its group dense."
                )
            memo[id(tensor)] = _cut(tensor, cuts)
    return memo


def axis_size(model: nn.Module, member: Member) -> int:
    """Positions along a member's axis in the dense model."""
    if member.kind == "parameter":
        return model.get_parameter(member.target).shape[int(member.axis)]
    module = model.get_submodule(member.target)
    if isinstance(module, nn.Linear):
        return module.out_features if member.axis == "out" else module.in_features
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    assert isinstance(module, nn.modules.conv._ConvNd)
    return module.out_channels if member.axis == "out" else module.in_channels


def resize_(small: nn.Module, kept_in: int | None) -> None:
    """Brings a module's size attributes in line with its tensors; kept_in is its inputs left, if it lost any."""
    if isinstance(small, nn.Linear):
        small.out_features, small.in_features = small.weight.shape
    elif isinstance(small, TRANSPOSED):
        small.in_channels, small.out_channels = small.weight.shape[:2]
    elif isinstance(small, nn.modules.conv._ConvNd):
        if small.groups > 1 and small.groups == small.in_channels and kept_in is not None:
            small.groups = kept_in
        small.out_channels, small.in_channels = small.weight.shape[0], small.weight.shape[1] * small.groups
    elif isinstance(small, nn.modules.batchnorm._BatchNorm):
        held = small.running_mean if small.weight is None else small.weight
        if held is not None:
            small.num_features = len(held)
    elif isinstance(small, nn.Embedding):
        small.embedding_dim = small.weight.shape[1]
    elif isinstance(small, nn.PReLU):
        small.num_parameters = len(small.weight)
    elif isinstance(small, nn.GroupNorm):
        each = small.num_channels // small.num_groups
        small.num_channels = len(small.weight)
        small.num_groups = small.num_channels // each
    elif isinstance(small, nn.modules.instancenorm._InstanceNorm):
        small.num_features = len(small.weight)


def lost_members(groups: Iterable[Group], kept: Mapping[str, IntArray]) -> list[tuple[Member, IntArray]]:
    """Every member of the groups with the units it loses."""
    pairs = []
    for group in groups:
        if group.name in kept and len(kept[group.name]) < group.units:
            lost = np.setdiff1d(np.arange(group.units), kept[group.name])
            pairs += [(member, lost) for member in group.members]
    return pairs


def kept_inputs(dense: nn.Module, pairs: Iterable[tuple[Member, IntArray]]) -> dict[str, int]:
    """Input channels left of every layer that loses some."""
    left: dict[str, int] = {}
    for member, lost in pairs:
        if member.axis == "in":
            left[member.target] = left.get(member.target, axis_size(dense, member)) - member.index[lost].size
    return left


def holder_path(member: Member) -> str:
    """Path of the module that holds a member."""
    return member.target.rpartition(".")[0] if member.kind == "parameter" else member.target


def _shrunk_copy(facts: ModelFacts, model: nn.Module, kept: Mapping[str, IntArray]) -> nn.Module:
    pairs = lost_members(facts.groups, kept)
    small = copy.deepcopy(model, cut_tensors(model, pairs))
    inputs = kept_inputs(model, pairs)
    for path in dict.fromkeys(holder_path(member) for member, _ in pairs):
        resize_(small.get_submodule(path), inputs.get(path))
    return small


def _changes(graph: ModelGraph, kept: Mapping[str, IntArray]) -> dict[str, Edit]:
    if graph.graph is None or not kept:
        return {}
    return edits(graph.graph, graph.lanes, graph.concrete, removed_classes(graph, kept))


def _cuts(
    model: nn.Module, target: str, kind: str, axes: Mapping[str | int, BoolArray]
) -> Iterable[tuple[Tensor, dict[int, IntArray]]]:
    """(tensor, positions kept per dimension) of everything a target holds."""
    if kind == "parameter":
        yield model.get_parameter(target), {int(axis): np.flatnonzero(keep) for axis, keep in axes.items()}
        return
    module = model.get_submodule(target)
    out = np.flatnonzero(axes["out"]) if "out" in axes else None
    for name in ("bias",) if kind == "layer" else ("weight", "bias", "running_mean", "running_var"):
        held = getattr(module, name)
        if isinstance(held, Tensor) and out is not None:
            yield held, {0: out}
    if kind == "layer":
        assert isinstance(module.weight, Tensor)
        columns = _columns(module, axes["in"], target) if "in" in axes else None
        cuts = zip(holders.axes(module), (out, columns), strict=True)
        yield module.weight, {d: keep for d, keep in sorted(cuts) if keep is not None}
        if "out" in axes and not _depthwise(module):
            _per_conv_group(module, axes["out"], target)


def _columns(module: nn.Module, keep: BoolArray, target: str) -> IntArray | None:
    """Kept positions of a weight's dimension 1; None for a depthwise layer, which has one column."""
    return None if _depthwise(module) else np.flatnonzero(_per_conv_group(module, keep, target)[0])


def _per_conv_group(module: nn.Module, keep: BoolArray, target: str) -> BoolArray:
    """A layer's channels as (conv-groups, channels each), which must lose the same positions."""
    rows = keep.reshape(getattr(module, "groups", 1), -1)
    if (rows != rows[0]).any():
        raise GraphError(
            f"Conv-groups must lose the same positions; those of {target!r} differ: leave its group dense."
        )
    return rows


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and module.groups == module.in_channels


def _cut(tensor: Tensor, keeps: Mapping[int, IntArray]) -> Tensor:
    small = tensor.detach()
    for dim, keep in keeps.items():
        small = small.index_select(dim, torch.from_numpy(keep).to(tensor.device))
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        small = small.contiguous(memory_format=torch.channels_last)
    elif not keeps:
        small = small.clone()
    return nn.Parameter(small, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


def _checked(facts: ModelFacts, kept: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """Kept units of the groups that lose any; raises GraphError as `shrink` says."""
    checked = {}
    for name, given in kept.items():
        group = facts.group(name)
        units = np.asarray(given)
        legal = units.ndim == 1 and units.size > 0 and np.issubdtype(units.dtype, np.integer)
        if not legal or units[0] < 0 or units[-1] >= group.units or (np.diff(units) <= 0).any():
            raise GraphError(
                f"Kept units must be sorted, distinct, at least one and below {group.units}; group {name!r} was given "
                f"{units.tolist()}: list each unit to keep once, in order."
            )
        if units.size < group.units:
            checked[name] = units.astype(np.int64)
    return checked


def _graph_module(graph: ModelGraph, small: nn.Module, changes: Mapping[str, Edit]) -> fx.GraphModule:
    """The traced forward over the small modules, with the edits in place."""
    if graph.graph is None:
        raise GraphError(
            "A graph module must come from a model that can be traced; this one cannot: call shrink instead."
        )
    copied: dict[fx.Node, fx.Node] = {}
    new = fx.Graph()
    result = new.graph_copy(graph.graph, copied)
    new.output(result)
    for old, node in copied.items():
        edit = changes.get(old.name)
        if edit is not None:
            node.args = fx.node.map_arg(edit.args, lambda n: copied[n])
            node.kwargs = fx.node.map_arg(edit.kwargs, lambda n: copied[n])
            if edit.function is not None:
                node.op, node.target = "call_function", edit.function
    module = fx.GraphModule(small, new, class_name=type(small).__name__)
    for name, part in module.named_modules():
        part.training = small.get_submodule(name).training
    return module
