"""Fine-tuning on labels, optionally with the dense model as a teacher, and pruning little by little on the way."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.patterns import layout, mask_by_score
from automc.errors import TaskError
from automc.pattern import parse
from automc.recovery.distill import output_loss
from automc.recovery.optimize import Columns, Progress, Schedule, optimize
from automc.task import Batch

TEMPERATURE = 4.0


def finetune(
    small: nn.Module,
    batches: Sequence[Batch],
    schedule: Schedule | None = None,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    teacher: nn.Module | None = None,
    weight: float = 0.5,
    progress: Progress | None = None,
) -> None:
    """Trains a compressed model in place on labelled batches; what was decided stays (see `optimize`).

    criterion: from outputs and targets to a scalar; with a teacher the loss is (1 - weight) * criterion + weight * the
    softened divergence from the teacher's outputs. No batches raise TaskError.
    """
    if not batches:
        raise TaskError("Fine-tuning must have labelled batches; there are none: give the task its training data.")
    columns = tuple(torch.cat(parts) for parts in zip(*(inputs for inputs, _ in batches), strict=True))
    targets = torch.cat([target for _, target in batches])
    dense = None if teacher is None else copy.deepcopy(teacher).eval()
    goals = None if dense is None else _answers(dense, columns)
    known = () if goals is None else (goals,)

    def loss(batch: Columns) -> Tensor:
        inputs, target = batch[: len(columns)], batch[len(columns)]
        outputs = small(*inputs)
        own = criterion(outputs, target)
        if dense is None:
            return own
        with torch.no_grad():
            goal = batch[-1] if known else dense(*inputs)
        return (1 - weight) * own + weight * output_loss(outputs, goal, TEMPERATURE)

    optimize(small, (*columns, targets, *known), loss, schedule or Schedule(), progress)


@torch.no_grad()
def _answers(teacher: nn.Module, columns: Columns, chunk: int = 500) -> Tensor | None:
    """The teacher's outputs for all inputs, since no input changes; None where they take more room than the inputs."""
    parts = zip(*(x.split(chunk) for x in columns), strict=True)  # type: ignore[no-untyped-call]
    first = teacher(*(x[:1] for x in columns))
    if not isinstance(first, Tensor) or first.numel() > sum(x[0].numel() for x in columns):
        return None
    return torch.cat([teacher(*part) for part in parts])


def prune_gradually(
    small: nn.Module,
    batches: Sequence[Batch],
    sparsities: Mapping[str, float],
    schedule: Schedule | None = None,
    *,
    steps: int = 10,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
) -> None:
    """Prunes single weights by magnitude in `steps` steps of growing sparsity, fine-tuning for `schedule` after each.

    sparsities: by layer name, in the end. The share of zeros after step t of T is s (1 - (1 - t / T)^3) (Zhu and Gupta
    2018, eq. 1); what is zero once stays zero.
    """
    chosen = schedule or Schedule(epochs=1)
    for step in range(1, steps + 1):
        share = 1 - (1 - step / steps) ** 3
        for name, sparsity in sparsities.items():
            _prune(small.get_submodule(name), sparsity * share)
        finetune(small, batches, replace(chosen, seed=chosen.seed + step), teacher=teacher)
        if progress is not None:
            progress(step, share)


@torch.no_grad()
def _prune(layer: nn.Module, sparsity: float) -> None:
    weight, element = layer.weight, parse("element")
    assert isinstance(weight, Tensor)
    conv_groups = int(getattr(layer, "groups", 1))
    weight *= mask_by_score(weight.abs(), sparsity, element, layout(tuple(weight.shape), conv_groups, element))
