"""Label-free reconstruction: the compressed model is trained to compute what the dense one computes.

On unlabelled calibration inputs the loss is the dense model's softened output distribution (Hinton et al. 2015, eq. 4,
with its factor T^2), plus the relative squared error of every residual sum, the places where a pruned model still has
the dense one's channels (as hints, Romero et al. 2015, without regressors). Outputs that are no class scores (B,
classes) take the relative squared error alone.

What the policy decided stays: pruned channels are gone, pruned weights stay zero, quantized weights are not trained
(their biases and norms are). Batch norms keep their statistics, so that one batch never differs from another.
"""

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from automc.compression.quantize import QuantizedLayer
from automc.compression.structure import interpretable
from automc.errors import TaskError
from automc.graph.model_graph import ModelGraph
from automc.task import Inputs

Augment = Callable[[Tensor, torch.Generator], Tensor]
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast; the rate falls to zero along a cosine."""

    epochs: int = 20
    batch: int = 64
    rate: float = 3e-4
    temperature: float = 4.0
    features: float = 1.0
    """Weight of the residual sums' errors; 0 leaves the outputs alone."""
    seed: int = 0


def distill(
    small: nn.Module,
    dense: nn.Module,
    graph: ModelGraph,
    inputs: Inputs,
    schedule: Schedule | None = None,
    *,
    augment: Augment | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Trains `small`, a compression of `dense` by a policy for `graph`, in place; it is left in eval mode.

    augment: from the first input of a batch and a generator to a changed copy; progress is told each epoch's number and
    mean loss. Same seed and threads, same result. A loss that is not finite raises TaskError.
    """
    schedule = schedule or Schedule()
    generator = torch.Generator().manual_seed(schedule.seed)
    student, teacher = _tapped(graph, small.eval()), _tapped(graph, copy.deepcopy(dense).eval())
    trained = tuple(trainable(small))
    masks = [(p, p != 0) for p in trained if p.dim() > 1]  # zeros of weights are decisions, those of biases are not
    optimizer = torch.optim.Adam(trained, lr=schedule.rate)
    steps = schedule.epochs * max(1, len(inputs[0]) // schedule.batch)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with _gradients(small, trained):
        for epoch in range(schedule.epochs):
            total, batches = 0.0, 0
            for batch in _shuffled(inputs, schedule.batch, generator):
                first = batch[0] if augment is None else augment(batch[0], generator)
                loss = _loss(student, teacher, (first, *batch[1:]), schedule)
                if not bool(torch.isfinite(loss)):
                    raise TaskError(
                        f"The distillation loss must stay finite; it is not in epoch {epoch}: lower the rate "
                        f"{schedule.rate}."
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                decay.step()
                _mask(masks)
                total, batches = total + float(loss.detach()), batches + 1
            if progress is not None:
                progress(epoch, total / batches)


def trainable(small: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter that is not a quantized weight."""
    fixed = {
        id(m.layer.weight) for m in small.modules() if isinstance(m, QuantizedLayer) and m.weight_scale is not None
    }
    return (p for p in small.parameters() if id(p) not in fixed)


Tapped = Callable[[Inputs], tuple[Tensor, Sequence[Tensor]]]


def _tapped(graph: ModelGraph, module: nn.Module) -> Tapped:
    """The module as a function that also gives its residual sums."""
    if graph.graph is None:
        return lambda inputs: (module(*inputs), ())
    traced = interpretable(graph, module)
    extended = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    result = extended.graph_copy(traced.graph, copied)
    sums = [copied[n] for n in traced.graph.nodes if n.target in _ADDITIONS and len(n.all_input_nodes) == 2]
    extended.output((result, tuple(sums)))
    both = fx.GraphModule(traced, extended)
    return lambda inputs: both(*inputs)


def _loss(student: Tapped, teacher: Tapped, inputs: Inputs, schedule: Schedule) -> Tensor:
    with torch.no_grad():
        target, goals = teacher(inputs)
    outputs, sums = student(inputs)
    if not isinstance(outputs, Tensor):
        raise TaskError(f"A model to distill must give one tensor; this one gives a {type(outputs).__name__}: wrap it.")
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        t = schedule.temperature
        soft = F.softmax(target / t, dim=1)
        loss = t * t * F.kl_div(F.log_softmax(outputs / t, dim=1), soft, reduction="batchmean")
    else:
        loss = _relative(outputs, target)
    errors = [_relative(a, b) for a, b in zip(sums, goals, strict=True) if _comparable(a, b)]
    return loss + schedule.features * torch.stack(errors).sum() if errors and schedule.features else loss


def _comparable(value: object, goal: object) -> bool:
    """Whether a sum is a tensor with all of its channels left; sizes are added up in graphs, too."""
    tensors = isinstance(value, Tensor) and isinstance(goal, Tensor)
    return tensors and value.is_floating_point() and value.shape == goal.shape  # type: ignore[attr-defined]


def _relative(value: Tensor, goal: Tensor) -> Tensor:
    return F.mse_loss(value, goal) / goal.square().mean().clamp_min(1e-12)


def _shuffled(inputs: Inputs, size: int, generator: torch.Generator) -> Iterator[Inputs]:
    """Whole batches in a new order; fewer samples than one batch are one batch."""
    order = torch.randperm(len(inputs[0]), generator=generator)
    for start in range(0, max(1, len(order) - size + 1), size):
        chosen = order[start : start + size]
        yield tuple(x[chosen] for x in inputs)


@torch.no_grad()
def _mask(masks: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, mask in masks:
        parameter.mul_(mask)


@contextmanager
def _gradients(module: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """While open, exactly the trained parameters take gradients."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    chosen = {id(p) for p in trained}
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.grad = None
            parameter.requires_grad_(required)
