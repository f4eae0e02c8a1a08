"""Runs a traced model once while following the channel indices of every activation through it.

The real forward runs in eval mode on a small batch, so Python's own shape arithmetic (x.size(0) // 2) is simply real.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from automc.graph.channels import Classes, Lane, Lanes, leaves
from automc.graph.counting import counted
from automc.graph.facts import IntArray, Refusal
from automc.graph.holders import GroupNorm, Holders, Layer, Norm, as_group_norm, as_layer, as_norm, norm_groups
from automc.graph.operations import (
    MODULE_RULES,
    OVER_CHANNELS,
    Call,
    Rule,
    UnfollowableError,
    any_free,
    fixed,
    operation_name,
    refuse,
    rule_for,
    why_unknown,
)
from automc.graph.runs import copies, repeatable, tensors

ONE_TENSOR = "one tensor"
"""In a node's notes: whether its value is a single tensor, and not several, as of `chunk`, or a number."""


@dataclass(frozen=True, eq=False, slots=True)
class Propagation:
    """What one run has shown."""

    lanes: dict[str, Lanes]
    """Per node name."""
    concrete: dict[str, tuple[tuple[Any, ...], dict[str, Any]]]
    """Arguments of each function and method node, with shapes and numbers worked out and lanes in place of tensors."""
    holders: Holders
    classes: Classes
    refused: list[Refusal]
    calls: dict[str, list[str]] = field(default_factory=dict)
    """Node names per layer and norm, in forward order."""
    macs: dict[str, float] = field(default_factory=dict)
    """Multiply-accumulates per sample of each node."""
    outputs: tuple[Tensor, ...] = ()


class Follower(fx.Interpreter):
    """Interpreter whose every node also gets lanes."""

    def __init__(self, module: fx.GraphModule, model: nn.Module) -> None:
        super().__init__(module)
        classes = Classes()
        self.seen = Propagation({}, {}, Holders(model, classes), classes, [])
        self._classes, self._holders = classes, self.seen.holders
        self._constants: set[fx.Node] = set()
        self._names = {id(m): name for name, m in model.named_modules()}

    def follow(self, inputs: tuple[Tensor, ...]) -> Propagation:
        """Runs the model on inputs of batch 2."""
        with repeatable(), counted(inputs) as self._macs:
            outputs = tensors(self.run(*copies(inputs)))
        self.seen.refused.extend(self._holders.refused)
        return replace(self.seen, outputs=outputs)

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and notes its lanes."""
        args, kwargs = self._with_lanes(n.args), self._with_lanes(n.kwargs)
        before = self._macs()
        result = super().run_node(n)
        self.seen.macs[n.name] = self._macs() - before
        n.meta[ONE_TENSOR] = isinstance(result, Tensor)
        call = Call(n.name, lambda *_: None, args, kwargs, result)
        if n.op == "call_module":
            lanes = self._module(n, self.fetch_attr(str(n.target)), call)
        elif n.op == "get_attr":
            lanes = self._attribute(n, result)
        elif n.op in ("call_function", "call_method"):
            lanes = self._operation(n, call)
        else:
            lanes = refuse(self._classes, call)  # inputs and outputs are never offered
        self.seen.lanes[n.name] = lanes
        if isinstance(lanes, Lane) and n.op != "placeholder" and not isinstance(result, nn.Parameter):
            sources = [m for m in n.all_input_nodes if self.seen.lanes[m.name] is not None]
            if all(m in self._constants for m in sources):
                self._constants.add(n)
        return result

    def _with_lanes(self, tree: Any) -> Any:
        """Node arguments with lanes in place of tensors and values in place of everything else."""
        return fx.node.map_arg(
            tree, lambda n: self.env[n] if self.seen.lanes[n.name] is None else _as_list(self.seen.lanes[n.name])
        )

    def _operation(self, n: fx.Node, call: Call) -> Lanes:
        self.seen.concrete[n.name] = call.args, call.kwargs
        if not call.lanes() or (n.target is getattr and not isinstance(call.result, Tensor)):
            return fixed(call.result)
        name = operation_name(n)
        if name == "getitem" and isinstance(call.args[0], list):
            return _as_lanes(call.args[0][call.args[1]])
        if dataclasses.is_dataclass(call.result):
            return refuse(self._classes, call)  # outputs by name
        if not _holds_tensors(call.result):
            return None  # shapes, sizes and types say nothing about channels
        shown = name or str(getattr(n.target, "__name__", n.target))
        call = Call(shown, _runner(n), call.args, call.kwargs, call.result)
        return self._apply(n, None if name is None else rule_for(name), call)

    def _module(self, n: fx.Node, module: nn.Module, call: Call) -> Lanes:
        name = self._names[id(module)]
        layer, norm = as_layer(module), as_norm(module)
        if layer is not None or norm is not None:
            self.seen.calls.setdefault(name, []).append(n.name)
        if layer is not None:
            return self._layer(name, layer, call)
        if norm is not None:
            return self._norm(name, norm, call)
        if isinstance(module, nn.Embedding):
            return self._embedding(name, module, call)
        shown = Call(type(module).__name__, module, call.args, call.kwargs, call.result)
        if isinstance(module, nn.PReLU):
            return self._apply(n, self._prelu(module), shown)
        if type(module) in (nn.Softmax, nn.LogSoftmax):
            rule = rule_for("softmax")
            return self._apply(n, rule, Call(shown.name, module, (*call.args, module.dim), call.kwargs, call.result))
        group_norm = as_group_norm(module)
        known = MODULE_RULES.get(type(module)) if group_norm is None else self._group_norm(name, group_norm)
        return self._apply(n, known, shown, always=any(True for _ in module.parameters()))

    def _apply(self, n: fx.Node, rule: Rule | None, call: Call, *, always: bool = False) -> Lanes:
        """The rule's lanes; without a rule, or where it gives up, everything is pinned and the refusal noted."""
        reason = why_unknown(call.name)
        free = any_free(self._classes, call)
        if rule is not None:
            try:
                lanes = rule(self._classes, call)
                if free and not any(self._classes.free(lane) for lane in leaves(lanes)):
                    self._blame_constants(n)
                return lanes
            except UnfollowableError as error:
                reason = str(error)
        if always or (free and not _gives_output(n, call)):
            self._refuse(_place(n), call.name, reason)
        return refuse(self._classes, call)

    def _blame_constants(self, n: fx.Node) -> None:
        """Channels that met a buffer or a tensor made in forward have that one's size from now on."""
        for source in n.all_input_nodes:
            if source in self._constants:
                kind = "buffer" if source.op == "get_attr" else "constant"
                where = str(source.target) if source.op == "get_attr" else source.name
                self._refuse(where, kind, "it spans the channels and cannot lose any")

    def _refuse(self, where: str, operation: str, reason: str) -> None:
        refusal = Refusal(where, operation, reason)
        if refusal not in self.seen.refused:
            self.seen.refused.append(refusal)

    def _channels(self, lane: Lane, dim: int, where: str, operation: str) -> IntArray:
        """Ids along the dimension a layer reads; channels that lie elsewhere are pinned."""
        dim %= len(lane.shape)
        if lane.dim == dim:
            return lane.ids
        if lane.dim is not None and self._classes.free(lane):
            self._refuse(where, operation, f"its input's channels lie in dimension {lane.dim}, not {dim}")
        self._classes.pin(lane.ids)
        return np.zeros(lane.shape[dim], dtype=np.int64)

    def _layer(self, name: str, layer: Layer, call: Call) -> Lane:
        rows, columns = self._holders.layer(name, layer)
        lane = call.lane()
        dim = len(lane.shape) - 1 if isinstance(layer, nn.Linear) else len(lane.shape) - len(layer.kernel_size) - 1
        self._classes.union(columns, self._channels(lane, dim, name, type(layer).__name__))
        return Lane(tuple(call.result.shape), dim, rows)

    def _norm(self, name: str, norm: Norm, call: Call) -> Lane:
        lane = call.lane()
        ids = self._holders.norm(name, norm.num_features)
        self._classes.union(ids, self._channels(lane, 1, name, type(norm).__name__))
        return Lane(lane.shape, 1, ids)

    def _embedding(self, name: str, module: nn.Embedding, call: Call) -> Lanes:
        refuse(self._classes, call)
        if len(self._holders.names(module.weight)) != 1 or module.max_norm is not None:
            self._refuse(name, "Embedding", "its table is shared or renormalised")
            return fixed(call.result)
        _, ids = self._holders.parameter(module.weight, 1, produces=True)
        shape = tuple(call.result.shape)
        return Lane(shape, len(shape) - 1, ids)

    def _prelu(self, module: nn.PReLU) -> Rule:
        def rule(classes: Classes, call: Call) -> Lanes:
            lane = call.lane()
            if module.num_parameters == 1:
                return lane
            _, ids = self._holders.parameter(module.weight, 0)
            classes.union(ids, self._channels(lane, 1, _name(self._names, module), "PReLU"))
            return Lane(lane.shape, 1, ids)

        return rule

    def _group_norm(self, name: str, norm: GroupNorm) -> Rule:
        """Channels that share a mean and a variance leave together: without one of them the others would change."""

        def rule(classes: Classes, call: Call) -> Lanes:
            if norm_groups(norm) == 1:
                raise UnfollowableError(OVER_CHANNELS)
            if norm.weight is None or any(True for _ in norm.buffers()):
                raise UnfollowableError("only one with weights, and without running statistics, can be cut")
            ids = self._channels(call.lane(), 1, name, call.name)
            together = ids.reshape(norm_groups(norm), -1)
            classes.union(together, np.broadcast_to(together[:, :1], together.shape))
            for parameter in norm.parameters():
                classes.union(self._holders.parameter(parameter, 0)[1], ids)
            return Lane(call.lane().shape, 1, ids)

        return rule

    def _attribute(self, n: fx.Node, value: Any) -> Lanes:
        """A bare parameter's channels lie in dimension 1 of four, else in the last; a buffer's are pinned."""
        if not isinstance(value, nn.Parameter):
            return fixed(value)
        owner = self._holders.owner(value)
        if owner is not None:
            for ids in self._holders.layer(*owner):
                self._classes.pin(ids)
            self._refuse(owner[0], type(owner[1]).__name__, "its weight is used outside the layer")
        wide = [d for d, size in enumerate(value.shape) if size > 1]
        if owner is not None or not wide or not self._holders.names(value):
            return fixed(value)
        dim = 1 if value.dim() == 4 and 1 in wide else wide[-1]
        dim, ids = self._holders.parameter(value, dim)
        return Lane(tuple(value.shape), dim, ids)


def _gives_output(n: fx.Node, call: Call) -> bool:
    """Whether a node's value is the model's output, in the shape of its input: those channels were never offered."""
    shape = tuple(call.result.shape) if isinstance(call.result, Tensor) else None
    return all(user.op == "output" for user in n.users) and all(lane.shape == shape for lane in call.lanes())


def _runner(n: fx.Node) -> Callable[..., Any]:
    """The operation of a function or method node."""
    if isinstance(n.target, str):
        method = n.target
        return lambda x, *args, **kwargs: getattr(x, method)(*args, **kwargs)
    return n.target


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return any(_holds_tensors(part) for part in value)
    return isinstance(value, Tensor)


def _as_list(lanes: Lanes) -> Any:
    """fx maps over lists and tuples alike but keeps their kind; lists mark a node that holds several tensors."""
    return [_as_list(part) for part in lanes] if isinstance(lanes, tuple) else lanes


def _as_lanes(tree: Any) -> Lanes:
    return tuple(_as_lanes(part) for part in tree) if isinstance(tree, (list, tuple)) else tree


def _name(names: dict[int, str], module: nn.Module) -> str:
    return names[id(module)]


def _place(n: fx.Node) -> str:
    """The module path a node belongs to, or the node's own name at the top."""
    if n.op == "call_module":
        return str(n.target)
    stack = [path for path, _ in (n.meta.get("nn_module_stack") or {}).values() if path]
    return str(stack[-1]) if stack else n.name
