"""A model, or one convolution, as one plan of compiled steps; each product by the way that is fastest here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, fx, nn

from automc.compression.lowering import lowered, window_of
from automc.deployment.timing import seconds_of
from automc.graph.named import maker, without_names
from automc.kernels.images import Choice, lanes, planned, run
from automc.kernels.matrix import BLOCKS
from automc.kernels.plan import plain
from automc.kernels.steps import Shape, Steps, shape_of
from automc.scoring.folding import folded

WORK, IMAGES = 2e7, 32
"""Multiply-accumulates that a product is timed on, and how many images at most: enough to see more than the call."""
DENSE = 0.7
"""Share of weights that are not zero from which on hardly a block is left out."""
LARGE = 2**15
"""Bytes of one product's input from which on it is tried in parts: less stays in the first cache."""


class PlannedNetwork(nn.Module):
    """A planned model; its plan is a buffer, and suits processors with vectors of the same width."""

    def __init__(self, plan: Tensor, made: Shape, *, flat: bool) -> None:
        """made: one result's shape; flat: whether results are (B, channels)."""
        super().__init__()
        from automc.kernels import ops  # noqa: F401  (registers the operation)

        self.made, self.flat = made, flat
        self.register_buffer("plan", plan)

    plan: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, height, width) or (B, channels), float32; of another size raises TaskError."""
        height, width, channels = self.made
        shape = (channels, height, width)
        found: Tensor = run(x, self.plan, shape) if plain(x) else torch.ops.automc.images(x, self.plan, shape)
        return found.flatten(1) if self.flat else found


class Named(nn.Module):
    """A planned model whose one output has a name."""

    def __init__(self, plan: PlannedNetwork, kind: Callable[..., object], name: str) -> None:
        super().__init__()
        self.plan, self._kind, self._name = plan, kind, name

    def forward(self, x: Tensor) -> object:
        """As the plan."""
        return self._kind(**{self._name: self.plan(x)})


def network_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> PlannedNetwork | Named | None:
    """A module in eval mode as one plan; None where an operation has no step, nothing is compiled, or on a GPU."""
    shape = shape_of(inputs[0]) if len(inputs) == 1 and inputs[0].is_cpu and lanes() else None
    small = folded(module, inputs)
    if shape is None or not isinstance(small, fx.GraphModule):
        return None
    named = maker(small.graph)
    found = lowered(without_names(small, _only), shape, Steps())
    if found is None or found.output is None:
        return None
    source, result = found.value(found.inputs[0]), found.value(found.output)
    plan = _planned(found.program, source, result, flat=found.is_flat(found.output))
    return plan if named is None else Named(plan, named.target, *named.kwargs)  # type: ignore[arg-type]


def _only(parts: dict[str, fx.Node]) -> object:
    """A single part; several have no plan."""
    return next(iter(parts.values())) if len(parts) == 1 else parts


def convolution_of(layer: nn.Conv2d, shape: Shape) -> PlannedNetwork | None:
    """One convolution on images of a shape as a plan; None where it has none."""
    window = window_of(layer, shape)
    if window is None or not lanes():
        return None
    network = Steps()
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    given = network.given(shape)
    made = network.convolution(given, layer.weight.detach().numpy(), bias, window, layer.groups)
    return _planned(network, given, made, flat=False)


def _planned(network: Steps, source: int, result: int, *, flat: bool) -> PlannedNetwork:
    choices = {number: fastest_choice(network, number) for number in network.products}
    plan = planned(network, source, result, choices)
    return PlannedNetwork(plan, network.shapes[result], flat=flat)


def fastest_choice(network: Steps, number: int) -> Choice:
    """The fastest way here for one product: blocks first, then how the best two of them read their input."""
    weight = network.steps[number].weight
    assert weight is not None
    dense = np.count_nonzero(weight) > DENSE * weight.size
    blocks = [Choice(block) for block in BLOCKS if block >= 4 or not dense]
    seconds = _timed(network, number, blocks)
    ranked = sorted(range(len(blocks)), key=seconds.__getitem__)
    others = [other for i in ranked[:2] for other in _others(blocks[i], network, number)]
    candidates = [blocks[ranked[0]], *others]
    again = _timed(network, number, candidates)
    return candidates[min(range(len(candidates)), key=again.__getitem__)]


def _others(choice: Choice, network: Steps, number: int) -> list[Choice]:
    """The same block with moved copies laid out first, and in two parts."""
    step = network.steps[number]
    height, width, channels = network.shapes[step.x]
    found = [choice]
    if step.window.kernel[1] > 1:
        found.append(replace(choice, shift=True))
    if 4 * height * width * channels > LARGE:
        found += [replace(other, parts=2) for other in found]
    return found[1:]


def _timed(network: Steps, number: int, candidates: Sequence[Choice]) -> list[float]:
    """Seconds of one product, by itself, in each way."""
    step = network.steps[number]
    assert step.weight is not None
    alone = Steps()
    given = alone.given(network.shapes[step.x])
    made = alone.convolution(given, step.weight, step.bias, step.window, step.groups, step.limits)
    height, width, channels = network.shapes[step.x]
    shape = (alone.shapes[made][2], *alone.shapes[made][:2])
    each = int(np.count_nonzero(step.weight)) * shape[1] * shape[2]
    images = min(IMAGES, 1 + int(WORK / max(1, each)))
    x = torch.rand(images, channels, height, width, generator=torch.Generator().manual_seed(0))
    ways: list[Callable[[], object]] = [
        partial(run, x, planned(alone, given, made, {0: choice}), shape) for choice in candidates
    ]
    return seconds_of(ways)
