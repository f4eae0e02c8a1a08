"""Runs a traced model on calibration data in segments: all data reach one node before anyone looks at it there.

A refit needs every sample at a layer before the layer runs. Between two looks the samples go through in chunks small
enough to stay in cache, which is three times faster than sending all of them through node by node.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from automc.compression.calibration import Spread, gather_inputs, gather_outputs
from automc.compression.quantize import ActivationQuantizer, Observed
from automc.compression.regression import Regression
from automc.compression.targets import IntArray, Targets

CHUNK = 64


@dataclass(frozen=True, eq=False, slots=True)
class FitRequest:
    """What a layer reads from a node at sampled positions, and what some of its outputs should be there."""

    layer: nn.Module
    """Its kernel and stride count, not its weights."""
    source: fx.Node
    targets: Targets
    outputs: IntArray
    other: fx.Node | None
    """What is added to the outputs afterwards, and so leaves what they should be."""
    quantizer: ActivationQuantizer | None
    """What rounds the inputs."""
    intercept: bool

    def of_chunks(self, inputs: Sequence[Tensor], other: Sequence[Tensor] | None) -> Regression:
        """The sums, from the values of the source and of what is added, as torch has them."""
        inputs = inputs if self.quantizer is None else [self.quantizer(x) for x in inputs]
        wanted, positions = self.targets.rows(self.outputs), self.targets.positions
        if other is not None:
            wanted = wanted - gather_outputs(other, positions, channels_last=isinstance(self.layer, nn.Linear))
        return Regression.of(gather_inputs(self.layer, inputs, positions), wanted, intercept=self.intercept)


class DeferredRun(ABC):
    """One pass over the calibration data that computes what somebody looks at, and when they do.

    By then the layers in between are settled, however long ago their nodes came by.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self._waiting: list[fx.Node] = []
        """Nodes that have come by and were not run yet."""

    def execute(
        self, stops: Callable[[fx.Node], bool], look: Callable[[fx.Node], None], behind: fx.Node | None = None
    ) -> None:
        """Calls `look(node)` before each of `stops` runs: of all nodes, or of those behind one given to `resume`."""
        self._waiting = []
        nodes = list(self.module.graph.nodes)
        for node in nodes[0 if behind is None else nodes.index(behind) + 1 :]:
            if stops(node):
                look(node)
            self._waiting.append(node)

    def _catch_up(self) -> None:
        if self._waiting:
            self._run(self._waiting)
            self._waiting = []

    @abstractmethod
    def _run(self, segment: list[fx.Node]) -> None:
        """Runs nodes and forgets what no later one will read."""


class SegmentedRun(DeferredRun):
    """In torch; values are lists of tensors, one a chunk."""

    kind = "chunks"

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Tensor], chunk: int = CHUNK) -> None:
        super().__init__(module)
        self._interpreter = fx.Interpreter(module)
        columns = [x.clone().split(chunk) for x in inputs]  # type: ignore[no-untyped-call]
        self.chunks = len(columns[0])
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        self._values = [
            {node: column[c] for node, column in zip(placeholders, columns, strict=False)} for c in range(self.chunks)
        ]

    def resume(self, node: fx.Node, values: Sequence[Tensor]) -> None:
        """Forgets all values but those of one node, chunk by chunk."""
        self._values = [{node: x.clone()} for x in values]

    def stored(self, node: fx.Node) -> list[Tensor]:
        """A node's value as `resume` takes it; copies, since what comes next may work in place."""
        return [x.clone() for x in self.values(node)]

    def values(self, node: fx.Node) -> list[Tensor]:
        """What a node gives, chunk by chunk, while some later node still needs it."""
        self._catch_up()
        return [values[node] for values in self._values]

    def spread(self, node: fx.Node) -> Spread:
        """Mean and variance of each channel of what a node gives."""
        return Spread.of(self.values(node))

    def observed(self, node: fx.Node) -> Observed:
        """What a range for a node's value is chosen by."""
        return Observed.of(self.values(node))

    def regression(self, asked: FitRequest) -> Regression:
        """The sums that a fit needs."""
        other = None if asked.other is None else self.values(asked.other)
        return asked.of_chunks(self.values(asked.source), other)

    def _run(self, segment: list[fx.Node]) -> None:
        run, last_uses = self._interpreter, self._interpreter.user_to_last_uses
        for values in self._values:
            run.env = values
            for node in segment:
                if node not in values:  # inputs are there already, but for those left at their defaults
                    absent = node.op == "placeholder"
                    values[node] = next(iter(node.args), None) if absent else run.run_node(node)
                for dead in last_uses.get(node, ()):
                    values.pop(dead, None)
