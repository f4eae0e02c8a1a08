"""The check every group passes before it is offered: removing its channels must equal zeroing them.

Both runs use random weights and statistics in float64, so that no zero weight hides a wrong index. The truth
multiplies the channels by 0 in every activation that carries them; the claim runs the shrunk layers with rewritten
constants. They are compared wherever the channels end.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from automc.errors import GraphError
from automc.graph.channels import Lane, Lanes, leaves
from automc.graph.facts import Group, IntArray
from automc.graph.model_graph import ModelGraph
from automc.graph.rewrite import BoolArray, Edit, edits
from automc.graph.shrink import cut_tensors, holder_path, kept_inputs, lost_members, removed_classes, resize_

TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False, slots=True)
class Bench:
    """A randomised copy of the model and the values of its dense run."""

    module: nn.Module
    values: Mapping[str, Any]
    """Per node."""


@dataclass(frozen=True, eq=False, slots=True)
class Span:
    """The nodes to run for one group, and those to compare."""

    nodes: tuple[fx.Node, ...]
    exits: frozenset[str]
    """Nodes that read the group's channels and carry none."""


def build_bench(graph: ModelGraph, model: nn.Module, *, seed: int = 0) -> Bench:
    """Randomised copy of `model` in float64 (float32 if its forward insists) with its dense values."""
    if graph.graph is None:
        raise GraphError(
            "Groups can only be verified in a model that can be traced; this one cannot: it has no groups."
        )
    error: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        module = randomised(model, dtype, seed)
        try:
            return Bench(module, _run(graph.graph.nodes, module, {}, inputs=random_inputs(graph.inputs, dtype, seed)))
        except Exception as caught:  # whatever the user's own forward raises on doubles
            error = caught
    raise GraphError(
        f"The model must run on random inputs to be verified; it raised {error!r}: check its forward."
    ) from error


def verify_group(
    graph: ModelGraph, model: nn.Module, group: Group, *, seed: int = 0, share: float = 0.5, bench: Bench | None = None
) -> float:
    """Largest relative difference between removing and zeroing a random `share` of a group's units.

    Infinity when the shrunk model does not run, gives other shapes, or has no fewer parameters.
    """
    bench = bench or build_bench(graph, model, seed=seed)
    assert graph.graph is not None
    kept = _random_half(group, share, seed)
    removed = removed_classes(graph, {group.name: kept})
    span = find_span(graph.graph, graph.lanes, removed)
    try:
        changes = edits(graph.graph, graph.lanes, graph.concrete, removed)
        small, fewer = _small_parts(bench.module, group, kept)
        truth = _run(span.nodes, bench.module, bench.values, mask=(graph.lanes, removed))
        claim = _run(span.nodes, bench.module, bench.values, small=small, changes=changes)
    except Exception:  # a shrunk model that cannot run is a wrong one, whatever it raises
        return math.inf
    if fewer <= 0:
        return math.inf
    return max((_difference(truth[name], claim[name]) for name in span.exits), default=0.0)


def find_span(graph: fx.Graph, lanes: Mapping[str, Lanes], removed: BoolArray) -> Span:
    """From the first node that carries a removed channel to the last that reads one."""
    touched: set[fx.Node] = set()
    exits: list[fx.Node] = []
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    for node in nodes:
        found = leaves(lanes[node.name])
        if any(removed[lane.ids].any() for lane in found):
            touched.add(node)
        elif any(source in touched for source in node.all_input_nodes):
            if found:
                exits.append(node)
            else:
                touched.add(node)  # a size worked out from the shape of such an activation
    numbers = [i for i, node in enumerate(nodes) if node in touched or node in exits]
    inside = nodes[numbers[0] : numbers[-1] + 1] if numbers else []
    return Span(tuple(inside), frozenset(node.name for node in exits))


def randomised(model: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    """A copy with random parameters and statistics, in eval mode, that changes no activation in place."""
    module = copy.deepcopy(model).eval().to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * math.sqrt(2 / fan_in))
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                _randomise_norm_(part, generator, dtype)
            if isinstance(getattr(part, "inplace", None), bool):
                part.inplace = False  # type: ignore[assignment]
    return module


def random_inputs(inputs: Sequence[Tensor], dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """Normal noise in place of every floating-point input; other inputs as they are."""
    generator = torch.Generator().manual_seed(seed + 1)
    return tuple(torch.randn(x.shape, generator=generator, dtype=dtype) if x.is_floating_point() else x for x in inputs)


def _randomise_norm_(norm: nn.modules.batchnorm._BatchNorm, generator: torch.Generator, dtype: torch.dtype) -> None:
    shape = (norm.num_features,)
    if norm.weight is not None:
        norm.weight.copy_(torch.rand(shape, generator=generator, dtype=dtype) + 0.5)
        norm.bias.copy_(torch.randn(shape, generator=generator, dtype=dtype) * 0.5)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(torch.randn(shape, generator=generator, dtype=dtype) * 0.5)
        norm.running_var.copy_(torch.rand(shape, generator=generator, dtype=dtype) + 0.5)


def _random_half(group: Group, share: float, seed: int) -> IntArray:
    lost = min(group.units - 1, max(1, round(share * group.units)))
    order = np.random.default_rng(seed).permutation(group.units)
    return np.sort(order[lost:]).astype(np.int64)


def _small_parts(module: nn.Module, group: Group, kept: IntArray) -> tuple[dict[int, Any], int]:
    """Shrunk modules and parameters by the dense ones' ids, and how many parameters that saves."""
    pairs = lost_members([group], {group.name: kept})
    memo = cut_tensors(module, pairs)
    dense = {id(p): p for p in module.parameters()}
    fewer = sum(dense[key].numel() - small.numel() for key, small in memo.items() if key in dense)
    small: dict[int, Any] = dict(memo)
    inputs = kept_inputs(module, pairs)
    whole = {member.target for member in group.members if member.kind != "parameter"}
    for path in dict.fromkeys(holder_path(member) for member in group.members):
        part = module.get_submodule(path)
        if path in whole or not any(True for _ in part.children()):  # a container holds bare parameters only
            small[id(part)] = copy.deepcopy(part, dict(memo))
            resize_(small[id(part)], inputs.get(path))
    return small, fewer


def _run(
    nodes: Iterable[fx.Node],
    module: nn.Module,
    values: Mapping[str, Any],
    *,
    inputs: Sequence[Tensor] = (),
    mask: tuple[Mapping[str, Lanes], BoolArray] | None = None,
    small: Mapping[int, Any] | None = None,
    changes: Mapping[str, Edit] | None = None,
) -> dict[str, Any]:
    """Values of the given nodes; those of earlier nodes are taken from `values`."""
    env: dict[str, Any] = {}
    waiting = iter(inputs)
    small, changes = small or {}, changes or {}

    def value_of(node: fx.Node) -> Any:
        return env[node.name] if node.name in env else values[node.name]

    with torch.no_grad():
        for node in nodes:
            if node.op == "output":
                continue
            if node.op == "placeholder":
                env[node.name] = next(waiting, *node.args[:1])
                continue
            value = _call(node, module, value_of, small, changes.get(node.name))
            env[node.name] = value if mask is None else _masked(value, mask[0][node.name], mask[1])
    return env


def _call(
    node: fx.Node, module: nn.Module, value_of: Callable[[fx.Node], Any], small: Mapping[int, Any], edit: Edit | None
) -> Any:
    """One node's value, with shrunk modules and edited constants in place of the dense ones."""
    args = fx.node.map_arg(node.args if edit is None else edit.args, value_of)
    kwargs = fx.node.map_arg(node.kwargs if edit is None else edit.kwargs, value_of)
    if node.op == "get_attr":
        held = _fetch(module, str(node.target))
        return small.get(id(held), held)
    if node.op == "call_module":
        part = module.get_submodule(str(node.target))
        return small.get(id(part), part)(*args, **kwargs)
    name = getattr(node.target, "__name__", str(node.target))
    if name.endswith("_") or name.startswith("i") or kwargs.get("inplace"):
        args = (args[0].clone(), *args[1:]) if args and isinstance(args[0], Tensor) else args
    if edit is not None and edit.function is not None:
        return edit.function(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _fetch(module: nn.Module, path: str) -> Any:
    owner, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _masked(value: Any, lanes: Lanes, removed: BoolArray) -> Any:
    """The value with its removed channels set to 0."""
    if isinstance(value, (tuple, list)) and isinstance(lanes, tuple):
        return type(value)(_masked(v, lane, removed) for v, lane in zip(value, lanes, strict=True))
    if not isinstance(lanes, Lane) or lanes.dim is None or not removed[lanes.ids].any():
        return value
    shape = [1] * value.dim()
    shape[lanes.dim] = -1
    return torch.where(torch.from_numpy(removed[lanes.ids]).view(shape), torch.zeros((), dtype=value.dtype), value)


def _difference(truth: Any, claim: Any) -> float:
    """Largest difference relative to the largest entry; infinity for other shapes or values that are not finite."""
    if isinstance(truth, (tuple, list)):
        return max((_difference(a, b) for a, b in zip(truth, claim, strict=True)), default=0.0)
    if not isinstance(truth, Tensor):
        return 0.0
    if truth.shape != claim.shape:
        return math.inf
    truth, claim = truth.to(torch.float64), claim.to(torch.float64)
    gap = float((truth - claim).abs().max()) if truth.numel() else 0.0
    return gap / max(float(truth.abs().max()), 1e-12) if math.isfinite(gap) and gap else (0.0 if gap == 0 else math.inf)
