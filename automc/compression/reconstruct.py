"""The refit: one forward-order pass that fits every changed layer to what the dense model computes there.

For each layer whose inputs or weights changed, least squares with intercept maps the compressed model's own inputs to
the dense output (He et al. 2017, Channel Pruning, section 3.2, solves it for the dense inputs; AMC keeps that form).
Where the output goes straight into an addition, the target is the dense *sum* minus the compressed model's other
operand, so every residual block corrects the drift of its shortcut. Rounding and masking happen inside the pass:
later layers see, and make up for, the error of earlier ones. A batch norm behind the layer takes the intercept and
the new statistics.

Per layer, with X, Y the sampled rows minus their means: W = Y^T X (X^T X + lambda I)^-1, lambda = ridge *
mean(diag(X^T X)), and the intercept is mean(y) - W mean(x), taken after rounding, so rounding never shifts a mean.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from automc.compression.calibration import (
    Moments,
    Spread,
    input_rows,
    output_rows,
    output_shape,
    refittable,
    sampled_positions,
)
from automc.compression.chains import FactoredLayer
from automc.compression.segments import SegmentedRun
from automc.compression.sweep import refit_masked
from automc.compression.tensor_train import TensorTrain
from automc.criteria.roots import damped, root
from automc.graph.facts import ModelFacts
from automc.policy import Recipe
from automc.task import Inputs

IntArray = NDArray[np.int64]
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
    positions: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    """(rows, channels) by layer name."""


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
        if len(nodes) == 1 and not layer.tied and refittable(model.get_submodule(layer.name)):
            points[layer.name] = _fit_point(nodes[0], model, order)
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
    targets: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def look(node: fx.Node) -> None:
        for name in readers.get(node, ()):
            chunks = run.values(nodes[points[name].at])
            linear = isinstance(module.get_submodule(name), nn.Linear)
            first = chunks[0].shape[:-1] if linear else (chunks[0].shape[0], *chunks[0].shape[2:])
            if tuple(first) == shapes[name]:  # an addition that broadcasts is no fit point
                targets[name] = gather_outputs(chunks, positions[name], channels_last=linear)
        if node in layers:
            name, layer = layers[node], module.get_submodule(layers[node])
            each = [output_shape(layer, x) for x in run.values(node.args[0])]  # type: ignore[arg-type]
            shapes[name] = each[0]
            whole = (sum(s[0] for s in each), *each[0][1:])
            positions[name] = sampled_positions(whole, recipe.rows, generator)

    with torch.no_grad():
        run.execute({*readers, *layers}, look)
    return DenseRows(points, positions, targets)


@dataclass(frozen=True, eq=False, slots=True)
class Regression:
    """Sampled rows of one layer as sums: what a least-squares fit with intercept needs, per conv-group."""

    gram: Tensor
    """Centred X^T X / rows (groups, n, n), float64."""
    cross: Tensor
    """Centred X^T Y / rows (groups, n, out / groups), float64."""
    mean_x: Tensor
    """(groups, n)"""
    mean_y: Tensor
    """(groups, out / groups)"""

    @classmethod
    def of(cls, x: Tensor, y: Tensor, *, intercept: bool) -> "Regression":
        """From input rows x (groups, rows, n) and target rows y (rows, out)."""
        groups, rows, _ = x.shape
        y = y.reshape(rows, groups, -1).transpose(0, 1)  # (groups, rows, out / groups)
        mean_x, mean_y = x.mean(dim=1), y.mean(dim=1)
        if not intercept:
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        x, y = x - mean_x[:, None], y - mean_y[:, None]  # before squares, which would round
        gram, cross = ((x.transpose(1, 2) @ z).to(torch.float64) / rows for z in (x, y))
        return cls(gram, cross, mean_x.to(torch.float64), mean_y.to(torch.float64))

    @classmethod
    def of_moments(cls, weight: Tensor, known: Moments, columns: Tensor | None = None) -> "Regression":
        """For dense rows (out, n) that read only some columns of each conv-group from now on, or all as before."""
        groups, n = known.mean.shape
        columns = torch.arange(n) if columns is None else columns
        rows = weight.to(torch.float64).reshape(groups, -1, n).transpose(1, 2)  # (groups, n, out / groups)
        mean_y = (known.mean[:, None] @ rows)[:, 0]
        covariance = known.centred
        cross = covariance[:, columns] @ rows
        return cls(covariance[:, columns][:, :, columns], cross, known.mean[:, columns], mean_y)

    @property
    def finite(self) -> bool:
        """Whether all sums are finite."""
        return all(bool(torch.isfinite(x).all()) for x in (self.gram, self.cross))

    @property
    def second_moment(self) -> Tensor:
        """X^T X / rows (groups, n, n), not centred."""
        return self.gram + self.mean_x[:, :, None] * self.mean_x[:, None, :]

    def solve(self, ridge: float, mask: Tensor | None = None) -> Tensor:
        """Rows of the fitted weight (out, n), zero where a mask (out, n) is."""
        n = self.gram.shape[1]
        if mask is not None:
            parts = zip(self.gram, self.cross, mask.reshape(len(self.gram), -1, n), strict=True)
            return torch.cat([refit_masked(gram, cross, kept, ridge) for gram, cross, kept in parts])
        system = torch.stack([damped(gram, ridge) for gram in self.gram])
        fitted = torch.cholesky_solve(self.cross, root(system))  # (groups, n, out / groups)
        return fitted.transpose(1, 2).reshape(-1, n)

    def output(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (out,) of the output of weight rows (out, n), before any intercept."""
        grouped = rows.to(torch.float64).reshape(self.gram.shape[0], -1, self.gram.shape[1])
        mean = (grouped @ self.mean_x[:, :, None]).flatten()
        variance = ((grouped @ self.gram) * grouped).sum(dim=2).flatten()
        return mean, variance.clamp_min(0)


def rows_of(layer: nn.Module) -> Tensor:
    """The weight rows (out, n) of a layer, or those its factors stand for."""
    if isinstance(layer, (FactoredLayer, TensorTrain)):
        return layer.rows()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.flatten(1)


@torch.no_grad()
def set_intercept(layer: nn.Module, norm: nn.Module | None, fit: Regression) -> None:
    """Makes the layer's output mean the target's; a batch norm behind it gets the true statistics of the fitted layer.

    The norm is then the identity plus the intercept, in eval mode and, on the calibration data, in training mode alike.
    """
    bias = layer.bias
    mean, variance = fit.output(rows_of(layer))
    target = fit.mean_y.flatten()
    if norm is None:
        if isinstance(bias, Tensor):
            bias.copy_(target - mean)
        return
    if isinstance(bias, Tensor):
        bias.zero_()
    assert isinstance(norm, _NORMS) and norm.running_mean is not None and norm.running_var is not None
    if norm.affine:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(target)
    else:
        norm.running_mean.copy_(mean - target)
        norm.running_var.fill_(1.0 - norm.eps)


@torch.no_grad()
def shift_intercept(layer: nn.Module, norm: nn.Module | None, fit: Regression) -> None:
    """Hands the shift of the output's mean to the layer's bias, or to the batch norm behind it; neither: it stays."""
    bias = layer.bias
    shift = fit.mean_y.flatten() - fit.output(rows_of(layer))[0]
    if isinstance(bias, Tensor):
        bias += shift.to(bias.dtype)
    elif norm is not None and absorbs(norm):
        norm.running_mean -= shift  # type: ignore[operator]


def absorbs(norm: nn.Module) -> bool:
    """Whether a norm can take an intercept: a batch norm with running statistics."""
    return isinstance(norm, _NORMS) and norm.running_mean is not None


@torch.no_grad()
def reestimate(norm: nn.Module, chunks: Sequence[Tensor], dense: Spread) -> None:
    """Moves a batch norm's running statistics by as much as compression has moved its input's.

    EagleEye (Li et al. 2020) takes the statistics of the calibration data as they are; a thousand images say them only
    roughly, and over fifty layers that costs an intact ResNet-56 1.7 points. The dense model's statistics on the same
    data say how far off they are: mean += m - m_dense, variance *= v / v_dense. An unchanged input changes nothing.
    """
    if not absorbs(norm):
        return
    now = Spread.of(chunks)
    norm.running_mean += now.mean - dense.mean  # type: ignore[operator]
    ratio = torch.where(dense.variance > 0, now.variance / dense.variance.clamp_min(1e-30), torch.ones_like(now.mean))
    norm.running_var *= ratio  # type: ignore[operator]


def gather_inputs(layer: nn.Module, chunks: Sequence[Tensor], positions: Tensor) -> Tensor:
    """A layer's input rows (groups, rows, n) at sampled positions of all chunks together."""
    parts = _by_chunk(positions, [output_shape(layer, x) for x in chunks])
    return torch.cat([input_rows(layer, x, part) for x, part in zip(chunks, parts, strict=True)], dim=1)


def gather_outputs(chunks: Sequence[Tensor], positions: Tensor, *, channels_last: bool) -> Tensor:
    """Output entries (rows, channels) at sampled positions of all chunks together."""
    shapes = [y.shape[:-1] if channels_last else (y.shape[0], *y.shape[2:]) for y in chunks]
    parts = _by_chunk(positions, shapes)
    return torch.cat([output_rows(y, part, channels_last=channels_last) for y, part in zip(chunks, parts, strict=True)])


def _by_chunk(positions: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Sorted positions of the whole, as positions within each chunk of these (samples, *positions) shapes."""
    ends = torch.tensor([prod(shape) for shape in shapes]).cumsum(0)
    cuts = torch.searchsorted(positions, ends).tolist()
    starts = [0, *ends[:-1].tolist()]
    return [positions[a:b] - start for a, b, start in zip([0, *cuts[:-1]], cuts, starts, strict=True)]


def _fit_point(node: fx.Node, model: nn.Module, order: Mapping[fx.Node, int]) -> FitPoint:
    at, norm = node, None
    user = _only_user(at)
    if user is not None and _is_lone_norm(user, model, order):
        at, norm = user, str(user.target)
        user = _only_user(at)
    other = _other_operand(user, at) if user is not None else None
    if user is not None and other is not None and order[other] < order[node]:
        return FitPoint(user.name, norm, other.name)
    return FitPoint(at.name, norm, None)


def _is_lone_norm(node: fx.Node, model: nn.Module, order: Mapping[fx.Node, int]) -> bool:
    """Whether a node is the only call of a batch norm that can take an intercept."""
    if node.op != "call_module" or not absorbs(model.get_submodule(str(node.target))):
        return False
    return sum(n.op == "call_module" and n.target == node.target for n in order) == 1


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other_operand(user: fx.Node, node: fx.Node) -> fx.Node | None:
    """The node added to `node` by `user`, if `user` is a plain addition of two different nodes."""
    if user.target not in _ADDITIONS or len(user.args) != 2 or user.kwargs:
        return None
    others = [a for a in user.args if a is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None
