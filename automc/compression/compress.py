"""The pipeline: policy and model to compressed model.

    remove channels -> per layer, in forward order: refit, mask, round -> batch norms to their new statistics

One pass over the calibration data does everything behind the first arrow (see `reconstruct`). A model that cannot be
traced has no channel groups; its weights are masked and rounded and its activation ranges observed, without a refit.
"""

import copy
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automc.compression import provenance
from automc.compression.bank import MEMORY_BYTES, LayerBank
from automc.compression.branches import branch_errors
from automc.compression.calibration import watched
from automc.compression.fitting import FittingPass
from automc.compression.gathered import Gathered
from automc.compression.place import Place
from automc.compression.prefix import PassMemory
from automc.compression.quantize import Observed, QuantizedLayer, quantized_layers
from automc.compression.reconstruct import DenseRows, dense_rows, fit_points
from automc.compression.settle import settle
from automc.compression.structure import Structure, build, interpretable, kept_channels
from automc.compression.variants import factors_of
from automc.criteria.criterion import fan_in_view
from automc.errors import GraphError
from automc.graph.facts import ModelFacts
from automc.graph.model_graph import ModelGraph
from automc.graph.runs import copies
from automc.policy import FULL_BITS, Policy, Recipe
from automc.space import FloatArray, SearchSpace, check_policy, kept_units
from automc.task import Task

IntArray = NDArray[np.int64]
ACTIVATION_BYTES = 2**28
"""The largest single activation of a calibration pass; longer calibration data is cut to fit."""


class Compressor:
    """Compresses one model by any number of policies; dense statistics are gathered once a recipe.

    With a `cache` folder they outlive the process: eliminating single weights takes a minute for a ResNet-56. What
    another process has `gathered` of the same model and data is not computed again.
    """

    def __init__(
        self,
        graph: ModelGraph,
        model: nn.Module,
        task: Task,
        cache: str | Path | None = None,
        memory_bytes: int = MEMORY_BYTES // 2,
        gathered: Gathered | None = None,
    ) -> None:
        self.graph, self.model, self.task = graph, model, task
        self._memory = memory_bytes // 2  # of which one half for the bank, one for passes
        self.passes = PassMemory(self._memory)
        """What fitting passes left for later ones."""
        self._cache = None if cache is None else Path(cache)
        self._banks: dict[Recipe, LayerBank] = {}
        self._dense: dict[Recipe, DenseRows] = {}
        same = gathered is not None and gathered.code == str(graph.graph)
        self._gathered = gathered if same else None
        if self._gathered is not None and self._gathered.rows is not None:
            self._dense[self._gathered.recipe] = self._gathered.rows

    def compress(self, policy: Policy) -> nn.Module:
        """The compressed model in eval mode; the dense model is untouched. A policy of another model raises
        PolicyError."""
        check_policy(policy, self.graph.facts)
        structure = self.structure(policy)
        small = build(self.graph, self.model, structure).eval()
        if self.graph.graph is None:
            _round_untraced(small, self.model, policy, self.inputs(policy.recipe), self.graph.facts)
        else:
            self._fit(small, policy, structure)
        _check_finite(small, self.model)
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
        bits = {name: (d.weight_bits, d.activation_bits, d.codebook) for name, d in policy.layers}
        gone = {name for block in policy.dropped for name in self.graph.facts.block(block).layers}
        narrow = {n: b for n, b in bits.items() if min(b[:2]) < FULL_BITS and n not in gone}
        sides = kept_channels(self.graph.facts, kept)
        factors = {
            n: found
            for n, d in policy.layers
            if n not in gone and (found := factors_of(self.graph.facts.layer(n), d, sides[n].counts)) is not None
        }
        return Structure(kept, narrow, factors, policy.dropped)

    def bank(self, recipe: Recipe) -> LayerBank:
        """The layer bank under a recipe's calibration settings."""
        if recipe not in self._banks:
            given = self._gathered
            self._banks[recipe] = LayerBank(
                self.graph.facts,
                self.model,
                self.inputs(recipe),
                recipe,
                targets=self._targets(recipe),
                code=str(self.graph.graph),
                folder=self._cache,
                memory_bytes=self._memory,
                given=None if given is None or given.recipe != recipe else given.tables,
            )
        return self._banks[recipe]

    def gathered(self, recipe: Recipe) -> Gathered:
        """What is known under a recipe that no candidate decides."""
        return Gathered(recipe, str(self.graph.graph), self.bank(recipe).tables, self._dense.get(recipe))

    def errors(self, space: SearchSpace) -> tuple[FloatArray, ...]:
        """Per axis of a space, the layers' relative output error at each level."""
        errors = self.bank(space.recipe).errors(space)
        blocks = [place for a in space.axes if a.kind == "block" for place in a.places]
        if not blocks:
            return errors
        module = interpretable(self.graph, build(self.graph, self.model, Structure({}, {})).eval())
        chosen = [self.graph.facts.block(name) for name in blocks]
        lost = branch_errors(module, chosen, self.inputs(space.recipe))
        return tuple(
            np.array([(1.0 - float(v)) * sum(lost[p] for p in a.places) for v in a.values]) if a.kind == "block" else e
            for a, e in zip(space.axes, errors, strict=True)
        )

    def thresholds(self, space: SearchSpace, criterion: str) -> tuple[FloatArray, ...]:
        """Per axis of a space, the largest of a criterion's scores among what each level removes (see `ranking`)."""
        return self.bank(space.recipe).thresholds(space, criterion)

    def inputs(self, recipe: Recipe) -> tuple[Tensor, ...]:
        """The calibration samples a recipe uses."""
        largest = max((4 * x.positions * x.out_channels for x in self.graph.facts.layers), default=1)
        samples = min(recipe.images, max(64, ACTIVATION_BYTES // largest))
        inputs = self.task.calibration_inputs(samples)
        return tuple(map(channels_last, inputs)) if self.runs_channels_last else inputs

    @cached_property
    def runs_channels_last(self) -> bool:
        """Whether the model runs on images and weights channels last; `view` asks for them as they usually lie."""
        model = in_channels_last(copy.deepcopy(self.model).eval())
        try:
            with torch.no_grad():
                model(*map(channels_last, copies(self.graph.inputs)))
        except RuntimeError:
            return False
        return True

    def _targets(self, recipe: Recipe) -> Tensor | None:
        """Labels of the calibration samples, where the task has them."""
        return self.task.calibration_targets(len(self.inputs(recipe)[0]))

    def _fit(self, small: nn.Module, policy: Policy, structure: Structure) -> None:
        graph = interpretable(self.graph, small)
        dense, bank = self._dense_rows(policy.recipe), self.bank(policy.recipe)
        inputs = self.inputs(policy.recipe)
        FittingPass(graph, self.graph.facts, policy, structure, dense, bank, self.passes, inputs).run()

    def _dense_rows(self, recipe: Recipe) -> DenseRows | None:
        if recipe.reconstruct != "sequential" or self.graph.graph is None:
            return None
        if recipe not in self._dense:
            points = fit_points(self.graph.graph, self.model, self.graph.facts)
            module = interpretable(self.graph, build(self.graph, self.model, Structure({}, {})).eval())
            self._dense[recipe] = dense_rows(module, points, self.inputs(recipe), recipe)
        return self._dense[recipe]


def _round_untraced(
    small: nn.Module, model: nn.Module, policy: Policy, inputs: tuple[Tensor, ...], facts: ModelFacts
) -> None:
    """Masks and rounds a model without a graph; activation ranges come from one forward pass of the rounded model."""
    for name, decision in policy.layers:
        place = Place(facts.layer(name), decision, small.get_submodule(name))
        weight = model.get_submodule(name).weight
        settle(place, policy.recipe, rows=fan_in_view(weight) if decision.rank < 1 else None)  # type: ignore[arg-type]
    observed = tuple(name for name, holder in quantized_layers(small) if holder.input is not None)

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        assert isinstance(module, QuantizedLayer) and module.input is not None
        module.input.calibrate(Observed.of([x]), policy.recipe.activation_range)

    if observed:
        with torch.no_grad(), watched(small, observed, see):
            small(*copies(inputs))


def _check_finite(small: nn.Module, dense: nn.Module) -> None:
    """Raises GraphError for a number that is not finite; what the dense model has of them, as in a mask, stays."""
    given = dense.state_dict()
    for name, tensor in small.state_dict().items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        if name not in given or bool(torch.isfinite(given[name]).all()):
            raise GraphError(
                f"Compressed weights must be finite; {name} is not: raise the recipe's ridge or its images."
            )


def channels_last(x: Tensor) -> Tensor:
    """Images in the layout in which convolutions are fastest; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def in_channels_last(module: nn.Module) -> nn.Module:
    """The module, the weights of its convolutions in that layout."""
    return nn.Module.to(module, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
