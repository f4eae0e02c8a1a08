"""Training a compressed model without undoing what was decided.

Pruned channels are gone, pruned weights stay zero, evenly quantized weights are not trained (their biases and norms
are), shared weights move with their centroids, whose gradient is the sum of their weights' (Han et al. 2016, section
3.3). Batch norms keep their statistics, so that one batch never differs from another.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from automc.compression.codebook import Codebook, SharedWeight
from automc.compression.quantize import QuantizedLayer, quantized_layers
from automc.errors import TaskError

Columns = tuple[Tensor, ...]
Loss = Callable[[Columns], Tensor]
Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast; Adam, its rate falling to zero along a cosine."""

    epochs: int = 20
    batch: int = 64
    rate: float = 3e-4
    decay: float = 0.0
    """Weight decay, decoupled (Loshchilov and Hutter 2019)."""
    seed: int = 0


def optimize(
    small: nn.Module, columns: Columns, loss: Loss, schedule: Schedule, progress: Progress | None = None
) -> None:
    """Trains `small` in place on shuffled batches of the columns' rows; it is left in eval mode.

    `loss` maps a batch to a scalar; progress is told each epoch's number and mean loss. Same seed and threads, same
    result. A loss that is not finite raises TaskError.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    small.eval()
    with _shared_weights(small), torch.enable_grad():
        trained = tuple(trainable(small))
        masks = [(p, p != 0) for p in trained if p.dim() > 1]  # zeros of weights are decisions, those of biases are not
        optimizer = torch.optim.AdamW(trained, lr=schedule.rate, weight_decay=schedule.decay)
        steps = schedule.epochs * max(1, len(columns[0]) // schedule.batch)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with _gradients(small, trained):
            for epoch in range(schedule.epochs):
                total = 0.0
                for count, batch in enumerate(_shuffled(columns, schedule.batch, generator), 1):
                    value = loss(batch)
                    _check(value, epoch, schedule)
                    optimizer.zero_grad()
                    value.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    falling.step()
                    _mask(masks)
                    total += (float(value.detach()) - total) / count
                if progress is not None:
                    progress(epoch, total)


def trainable(small: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter that is not a weight held in few bits."""
    fixed = {id(m.layer.weight) for m in small.modules() if isinstance(m, QuantizedLayer) and m.codes is not None}
    lists = (m for m in small.modules() if isinstance(m, parametrize.ParametrizationList))
    inner = {id(m.original) for m in lists if any(isinstance(p, SharedWeight) for p in m)}
    return (p for p in small.parameters() if id(p) not in fixed | inner)


def _check(value: Tensor, epoch: int, schedule: Schedule) -> None:
    if not bool(torch.isfinite(value)):
        raise TaskError(
            f"The loss must stay finite while training; it is not in epoch {epoch}: lower the rate {schedule.rate}."
        )


def _shuffled(columns: Columns, size: int, generator: torch.Generator) -> Iterator[Columns]:
    """Whole batches in a new order; fewer rows than one batch are one batch."""
    order = torch.randperm(len(columns[0]), generator=generator)
    for start in range(0, max(1, len(order) - size + 1), size):
        chosen = order[start : start + size]
        yield tuple(x[chosen] for x in columns)


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


@contextmanager
def _shared_weights(module: nn.Module) -> Iterator[None]:
    """While open, layers with a codebook compute their weight from trainable centroids."""
    holders = [(holder, holder.centroids) for _, holder in quantized_layers(module) if holder.centroids is not None]
    required = [next(holder.layer.parameters()).requires_grad for holder, _ in holders]
    for holder, centroids in holders:
        codes = holder.codes
        assert codes is not None
        sharing = SharedWeight(Codebook(centroids, codes), codes != 0)
        parametrize.register_parametrization(holder.layer, "weight", sharing, unsafe=True)
    try:
        yield
    finally:
        for (holder, _), needed in zip(holders, required, strict=True):
            sharing = holder.layer.parametrizations["weight"][0]  # type: ignore[index,assignment]
            holder.centroids = sharing.centroids.detach().clone()
            parametrize.remove_parametrizations(holder.layer, "weight", leave_parametrized=True)
            holder.layer.weight.requires_grad_(needed)
