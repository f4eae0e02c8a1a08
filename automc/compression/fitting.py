"""One forward-order pass that fits every changed layer of a compressed model just before it runs.

A layer is fitted to what the dense model computes there (`reconstruct`), or from the dense model's moments alone; what
then happens to its weights is in `settle`; the shift of the mean goes to an intercept.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from automc.compression.bank import LayerBank
from automc.compression.chains import FactoredLayer
from automc.compression.place import Place
from automc.compression.prefix import PassMemory, Snapshot, keys, modules_before, restore, worthwhile
from automc.compression.quantize import ActivationQuantizer, Observed, QuantizedLayer
from automc.compression.reconstruct import DenseRows, reestimate
from automc.compression.regression import absorbs, rows_of, set_intercept, shift_intercept
from automc.compression.segments import FitRequest, SegmentedRun
from automc.compression.settle import Known, settle
from automc.compression.structure import Structure, kept_channels, kept_of_norms
from automc.compression.tiled import TiledRun
from automc.compression.variants import set_weights, weights_of
from automc.errors import GraphError
from automc.graph.facts import ModelFacts
from automc.policy import FULL_BITS, LayerDecision, Policy

SHIFT = "shift"


class FittingPass:
    """Runs the compressed model on the calibration data and fits what has changed.

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
        memory: PassMemory,
        inputs: tuple[Tensor, ...],
    ) -> None:
        self.module, self.dense, self.bank, self.recipe = module, dense, bank, policy.recipe
        self.layers = {x.name: x for x in facts.layers}
        self.decisions = dict(policy.layers)
        self.channels = kept_channels(facts, structure.kept)
        self.cut = {facts.block(name).at for name in structure.without}
        """Additions that have lost their branch."""
        self.norms = kept_of_norms(facts, structure.kept)
        self.memory, self._inputs = memory, inputs
        self.cuts = keys(module.graph, worthwhile(module.graph, facts), facts, policy, structure)
        """Places where the pass may begin, and digests of what was decided before each."""
        self.nodes = {n.name: n for n in module.graph.nodes}
        calls = Counter(str(n.target) for n in module.graph.nodes if n.op == "call_module")
        self.lone = {name for name, count in calls.items() if count == 1}
        """Modules that run once: several calls share statistics that are none of theirs, and stay as they are."""
        self.settled: set[str] = set()
        """Layers fitted and norms that took their intercept."""

    @torch.no_grad()
    def run(self) -> None:
        """Fits everything in one pass, from the last cut that an earlier pass came by with the same decisions."""
        changed = self._changed_modules()
        if not any(self._reads_data(str(node.target)) for node in changed):
            for node in changed:
                self._visit(node)
            return
        found = self.memory.deepest(self.data.kind, self.cuts)
        if found is not None:
            self._resume(*found)
        passed = {node.next: node for node in self.memory.wanted(self.data.kind, self.cuts)}

        def look(node: fx.Node) -> None:
            if node in passed:
                self._remember(passed[node])
            if node in changed:
                self._visit(node)

        def stops(node: fx.Node) -> bool:
            return node in passed or (node in changed and str(node.target) not in self.settled)

        self.data.execute(stops, look, None if found is None else found[0])

    @cached_property
    def data(self) -> TiledRun | SegmentedRun:
        """The calibration data at every node, as the compressed model computes them."""
        return TiledRun.of(self.module, self._inputs) or SegmentedRun(self.module, self._inputs)

    def _resume(self, at: fx.Node, snapshot: Snapshot) -> None:
        restore(snapshot, self.module)
        self.data.resume(at, snapshot.values)
        self.settled |= snapshot.settled

    def _remember(self, at: fx.Node) -> None:
        before = modules_before(self.module.graph, at)
        snapshot = Snapshot.of(self.data.stored(at), self.module, before, self.settled)
        self.memory.put(self.data.kind, self.cuts[at], snapshot)

    def _changed_modules(self) -> dict[fx.Node, None]:
        """Layers and norms whose output can differ from the dense model's, in the order of their nodes."""
        changed: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            own = node.op == "call_module" and str(node.target) in self.layers and self._changes(str(node.target))
            if own or node.name in self.cut or any(a in changed for a in node.all_input_nodes):
                changed.add(node)
        nodes = self.module.graph.nodes
        return {n: None for n in nodes if n in changed and n.op == "call_module" and self._fits_here(str(n.target))}

    def _changes(self, name: str) -> bool:
        """Whether a layer computes something else than the dense one even from the dense inputs."""
        decision = self.decisions.get(name, LayerDecision())
        own = min(decision.weight_bits, decision.activation_bits) < FULL_BITS or decision.sparsity > 0
        own = own or decision.rank < 1
        return own or self._narrowed(name)

    def _narrowed(self, name: str) -> bool:
        """Whether a layer has lost inputs; a depthwise one's leave with its outputs."""
        return not self.layers[name].depthwise and len(self.channels[name].inputs) < self.layers[name].in_channels

    def _fits_here(self, name: str) -> bool:
        return name in self.layers or (name in self.norms and absorbs(self.module.get_submodule(name)))

    def _reads_data(self, name: str) -> bool:
        """Whether a module's fit asks for what the pass computes, rather than for what the bank knows."""
        if name not in self.layers:
            return self.recipe.batchnorm == "reestimate"
        return any(self._place(name).quantizers) or (self.dense is not None and name in self.dense.targets)

    def _visit(self, node: fx.Node) -> None:
        name, source = str(node.target), node.all_input_nodes[0]
        if name in self.settled:
            return
        if name in self.layers:
            self.settled.add(name)
            self._fit(name, source)
        elif self.recipe.batchnorm == "reestimate" and name in self.lone:
            dense = self.bank.spreads[name].of_channels(torch.from_numpy(self.norms[name]))
            reestimate(self.module.get_submodule(name), self.data.spread(source), dense)

    def _fit(self, name: str, source: fx.Node) -> None:
        place = self._place(name)
        if place.facts.passive:
            return  # its weight is also that of others, or none that a fit knows
        quantizer, *inner = place.quantizers
        if quantizer is not None:
            quantizer.calibrate(self.data.observed(source), self.recipe.activation_range)
        if self.dense is not None and name in self.dense.targets:
            self._fit_to_dense(place, self.dense, source, quantizer)
        elif name in self.bank.moments:
            self._fit_alone(place)
        else:
            settle(place, self.recipe, rows=self._rows(place), known=self._known(place))
        if any(inner):
            self._calibrate_inner(place.holder, self.data.values(source))

    def _place(self, name: str) -> Place:
        return Place(self.layers[name], self.decisions.get(name, LayerDecision()), self.module.get_submodule(name))

    def _calibrate_inner(self, factored: nn.Module, values: Sequence[Tensor]) -> None:
        """What rounds the inputs of later factors, from what the settled ones before them give."""
        assert isinstance(factored, FactoredLayer)
        for part, following in itertools.pairwise(factored.parts):
            values = [part(x) for x in values]
            assert isinstance(following, QuantizedLayer) and following.input is not None
            following.input.calibrate(Observed.of(values), self.recipe.activation_range)

    def _fit_to_dense(
        self, place: Place, dense: DenseRows, source: fx.Node, quantizer: ActivationQuantizer | None
    ) -> None:
        """Towards what the dense model computes there, from the compressed model's own inputs."""
        name, layer = place.facts.name, place.layer
        point, targets = dense.points[name], dense.targets[name]
        other = self.nodes.get(point.other or "")  # none either where the block is left out that made it
        norm = self.module.get_submodule(point.norm) if point.norm else None
        intercept = norm is not None or layer.bias is not None
        # A factored layer does not tell kernel and stride; the dense one does.
        shaped = self.bank.model.get_submodule(name) if place.decision.rank < 1 else layer
        outputs = self.channels[name].outputs
        fit = self.data.regression(FitRequest(shaped, source, targets, outputs, other, quantizer, intercept))
        if not fit.finite:
            raise GraphError(
                f"Inputs and outputs of every layer must be finite; those of {name!r} hold NaN or infinity: check the "
                "calibration data."
            )
        settle(place, self.recipe, fit, fit.solve(self.recipe.ridge), self._known(place))
        set_intercept(layer, norm, fit)
        if point.norm:
            self.settled.add(point.norm)

    def _fit_alone(self, place: Place) -> None:
        """From the dense model's own moments of this layer, as every candidate that decides the same of it."""
        name, norm = place.facts.name, place.facts.norm
        found = self.bank.remains(name, place.decision, self.channels[name], lambda: self._settled_alone(place))
        set_weights(place.holder, found)
        if self.recipe.reconstruct != "none":
            shift_intercept(place.layer, self.module.get_submodule(norm) if norm else None, found[SHIFT])

    def _settled_alone(self, place: Place) -> dict[str, Tensor]:
        """A layer's weights, and by how much the mean of its outputs falls short of the dense one's."""
        name = place.facts.name
        sides = self.channels[name]
        fit = self.bank.regression(name, sides)
        if self._whole(place):
            self.bank.variant(name, place.decision).settle_(place.holder)
        elif self.recipe.reconstruct == "none":
            settle(place, self.recipe, fit, self._rows(place), self._known(place))
        else:
            narrowed = self._narrowed(name)
            rows = self.bank.refit(name, sides.inputs)[sides.outputs] if narrowed else self.bank.rows(name, sides)
            settle(place, self.recipe, fit, rows, self._known(place))
        return {**weights_of(place.holder), SHIFT: fit.shift(rows_of(place.layer))}

    def _whole(self, place: Place) -> bool:
        """Whether a layer still has all of its channels."""
        return self.channels[place.facts.name].counts == (place.facts.in_channels, place.facts.out_channels)

    def _rows(self, place: Place) -> Tensor | None:
        """The dense weights that are left, for a layer that has none of its own."""
        return self.bank.rows(place.facts.name, self.channels[place.facts.name]) if place.decision.rank < 1 else None

    def _known(self, place: Place) -> Known:
        return self.bank.known(place.facts.name, place.decision.pattern, self.channels[place.facts.name])
