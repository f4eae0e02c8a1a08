"""Label-free reconstruction: the compressed model is trained to compute what the dense one computes.

On unlabelled calibration inputs the loss is the dense model's softened output distribution (Hinton et al. 2015, eq. 4,
with its factor T^2), plus the relative squared error of every residual sum, the places where a pruned model still has
the dense one's channels (as hints, Romero et al. 2015, without regressors). Outputs that are no class scores (B,
classes) take the relative squared error alone.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from automc.compression.structure import interpretable
from automc.errors import TaskError
from automc.graph.blocks import ADDITIONS
from automc.graph.model_graph import ModelGraph
from automc.recovery.optimize import Columns, Progress, Schedule, optimize
from automc.task import Inputs

Augment = Callable[[Tensor, torch.Generator], Tensor]
Tapped = Callable[[Inputs], tuple[Any, Mapping[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Distillation:
    """What the student is held to, and how it is trained."""

    schedule: Schedule = field(default_factory=Schedule)
    temperature: float = 4.0
    features: float = 1.0
    """Weight of the residual sums' errors; 0 leaves the outputs alone."""


def distill(
    small: nn.Module,
    dense: nn.Module,
    graph: ModelGraph,
    inputs: Inputs,
    settings: Distillation | None = None,
    *,
    augment: Augment | None = None,
    progress: Progress | None = None,
) -> None:
    """Trains `small`, a compression of `dense` by a policy for `graph`, in place.

    augment: from the first input of a batch and a generator to a changed copy.
    """
    chosen = settings or Distillation()
    generator = torch.Generator().manual_seed(chosen.schedule.seed)
    student, teacher = tapped(graph, small.eval()), tapped(graph, copy.deepcopy(dense).eval())

    def loss(batch: Columns) -> Tensor:
        changed = batch if augment is None else (augment(batch[0], generator), *batch[1:])
        with torch.no_grad():
            target, goals = teacher(changed)
        outputs, sums = student(changed)
        both = [(sums[name], goals[name]) for name in sums if name in goals]  # sums inside a lost block are gone
        errors = [_relative(a, b) for a, b in both if _comparable(a, b)]
        hints = torch.stack(errors).sum() if errors and chosen.features else torch.zeros(())
        return output_loss(outputs, target, chosen.temperature) + chosen.features * hints

    optimize(small, inputs, loss, chosen.schedule, progress)


def output_loss(outputs: Any, target: Any, temperature: float) -> Tensor:
    """How far a student's outputs are from the teacher's, summed over all tensors of a tuple or dict."""
    pairs = zip(tree_leaves(outputs), tree_leaves(target), strict=True)
    losses = [_loss(a, b, temperature) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point()]
    if not losses:
        raise TaskError(f"A model to distill must give a tensor of floats; this one gives a {type(outputs).__name__}.")
    return torch.stack(losses).sum()


def _loss(outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        return _relative(outputs, target)
    soft = F.softmax(target / temperature, dim=1)
    divergence = F.kl_div(F.log_softmax(outputs / temperature, dim=1), soft, reduction="batchmean")
    return temperature**2 * divergence


def tapped(graph: ModelGraph, module: nn.Module) -> Tapped:
    """The module as a function that also gives its residual sums by name; its activations then work on copies."""
    if graph.graph is None:
        return lambda inputs: (module(*inputs), {})
    traced = interpretable(graph, module)
    extended = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    result = extended.graph_copy(traced.graph, copied)
    ends = {n.name for n in graph.graph.nodes if n.target in ADDITIONS and len(n.all_input_nodes) == 2}
    sums = {n.name: copied[n] for n in traced.graph.nodes if n.name in ends}  # a block left out keeps its sum's name
    extended.output((result, sums))
    both = fx.GraphModule(traced, extended)
    for part in both.modules():  # a gradient asks for what an activation in place has changed
        if isinstance(getattr(part, "inplace", None), bool):
            part.inplace = False  # type: ignore[assignment]
    return lambda inputs: both(*inputs)


def _comparable(value: object, goal: object) -> bool:
    """Whether a sum is a tensor with all of its channels left; sizes are added up in graphs, too."""
    tensors = isinstance(value, Tensor) and isinstance(goal, Tensor)
    return tensors and value.is_floating_point() and value.shape == goal.shape  # type: ignore[attr-defined]


def _relative(value: Tensor, goal: Tensor) -> Tensor:
    return F.mse_loss(value, goal) / goal.square().mean().clamp_min(1e-12)
