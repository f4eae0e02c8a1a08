"""A calibration pass on compiled tiles: what `SegmentedRun` does, for models whose every operation has a step.

Sampled rows come in groups of samples at one position (`calibration.sampled_positions`), which is what makes their
moments cheap: a tile's vectors are read as they lie.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from automc.compression.calibration import GROUPED, Spread
from automc.compression.lowering import Lowering, lowered, run_tiles, window_of
from automc.compression.quantize import Observed, sample_step
from automc.compression.regression import Regression
from automc.compression.segments import DeferredRun, FitRequest
from automc.compression.targets import PositionArray
from automc.kernels.moments import channel_moments, column_moments
from automc.kernels.steps import Window, shape_of
from automc.kernels.threads import lent_threads
from automc.kernels.tiles import Program, Room, lanes, to_tiles
from automc.task import Inputs


class TiledRun(DeferredRun):
    """By compiled steps; values are tiles, all data together."""

    kind = "tiles"

    def __init__(self, module: fx.GraphModule, whole: Lowering[Program], inputs: Tensor) -> None:
        super().__init__(module)
        self._whole, self._samples = whole, len(inputs)
        self._order = {node: i for i, node in enumerate(module.graph.nodes)}
        self._last_use = {n: max((self._order[user] for user in n.users), default=-1) for n in self._order}
        self._values = {whole.inputs[0]: to_tiles(inputs)}
        self._room = Room()
        self._shared: set[int] = set()
        """Addresses of tiles that others hold, too."""

    @classmethod
    def of(cls, module: fx.GraphModule, inputs: Inputs) -> "TiledRun | None":
        """A run of a module on calibration inputs; None where it cannot go on tiles."""
        if not lanes() or len(inputs) != 1 or len(inputs[0]) < GROUPED:
            return None
        shape = shape_of(inputs[0])
        whole = None if shape is None else lowered(module, shape, Program())
        return None if whole is None else cls(module, whole, inputs[0])

    def execute(
        self, stops: Callable[[fx.Node], bool], look: Callable[[fx.Node], None], behind: fx.Node | None = None
    ) -> None:
        """As any pass does, with the threads of torch."""
        with lent_threads():
            super().execute(stops, look, behind)

    def stored(self, node: fx.Node) -> list[Tensor]:
        """A node's value as `resume` takes it; not to be changed."""
        found = self._tiles(node)
        self._shared.add(found.data_ptr())
        return [found]

    def resume(self, node: fx.Node, values: Sequence[Tensor]) -> None:
        """Forgets all values but that of one node."""
        self._values = {node: values[0]}
        self._shared.add(values[0].data_ptr())

    def values(self, node: fx.Node) -> list[Tensor]:
        """What a computed node gave, as torch has it."""
        return [self._whole.samples(node, self._tiles(node), self._samples)]

    def spread(self, node: fx.Node) -> Spread:
        """Mean and variance of each channel of what a node gives."""
        return Spread(*channel_moments(self._tiles(node), self._samples))

    def observed(self, node: fx.Node) -> Observed:
        """What a range for a node's value is chosen by."""
        return _observed(self._tiles(node), self._samples)

    def regression(self, asked: FitRequest) -> Regression:
        """The sums that a fit needs."""
        shape = self._whole.shape(asked.source)
        window = window_of(asked.layer, shape)
        if window is None:
            other = None if asked.other is None else self.values(asked.other)
            return asked.of_chunks(self.values(asked.source), other)
        places, wanted = asked.targets.tiles(asked.outputs, *window.over(shape))
        if asked.other is not None:
            tile, y, x = torch.from_numpy(places.T).to(torch.int64)
            wanted = wanted - self._tiles(asked.other)[tile, y, x]
        tiles = self._tiles(asked.source)
        tiles = tiles if asked.quantizer is None else asked.quantizer(tiles)
        return _regression(tiles, window, places, wanted, intercept=asked.intercept)

    def _tiles(self, node: fx.Node) -> Tensor:
        """A node's value, once everything that waits has run."""
        self._catch_up()
        return self._values[node]

    def _run(self, segment: list[fx.Node]) -> None:
        behind = self._order[segment[-1]] + 1
        read = {a for n in segment for a in n.all_input_nodes if a in self._values}
        program = Lowering(self.module, Program())
        for node in sorted(read, key=self._order.__getitem__):
            program.given(node, self._whole.shape(node), flat=self._whole.is_flat(node))
        nodes = [node for node in segment if node not in self._values]
        if not nodes:
            return
        program.lower(nodes)
        wanted = [node for node in nodes if self._last_use[node] >= behind]
        found = run_tiles(program, {node: self._values[node] for node in read}, wanted, self._room)
        self._values |= dict(zip(wanted, found, strict=True))
        held = {n: x for n, x in self._values.items() if self._last_use[n] >= behind}
        # An operation that does nothing gives what it was given.
        kept = self._shared | {x.data_ptr() for x in held.values()}
        for x in {x.data_ptr(): x for x in self._values.values() if x.data_ptr() not in kept}.values():
            self._room.give(x)
        self._values = held


def _observed(tiles: Tensor, samples: int) -> Observed:
    """Of the first `samples`, in the order in which torch has them."""
    whole, left = divmod(samples, lanes())
    parts = [tiles[:whole], tiles[whole:, ..., :left]]
    bounds = [torch.aminmax(x) for x in parts if x.numel()]
    _, height, width, channels, _ = tiles.shape
    count = samples * channels * height * width
    at = torch.arange(0, count, sample_step(count))
    at, x = at // width, at % width
    at, y = at // height, at % height
    sample, channel = at // channels, at % channels
    found = tiles[sample // lanes(), y, x, channel, sample % lanes()]
    return Observed(min(float(b.min) for b in bounds), max(float(b.max) for b in bounds), found)


def _regression(tiles: Tensor, window: Window, places: PositionArray, wanted: Tensor, *, intercept: bool) -> Regression:
    found = column_moments(tiles, window, places, wanted)
    n = len(found.mean) - wanted.shape[1]
    mean, second = found.mean, found.centred
    if not intercept:
        second, mean = second + torch.outer(mean, mean), torch.zeros_like(mean)
    return Regression(second[None, :n, :n], second[None, :n, n:], mean[None, :n], mean[None, n:])
