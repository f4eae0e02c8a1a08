"""The layer bank: everything about single layers that many candidates share, computed once and memoised.

It holds input moments of the dense model, the order in which each group's units leave under each criterion, the
relative output error at each level, the order in which each layer's single weights leave under each pattern, and what
remains of each layer under a decision and a set of kept channels, refitted by least squares. A refit needs only the
moments: W' = W G[:, S] (G[S, S] + lambda I)^-1, with the inputs' means for the intercept. AMC solves the same
regression from 30,000 fresh rows per layer and candidate.
"""

import hashlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automc.compression.calibration import (
    Moments,
    Spread,
    input_rows,
    moments,
    output_shape,
    refittable,
    sampled_positions,
    watched,
)
from automc.compression.gradients import (
    hessian_gradient,
    loss_gradient,
    output_gram,
    output_sensitivity,
    synaptic_flow,
)
from automc.compression.patterns import layout
from automc.compression.prune import eliminations
from automc.compression.quantize import Observed, rounding_noise
from automc.compression.ranking import thresholds, trace_scores, unit_scores, weight_scores
from automc.compression.regression import Regression
from automc.compression.settle import Known
from automc.compression.store import Tensors, TensorStore
from automc.compression.structure import Sides
from automc.compression.variants import Variant, settled
from automc.criteria.criterion import Criterion, LayerView, Need, fan_in_view
from automc.criteria.surgeon import Reader, Traces, eliminate
from automc.errors import GraphError, PolicyError
from automc.files import check_folder
from automc.graph.facts import Group, Member, ModelFacts
from automc.graph.holders import axes
from automc.graph.runs import copies
from automc.pattern import parse
from automc.policy import FULL_BITS, LayerDecision, Policy, Recipe
from automc.registry import CRITERIA
from automc.space import Axis, SearchSpace
from automc.task import Inputs

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
MEMORY_BYTES = 3 * 2**28
"""Default bound on what is memoised in all; the dense statistics themselves come on top."""
_STATISTICS, _GRADIENTS, _REMAINS = "statistics", "gradients", "remains"
"""How keys of the store begin."""


class LayerBank:
    """Memoised layer facts of one dense model under one recipe's calibration settings."""

    def __init__(
        self,
        facts: ModelFacts,
        model: nn.Module,
        inputs: Inputs,
        recipe: Recipe,
        *,
        targets: Tensor | None = None,
        code: str = "",
        memory_bytes: int = MEMORY_BYTES,
        folder: Path | None = None,
        given: Mapping[str, Tensors] | None = None,
    ) -> None:
        self.facts, self.model, self.recipe = facts, model, recipe
        self._inputs, self._targets = inputs, targets
        own = None if folder is None else folder / _key(facts, f"{model}\n{code}", inputs, targets, recipe)
        if own is not None:
            check_folder(own)  # what fails later is the disk's fault, and no reason to stop
        self._store = TensorStore(memory_bytes, own, given)
        self._of_gradients: dict[Need, Tensors] = {}
        self._noise_gains: dict[str, float] = {}

    @property
    def tables(self) -> dict[str, Tensors]:
        """What a bank of the same model elsewhere may be `given`: all that is in memory and belongs to no candidate."""
        lasting = {key: found for key, found in self._store.known.items() if not key.startswith(_REMAINS)}
        gradients = {f"{_GRADIENTS} {need}": found for need, found in self._of_gradients.items()}
        return lasting | gradients | {_STATISTICS: self._statistics}

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Input moments of every layer whose input rows can be formed, from one pass of the dense model."""
        names = [x.name for x in self.facts.layers if f"{x.name}:centred" in self._statistics]
        return {n: Moments(*(self._statistics[f"{n}:{part}"] for part in ("centred", "mean", "active"))) for n in names}

    @cached_property
    def spreads(self) -> dict[str, Spread]:
        """Mean and variance of every batch norm's input, from the same pass."""
        names = [x.name for x in self.facts.norms]
        return {n: Spread(self._statistics[f"{n}:mean"], self._statistics[f"{n}:variance"]) for n in names}

    def kept(self, group: Group, criterion: str, units: int) -> IntArray:
        """The `units` units of a group that stay, sorted."""
        order, _ = self.elimination(group, criterion)
        return np.sort(order[len(order) - units :])

    def elimination(self, group: Group, criterion: str) -> tuple[IntArray, FloatArray]:
        """The order in which units leave (U,), and the readers' relative output error after 0 ... U leave (U + 1,)."""

        def make() -> dict[str, Tensor]:
            order, error = self._eliminate(group, CRITERIA.load(criterion))
            return {"order": torch.from_numpy(order), "error": torch.from_numpy(error)}

        found = self._store.get(f"elimination {criterion} {group.name}", make)
        return found["order"].numpy(), found["error"].numpy()

    def errors(self, space: SearchSpace) -> tuple[FloatArray, ...]:
        """Per axis of the space, the relative output error at each level, all else as in the space's dense point, of
        places decided together the sum; zeros for axes without an order."""
        return tuple(self._axis_errors(space, axis) for axis in range(len(space.axes)))

    def thresholds(self, space: SearchSpace, criterion: str) -> tuple[FloatArray, ...]:
        """Per axis of the space, the largest of a criterion's scores among what each level removes, at all of its
        places; -inf where it removes nothing, and all over where the criterion does not rank what the axis decides."""
        dense, ranked = space.decode(space.largest), CRITERIA.load(criterion)
        each = ([self._thresholds(axis, place, ranked, dense) for place in axis.places] for axis in space.axes)
        return tuple(np.max(found, axis=0) for found in each)

    def regression(self, name: str, sides: Sides) -> Regression:
        """What is left of a layer, towards its own dense output."""
        facts, known = self.facts.layer(name), self.moments[name]
        rows = fan_in_view(self._weight(name))[sides.outputs]
        if facts.depthwise:
            return Regression.of_moments(rows, known.of_groups(torch.from_numpy(sides.inputs)))
        each = facts.in_channels // facts.groups  # conv-groups lose the same positions: the first one tells
        return Regression.of_moments(rows, known, self.columns(name, sides.inputs[sides.inputs < each]))

    def rows(self, name: str, sides: Sides) -> Tensor:
        """What is left of a layer's dense weights as rows (out, n')."""
        rows = fan_in_view(self._weight(name))[sides.outputs]
        if self.facts.layer(name).depthwise:
            return rows
        each = self._weight(name).shape[1]  # conv-groups lose the same positions: the first one tells
        return rows[:, self.columns(name, sides.inputs[sides.inputs < each])]

    def refit(self, name: str, inputs: IntArray) -> Tensor:
        """A layer's dense rows refitted on the kept `inputs` channels (out, n')."""
        sides = Sides(inputs, np.arange(self.facts.layer(name).out_channels))
        return self.regression(name, sides).solve(self.recipe.ridge)

    def remains(self, name: str, decision: LayerDecision, sides: Sides, make: Callable[[], Tensors]) -> Tensors:
        """What `make` gives for what remains of a layer, once for all candidates that decide the same of it."""
        decision = replace(decision, activation_bits=FULL_BITS).effective
        left = sides.inputs.tobytes().hex(), sides.outputs.tobytes().hex()
        return self._store.get(f"{_REMAINS} {name} {decision} {left}", make, on_disk=False)

    def traces(self, name: str, pattern: str) -> Traces:
        """The order in which a dense layer's weights or blocks leave, and the losses: every level from one pass."""

        def make() -> dict[str, Tensor]:
            weight, shape = self._weight(name), parse(pattern)
            where = layout(tuple(weight.shape), self.facts.layer(name).groups, shape)
            made = eliminations(weight, self.moments[name].centred, shape, where)
            return {"order": made.order.to(torch.int32), "loss": made.loss.to(torch.float32)}

        found = self._store.get(f"traces {pattern} {name}", make)
        return Traces(found["order"].to(torch.int64), found["loss"].to(torch.float64))

    def variant(self, name: str, decision: LayerDecision) -> Variant:
        """What a dense layer becomes by a decision alone; its quantized input, if any, is left out."""
        decision = replace(decision, activation_bits=FULL_BITS).effective

        def make() -> dict[str, Tensor]:
            facts = self.facts.layer(name)
            sides = Sides.whole(facts)
            fit = self.regression(name, sides) if name in self.moments else None
            known = self.known(name, decision.pattern, sides)
            return settled(self.model.get_submodule(name), facts, decision, self.recipe, fit, known).tensors

        return Variant.of_tensors(self._store.get(f"variant {name} {decision}", make))

    def activation_error(self, name: str, bits: int) -> float:
        """A dense layer's relative output error where only its input is rounded, as if each entry erred by itself.

        A layer whose input rows cannot be formed is taken for a typical one: noise falls by four for each bit.
        """
        if name not in self.moments:
            return float(4.0**-bits)
        low, high = self._statistics[f"{name}:range"].tolist()
        seen = Observed(low, high, self._statistics[f"{name}:sample"])
        return rounding_noise(seen, bits, self.recipe.activation_range) * self._noise_gain(name)

    def _noise_gain(self, name: str) -> float:
        """Relative output error of a dense layer for each unit of white noise on its input."""
        if name not in self._noise_gains:
            rows = fan_in_view(self._weight(name)).to(torch.float64)
            self._noise_gains[name] = float(rows.square().sum()) / max(self._energy(name), 1e-30)
        return self._noise_gains[name]

    def _energy(self, name: str) -> float:
        """Variance of a dense layer's outputs, summed over its channels."""
        rows = fan_in_view(self._weight(name))
        return float(self.regression(name, Sides.whole(self.facts.layer(name))).output(rows)[1].sum())

    def known(self, name: str, pattern: str, sides: Sides) -> Known:
        """What `settle` may ask about a layer; eliminations are those of the layer with all its channels."""
        facts = self.facts.layer(name)
        whole = sides.counts == (facts.in_channels, facts.out_channels) and name in self.moments
        traces = (lambda: self.traces(name, pattern)) if whole else None
        return Known(lambda needs: self.statistics(name, needs, sides), traces)

    def columns(self, name: str, channels: IntArray) -> Tensor:
        """The columns of a layer's rows that belong to input channels."""
        area = self._matrix(name).shape[1] // self._weight(name).shape[1]
        return torch.from_numpy((channels[:, None] * area + np.arange(area)).reshape(-1))

    def _weight(self, name: str) -> Tensor:
        """A dense layer's weight (out, in / groups, ...)."""
        layer = self.model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        return layer.weight.detach().movedim(axes(layer), (0, 1))

    def _matrix(self, name: str) -> Tensor:
        """What a dense layer multiplies its input rows with (rows, n); a transposed one has a row for each output and
        place of its kernel."""
        weight = self._weight(name)
        if self.facts.layer(name).transposed:
            return weight.movedim(1, -1).reshape(-1, weight.shape[1])
        return fan_in_view(weight)

    @cached_property
    def _statistics(self) -> Tensors:
        """The tensors of `moments` and `spreads`."""
        return self._lasting(_STATISTICS, self._collect)

    def _lasting(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """What everything else is made from: not in the store's memory, whose bound would have it made again."""
        return TensorStore(0, self._store.folder, self._store.given).get(key, make)

    def _collect(self) -> dict[str, Tensor]:
        known = {x.name for x in self.facts.layers if x.transposed or refittable(self.model.get_submodule(x.name))}
        layers = tuple(x.name for x in self.facts.layers if x.name in known)
        norms = tuple(x.name for x in self.facts.norms)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        found: dict[str, Tensor] = {}

        def see(name: str, module: nn.Module, x: Tensor) -> None:
            if f"{name}:mean" in found:  # a shared layer is described by its first call
                return
            if name in norms:
                spread = Spread.of([x])
                found.update({f"{name}:mean": spread.mean, f"{name}:variance": spread.variance})
                return
            positions = sampled_positions(output_shape(module, x), self.recipe.rows, generator)
            seen = _sound(name, moments(input_rows(module, x, positions)), len(positions))
            found.update({f"{name}:centred": seen.centred, f"{name}:mean": seen.mean, f"{name}:active": seen.active})
            entries = Observed.of([x])
            found.update({f"{name}:range": torch.tensor([entries.low, entries.high])})
            found.update({f"{name}:sample": entries.sample[::4].clone()})

        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), watched(self.model, (*layers, *norms), see):
                self.model(*copies(self._inputs))
        finally:
            self.model.train(training)
        return found

    def _eliminate(self, group: Group, criterion: Criterion) -> tuple[IntArray, FloatArray]:
        readers = self._readers(group)
        order: Sequence[int] | None = None
        if not criterion.second_order or not readers:
            order = np.argsort(self._unit_scores(group, criterion, scaled=True), kind="stable").tolist()
        if not readers:
            return np.array(order, dtype=np.int64), np.linspace(0.0, 1.0, group.units + 1)
        result = eliminate(readers, order)
        return result.order.numpy(), result.error.numpy()

    def _readers(self, group: Group) -> list[Reader]:
        """The group's consuming layers of one conv-group, with the columns of each unit."""
        readers = []
        for member in group.members:
            if member.kind == "layer" and member.axis == "in" and self._reads_all(member):
                columns = torch.stack([self.columns(member.target, row) for row in member.index])
                readers.append(Reader(self._matrix(member.target), self.moments[member.target].centred[0], columns))
        return readers

    def _reads_all(self, member: Member) -> bool:
        return member.target in self.moments and self.facts.layer(member.target).groups == 1

    def _unit_scores(self, group: Group, criterion: Criterion, *, scaled: bool) -> FloatArray:
        generator = torch.Generator().manual_seed(self.recipe.seed)
        return unit_scores(
            self.facts, group, criterion, lambda n: self.view(n, criterion.needs, generator), scaled=scaled
        )

    def view(self, name: str, needs: Collection[Need], generator: torch.Generator) -> LayerView | None:
        """A dense layer as a criterion with these needs sees it; None where it has no norm or no input rows."""
        facts: dict[str, Tensor | None] = {}
        layer, weight = self.facts.layer(name), self._weight(name)
        if "inputs" in needs:
            if name not in self.moments or (layer.transposed and "output_gram" in needs):
                return None
            weight = self._matrix(name) if layer.transposed else weight
            known = self.moments[name]
            parts = {"gram": known.gram, "mean": known.mean, "active": known.active}
            facts |= {part: x.to(torch.float32) for part, x in parts.items()}
        if "norm" in needs:
            facts["norm_scale"] = self._norm_scale(name)
            if facts["norm_scale"] is None:
                return None
        for need in needs:
            if need not in ("inputs", "norm"):
                found = self._gradients(need)[name]
                facts[need] = found.movedim((1, 0), (0, 1)) if layer.transposed else found
        return LayerView(weight, generator=generator, **facts)

    def statistics(self, name: str, needs: Collection[Need], sides: Sides) -> dict[str, Tensor]:
        """What gradients say of the weights that are left of a layer, for criteria of single weights."""
        depthwise = self.facts.layer(name).depthwise
        each = self._weight(name).shape[1]  # conv-groups lose the same positions: the first one tells
        inputs = torch.arange(each) if depthwise else torch.from_numpy(sides.inputs[sides.inputs < each])
        kinds = [need for need in needs if need in ("gradient", "hessian_gradient", "flow", "sensitivity")]
        found: dict[str, Tensor] = {n: self._gradients(n)[name][sides.outputs][:, inputs] for n in kinds}
        if "output_gram" in needs and self.facts.layer(name).groups == 1:
            found["output_gram"] = self._gradients("output_gram")[name][:, sides.outputs][:, :, sides.outputs]
        return found

    def _gradients(self, need: Need) -> Tensors:
        """One kind of gradient statistic of all layers."""
        layers = [x.name for x in self.facts.layers]

        def make() -> Tensors:
            with torch.enable_grad():
                if need == "gradient":
                    return loss_gradient(self.model, layers, self._inputs, self._targets)
                if need == "hessian_gradient":
                    return hessian_gradient(self.model, layers, self._inputs, self._targets)
                if need == "output_gram":
                    generator = torch.Generator().manual_seed(self.recipe.seed)
                    return output_gram(self.model, layers, self._inputs, generator)
                if need == "flow":
                    return synaptic_flow(self.model, layers, self._inputs)
                return output_sensitivity(self.model, layers, self._inputs)

        if need not in self._of_gradients:
            self._of_gradients[need] = self._lasting(f"{_GRADIENTS} {need}", make)
        return self._of_gradients[need]

    def _norm_scale(self, name: str) -> Tensor | None:
        norm = self.facts.layer(name).norm
        scale = self.model.get_submodule(norm).weight if norm else None
        return scale.detach() if isinstance(scale, Tensor) else None

    def _thresholds(self, axis: Axis, place: str, criterion: Criterion, dense: Policy) -> FloatArray:
        if axis.field == "keep" and axis.kind == "group" and not criterion.sweeps:
            group = self.facts.group(place)
            if criterion.second_order:
                lost = np.diff(self.elimination(group, criterion.name)[1])
                return thresholds(axis, np.maximum.accumulate(lost))
            return thresholds(axis, np.sort(self._unit_scores(group, criterion, scaled=False)))
        if axis.field == "sparsity" and criterion.tells_weights_apart and not criterion.sweeps:
            return thresholds(axis, self._weight_scores(place, criterion, dense.layer(place).pattern))
        return np.full(len(axis.values), -np.inf)

    def _weight_scores(self, name: str, criterion: Criterion, pattern: str) -> FloatArray:
        """Scores of a layer's single weights or blocks, in ascending order."""
        if criterion.second_order:
            return trace_scores(self.traces(name, pattern), self._energy(name))
        view = self.view(name, criterion.needs, torch.Generator().manual_seed(self.recipe.seed))
        if view is None:
            raise PolicyError(
                f"Criterion {criterion.name!r} must have the statistics {', '.join(criterion.needs)}; layer {name!r} "
                "has none: choose l1."
            )
        shape = parse(pattern)
        where = layout(tuple(view.weight.shape), self.facts.layer(name).groups, shape)
        return weight_scores(criterion, view, shape, where, name)

    def _axis_errors(self, space: SearchSpace, index: int) -> FloatArray:
        axis = space.axes[index]
        if axis.field == "keep" and axis.kind == "group":
            found = [self._group_errors(self.facts.group(place), axis) for place in axis.places]
        elif axis.field in ("weight_bits", "sparsity", "rank"):
            points = np.repeat(space.largest[None], len(axis.values), axis=0)
            points[:, index] = np.arange(len(axis.values))
            policies = [space.decode(point) for point in points]
            found = [self._layer_errors(place, policies) for place in axis.places]
        elif axis.field == "activation_bits":
            found = [self._input_errors(place, axis) for place in axis.places]
        else:
            found = [np.zeros(len(axis.values))]  # blocks are the whole model's business: see Compressor.errors
        return np.asarray(np.sum(found, axis=0))

    def _group_errors(self, group: Group, axis: Axis) -> FloatArray:
        error = self.elimination(group, "obs")[1]
        lost = [group.units - max(1, round(float(v) * group.units)) for v in axis.values]
        return np.array([error[n] for n in lost])

    def _input_errors(self, name: str, axis: Axis) -> FloatArray:
        return np.array([0.0 if v == FULL_BITS else self.activation_error(name, int(v)) for v in axis.values])

    def _layer_errors(self, name: str, policies: Sequence[Policy]) -> FloatArray:
        """Of a layer under several policies, the last of which is the dense one."""
        chosen = [policy.layer(name) for policy in policies]
        return np.array([0.0 if d == chosen[-1] else self.variant(name, d).error for d in chosen])


def _sound(name: str, found: Moments, rows: int) -> Moments:
    """The moments, if a layer's inputs are finite; a warning where there are fewer rows than unknowns."""
    if not bool(torch.isfinite(found.centred).all()):
        raise GraphError(
            f"Inputs of every layer must be finite; those of {name!r} hold NaN or infinity: check the calibration data."
        )
    if rows <= found.mean.shape[1]:
        warnings.warn(
            f"Layer {name!r} has {found.mean.shape[1]} inputs and {rows} calibration rows: its refit leans on the "
            "ridge; add calibration samples or raise the recipe's images.",
            stacklevel=2,
        )
    return found


def _key(facts: ModelFacts, words: str, inputs: Inputs, targets: Tensor | None, recipe: Recipe) -> str:
    """A folder name for what is known of one model, on this calibration data, under these settings.

    `words` are the modules' and the graph's: what is computed without weights, such as an activation, is in no
    fingerprint.
    """
    digest = hashlib.sha256(f"{facts.fingerprint}\0{recipe}\0{words}\0".encode())
    for x in (*inputs, *(() if targets is None else (targets,))):
        digest.update(f"{x.dtype}\0{tuple(x.shape)}\0".encode())
        digest.update(x.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
