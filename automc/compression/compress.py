"""The pipeline: policy and model to compressed model.

    remove channels -> per layer, in forward order: refit, mask, round -> batch norms to their new statistics

One pass over the calibration data does everything behind the first arrow (see `reconstruct`). A model that cannot be
traced has no channel groups; its weights are masked and rounded and its activation ranges observed, without a refit.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from automc.compression import provenance
from automc.compression.bank import LayerBank, keep_largest
from automc.compression.calibration import watched
from automc.compression.quantize import QuantizedLayer
from automc.compression.reconstruct import (
    DenseRows,
    Regression,
    absorbs,
    dense_rows,
    fit_points,
    gather_inputs,
    gather_outputs,
    reestimate,
    set_intercept,
)
from automc.compression.segments import SegmentedRun
from automc.compression.structure import Structure, build, interpretable, kept_channels
from automc.criteria.criterion import LayerView
from automc.errors import GraphError, PolicyError
from automc.graph.facts import ModelFacts
from automc.graph.model_graph import ModelGraph
from automc.policy import FULL_BITS, LayerDecision, Policy, Recipe
from automc.registry import CRITERIA
from automc.space import FloatArray, SearchSpace, check_policy, kept_units
from automc.task import Task

IntArray = NDArray[np.int64]
ACTIVATION_BYTES = 2**28
"""The largest single activation of a calibration pass; longer calibration data is cut to fit."""


class Compressor:
    """Compresses one model by any number of policies; dense statistics are gathered once a recipe."""

    def __init__(self, graph: ModelGraph, model: nn.Module, task: Task) -> None:
        self.graph, self.model, self.task = graph, model, task
        self._banks: dict[Recipe, LayerBank] = {}
        self._dense: dict[Recipe, DenseRows] = {}

    def compress(self, policy: Policy) -> nn.Module:
        """The compressed model in eval mode; the dense model is untouched. A policy of another model raises
        PolicyError."""
        check_policy(policy, self.graph.facts)
        structure = self.structure(policy)
        small = build(self.graph, self.model, structure).eval()
        if self.graph.graph is None:
            _round_untraced(small, policy, self.inputs(policy.recipe), self.graph.facts)
        else:
            self._fit(small, policy, structure)
        _check_finite(small)
        units = {g.name: g.units for g in self.graph.facts.groups}
        return provenance.attach(small, policy, structure, units, self.task.example_inputs)

    def structure(self, policy: Policy) -> Structure:
        """Which units stay and which layers are quantized; identical for the same policy and calibration data."""
        bank = self.bank(policy.recipe)
        kept = {}
        for name, decision in policy.groups:
            group = self.graph.facts.group(name)
            units = int(kept_units(np.array(decision.keep), group.units))
            if units < group.units:
                kept[name] = bank.kept(group, decision.criterion, units)
        bits = {name: (d.weight_bits, d.activation_bits) for name, d in policy.layers}
        return Structure(kept, {n: b for n, b in bits.items() if min(b) < FULL_BITS})

    def bank(self, recipe: Recipe) -> LayerBank:
        """The layer bank under a recipe's calibration settings."""
        if recipe not in self._banks:
            self._banks[recipe] = LayerBank(self.graph.facts, self.model, self.inputs(recipe), recipe)
        return self._banks[recipe]

    def errors(self, space: SearchSpace) -> tuple[FloatArray, ...]:
        """Per axis of a space, the layers' relative output error at each level."""
        return self.bank(space.recipe).errors(space)

    def inputs(self, recipe: Recipe) -> tuple[Tensor, ...]:
        """The calibration samples a recipe uses."""
        largest = max((4 * x.positions * x.out_channels for x in self.graph.facts.layers), default=1)
        samples = min(recipe.images, max(64, ACTIVATION_BYTES // largest))
        return tuple(_channels_last(x) for x in self.task.calibration_inputs(samples))

    def _fit(self, small: nn.Module, policy: Policy, structure: Structure) -> None:
        graph = interpretable(self.graph, small)
        run = _FittingPass(
            graph, self.graph.facts, policy, structure, self._dense_rows(policy.recipe), self.bank(policy.recipe)
        )
        run.run(self.inputs(policy.recipe))

    def _dense_rows(self, recipe: Recipe) -> DenseRows | None:
        if recipe.reconstruct != "sequential" or self.graph.graph is None:
            return None
        if recipe not in self._dense:
            points = fit_points(self.graph.graph, self.model, self.graph.facts)
            module = interpretable(self.graph, build(self.graph, self.model, Structure({}, {})).eval())
            self._dense[recipe] = dense_rows(module, points, self.inputs(recipe), recipe)
        return self._dense[recipe]


class _FittingPass:
    """Runs the compressed model on the calibration data and fits each changed layer just before it runs.

    A node is changed if its value can differ from the dense model's on the channels kept; unchanged layers keep
    their weights bit by bit, so the dense policy gives the dense model.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        facts: ModelFacts,
        policy: Policy,
        structure: Structure,
        dense: DenseRows | None,
        bank: LayerBank,
    ) -> None:
        self.module, self.dense, self.bank, self.recipe = module, dense, bank, policy.recipe
        self.layers = {x.name: x for x in facts.layers}
        self.decisions = dict(policy.layers)
        self.channels = kept_channels(facts, structure.kept)
        self.nodes = {n.name: n for n in module.graph.nodes}
        self.settled: set[str] = set()
        """Layers fitted and norms that took their intercept."""

    @torch.no_grad()
    def run(self, inputs: tuple[Tensor, ...]) -> None:
        """Fits everything in one pass."""
        self.data = SegmentedRun(self.module, inputs)
        self.data.execute(self._changed_modules(), self._visit)

    def _changed_modules(self) -> set[fx.Node]:
        """Layers and norms whose output can differ from the dense model's."""
        changed: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            own = node.op == "call_module" and str(node.target) in self.layers and self._changes(str(node.target))
            if own or any(a in changed for a in node.all_input_nodes):
                changed.add(node)
        return {n for n in changed if n.op == "call_module" and self._fits_here(str(n.target))}

    def _changes(self, name: str) -> bool:
        """Whether a layer computes something else than the dense one even from the dense inputs."""
        decision = self.decisions.get(name, LayerDecision())
        own = min(decision.weight_bits, decision.activation_bits) < FULL_BITS or decision.sparsity > 0
        return own or self._narrowed(name)

    def _narrowed(self, name: str) -> bool:
        return self.layers[name].groups == 1 and len(self.channels[name].inputs) < self.layers[name].in_channels

    def _fits_here(self, name: str) -> bool:
        return name in self.layers or absorbs(self.module.get_submodule(name))

    def _visit(self, node: fx.Node) -> None:
        name = str(node.target)
        if name in self.settled:
            return
        chunks = self.data.values(node.args[0])  # type: ignore[arg-type]
        if name in self.layers:
            self.settled.add(name)
            self._fit(name, self.decisions.get(name, LayerDecision()), chunks)
        elif self.recipe.batchnorm == "reestimate":
            reestimate(self.module.get_submodule(name), chunks)

    def _fit(self, name: str, decision: LayerDecision, chunks: list[Tensor]) -> None:
        holder = self.module.get_submodule(name)
        layer = holder.layer if isinstance(holder, QuantizedLayer) else holder
        assert isinstance(layer, nn.Module)
        if isinstance(holder, QuantizedLayer) and holder.input is not None:
            holder.input.calibrate(torch.cat([x.flatten() for x in chunks]))
            chunks = [holder.input(x) for x in chunks]
        if self.dense is not None and name in self.dense.targets:
            self._fit_sequential(name, decision, holder, layer, chunks)
            return
        if self._narrowed(name) and self.recipe.reconstruct == "layerwise" and name in self.bank.moments:
            self._fit_layerwise(name, layer)
        _mask_and_round(layer, holder, decision, None, self.recipe)

    def _fit_sequential(
        self, name: str, decision: LayerDecision, holder: nn.Module, layer: nn.Module, chunks: list[Tensor]
    ) -> None:
        assert self.dense is not None
        point, positions = self.dense.points[name], self.dense.positions[name]
        target = self.dense.targets[name][:, self.channels[name].outputs]
        if point.other is not None:
            other = self.data.values(self.nodes[point.other])
            target = target - gather_outputs(other, positions, channels_last=isinstance(layer, nn.Linear))
        norm = self.module.get_submodule(point.norm) if point.norm else None
        intercept = norm is not None or layer.bias is not None
        fit = Regression.of(gather_inputs(layer, chunks, positions), target, intercept=intercept)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        weight.copy_(fit.solve(self.recipe.ridge).reshape(weight.shape))
        _mask_and_round(layer, holder, decision, fit, self.recipe)
        set_intercept(layer, norm, fit)
        if point.norm:
            self.settled.add(point.norm)

    def _fit_layerwise(self, name: str, layer: nn.Module) -> None:
        sides = self.channels[name]
        rows, shift = self.bank.refit(name, sides.inputs)
        rows, shift = rows[sides.outputs], shift[sides.outputs]
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        weight.copy_(rows.reshape(weight.shape))
        norm = self.layers[name].norm
        if isinstance(bias, Tensor):
            bias += shift.to(bias.dtype)
        elif norm is not None and absorbs(self.module.get_submodule(norm)):
            self.module.get_submodule(norm).running_mean -= shift  # type: ignore[operator]


def _mask_and_round(
    layer: nn.Module, holder: nn.Module, decision: LayerDecision, fit: Regression | None, recipe: Recipe
) -> None:
    """Zeroes the lowest-scored weights, then rounds the rest; zeros stay zero."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if decision.sparsity > 0:
        gram = None if fit is None else (fit.gram + fit.mean_x[:, :, None] * fit.mean_x[:, None, :]).to(weight.dtype)
        criterion = CRITERIA.load(decision.criterion)
        if not criterion.tells_weights_apart:
            raise PolicyError(
                f"A criterion for sparsity must tell weights apart; {criterion.name!r} ranks channels: choose l1."
            )
        if criterion.needs_inputs and gram is None:
            raise GraphError(
                f"Criterion {criterion.name!r} must have input statistics; this layer has none: choose l1."
            )
        view = LayerView(weight, gram, generator=torch.Generator().manual_seed(recipe.seed))
        weight *= keep_largest(criterion.score(view), decision.sparsity)
    if isinstance(holder, QuantizedLayer):
        holder.quantize_()


def _round_untraced(small: nn.Module, policy: Policy, inputs: tuple[Tensor, ...], facts: ModelFacts) -> None:
    """Masks and rounds a model without a graph; activation ranges come from one forward pass of the rounded model."""
    for name, decision in policy.layers:
        holder = small.get_submodule(name)
        layer = holder.layer if isinstance(holder, QuantizedLayer) else holder
        assert isinstance(layer, nn.Module)
        with torch.no_grad():
            _mask_and_round(layer, holder, decision, None, policy.recipe)
    observed = tuple(name for name, d in policy.layers if d.activation_bits < FULL_BITS)

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        assert isinstance(module, QuantizedLayer) and module.input is not None
        module.input.calibrate(x)

    if observed:
        with torch.no_grad(), watched(small, observed, see):
            small(*inputs)


def _check_finite(small: nn.Module) -> None:
    for name, tensor in small.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise GraphError(
                f"Compressed weights must be finite; {name} is not: raise the recipe's ridge or its images."
            )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
