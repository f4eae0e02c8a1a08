"""The refit: one forward-order pass that fits every changed layer to what the dense model computes there.

For each layer whose inputs or weights changed, least squares with intercept maps the compressed model's own inputs to
the dense output (He et al. 2017, Channel Pruning, section 3.2, solves it for the dense inputs; AMC keeps that form).
Where the output goes straight into an addition, the target is the dense *sum* minus the compressed model's other
operand, so every residual block corrects the drift of its shortcut. Rounding and masking happen inside the pass:
later layers see, and make up for, the error of earlier ones. A batch norm behind the layer takes the intercept and
the new statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from automc.compression.calibration import Spread, gather_outputs, output_shape, refittable, sampled_positions
from automc.compression.regression import absorbs
from automc.compression.segments import SegmentedRun
from automc.compression.targets import Targets
from automc.graph.blocks import only_user, other_operand
from automc.graph.facts import LayerFacts, ModelFacts
from automc.policy import Recipe
from automc.task import Inputs

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FitPoint:
    """Where a layer's output is compared with the dense model's."""

    at: str
    """Node whose dense value is the target."""
    norm: str | None
    """Batch norm between the layer and that node."""
    other: str | None
    """Node of the addition's other operand, already computed when the layer runs."""


@dataclass(frozen=True, eq=False, slots=True)
class DenseRows:
    """What the dense model computes at the fit points, at sampled positions."""

    points: Mapping[str, FitPoint]
    """By layer name."""
    targets: Mapping[str, Targets]
    """By layer name."""


def fit_points(graph: fx.Graph, model: nn.Module, facts: ModelFacts) -> dict[str, FitPoint]:
    """A fit point for every layer that runs once and whose input rows can be formed."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    points = {}
    for layer in facts.layers:
        nodes = calls.get(layer.name, [])
        read = len(nodes) == 1 and bool(nodes[0].users)
        if read and not layer.tied and refittable(model.get_submodule(layer.name)):
            points[layer.name] = _fit_point(nodes[0], model, order, layer)
    return points


def dense_rows(module: fx.GraphModule, points: Mapping[str, FitPoint], inputs: Inputs, recipe: Recipe) -> DenseRows:
    """Runs the dense model once and keeps its values at the fit points."""
    run = SegmentedRun(module, inputs)
    generator = torch.Generator().manual_seed(recipe.seed)
    nodes = {n.name: n for n in module.graph.nodes}
    readers = {next(iter(nodes[point.at].users)): [] for point in points.values()}  # type: ignore[var-annotated]
    for name, point in points.items():
        readers[next(iter(nodes[point.at].users))].append(name)
    layers = {n: str(n.target) for n in module.graph.nodes if n.op == "call_module" and str(n.target) in points}
    positions: dict[str, Tensor] = {}
    targets: dict[str, Targets] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def look(node: fx.Node) -> None:
        for name in readers.get(node, ()):
            chunks = run.values(nodes[points[name].at])
            linear = isinstance(module.get_submodule(name), nn.Linear)
            first = chunks[0].shape[:-1] if linear else (chunks[0].shape[0], *chunks[0].shape[2:])
            if tuple(first) == shapes[name]:  # an addition that broadcasts is no fit point
                found = gather_outputs(chunks, positions[name], channels_last=linear)
                targets[name] = Targets(positions[name], found)
        if node in layers:
            name, layer = layers[node], module.get_submodule(layers[node])
            each = [output_shape(layer, x) for x in run.values(node.args[0])]  # type: ignore[arg-type]
            shapes[name] = each[0]
            whole = (sum(s[0] for s in each), *each[0][1:])
            positions[name] = sampled_positions(whole, recipe.rows, generator)

    with torch.no_grad():
        run.execute({*readers, *layers}.__contains__, look)
    return DenseRows(points, targets)


@torch.no_grad()
def reestimate(norm: nn.Module, now: Spread, dense: Spread) -> None:
    """Moves a batch norm's running statistics by as much as compression has moved its input's.

    EagleEye (Li et al. 2020) takes the statistics of the calibration data as they are; a thousand images say them only
    roughly, and over fifty layers that costs an intact ResNet-56 1.7 points. The dense model's statistics on the same
    data say how far off they are: mean += m - m_dense, variance *= v / v_dense. An unchanged input changes nothing.
    """
    if not absorbs(norm):
        return
    norm.running_mean += now.mean - dense.mean  # type: ignore[operator]
    ratio = torch.where(dense.variance > 0, now.variance / dense.variance.clamp_min(1e-30), torch.ones_like(now.mean))
    norm.running_var *= ratio  # type: ignore[operator]


def _fit_point(node: fx.Node, model: nn.Module, order: Mapping[fx.Node, int], layer: LayerFacts) -> FitPoint:
    at, norm = node, None
    user = only_user(at)
    if user is not None and layer.normable and _is_lone_norm(user, model, order):
        at, norm = user, str(user.target)
        user = only_user(at)
    other = other_operand(user, at) if user is not None else None
    if user is not None and other is not None and order[other] < order[node]:
        return FitPoint(user.name, norm, other.name)
    return FitPoint(at.name, norm, None)


def _is_lone_norm(node: fx.Node, model: nn.Module, order: Mapping[fx.Node, int]) -> bool:
    """Whether a node is the only call of a batch norm that can take an intercept."""
    if node.op != "call_module" or not absorbs(model.get_submodule(str(node.target))):
        return False
    return sum(n.op == "call_module" and n.target == node.target for n in order) == 1
