"""The task: what the user brings.

A batch is `(inputs, targets)`; `inputs` is a tensor, or a tuple of tensors for a model with several inputs.
Calibration batches may come without targets, as bare inputs; two of them in a tuple would be inputs and targets, so
that a model with two inputs is calibrated on `((x, y), None)`.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from automc.class_dimension import class_dimension
from automc.errors import TaskError

Inputs = tuple[Tensor, ...]
Batch = tuple[Inputs, Tensor]
Metric = Callable[[Any, Tensor], Tensor]
"""From outputs and targets of a batch to per-sample scores (B,), higher is better."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """By sample the share of positions, often a single one, where the largest of the class scores is the target."""
    found = outputs.argmax(dim=class_dimension(outputs.shape, targets.shape))
    if found.shape != targets.shape:
        raise TaskError(
            "Accuracy needs class scores with a class for each target; this model gives "
            f"{tuple(outputs.shape)} for targets {tuple(targets.shape)}: give the task a metric of its own."
        )
    return (found == targets).to(torch.float32).reshape(len(targets), -1).mean(dim=1)


METRICS: dict[str, Metric] = {"accuracy": accuracy}


@dataclass(frozen=True, eq=False)
class Task:
    """A trained model, the data to calibrate and score it on, and the metric that counts."""

    model: nn.Module
    calibration: Sequence[Any]
    """Batches the compression may look at; only criteria that need gradients of a loss use targets."""
    validation: Sequence[Any]
    """Batches the search scores on."""
    metric: str | Metric = "accuracy"
    """A name, or a callable from (outputs, targets) to per-sample scores (B,), higher is better."""
    evaluate: Callable[[nn.Module], float] | None = None
    """Replaces metric and validation for scores that are no mean over samples; given a copy in eval mode."""
    train: Sequence[Any] | None = None
    test: Sequence[Any] | None = None
    """Batches the report is made on, once; the search never sees them."""
    name: str = "task"
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """Changes a batch of the first input in ways that do not change what it shows; for training only."""
    factory: Callable[[], nn.Module] | None = None
    """Builds the model with untrained weights, for loading a saved result; None where only the API is used."""
    labelled: bool = field(init=False, default=False)
    """Whether every calibration batch came with targets."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TaskError(
                f"A task's model must be an nn.Module; it is a {type(self.model).__name__}: pass the module."
            )
        for name in ("calibration", "validation", "train", "test"):
            object.__setattr__(self, name, _batches(getattr(self, name), name))
        object.__setattr__(self, "labelled", all(targets.numel() for _, targets in self.calibration))
        if not self.calibration:
            raise TaskError("A task must have calibration batches; it has none: pass a few hundred unlabelled samples.")
        _check_inputs(self.model, self.calibration[0][0])
        if not self.validation and self.evaluate is None:
            raise TaskError("A task must have validation batches or an evaluate callable; it has neither: pass one.")
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise TaskError(
                f"A metric must be callable or one of {sorted(METRICS)}; it is {self.metric!r}: use one of them."
            )

    @property
    def per_sample(self) -> Metric:
        """The metric as a callable."""
        return METRICS[self.metric] if isinstance(self.metric, str) else self.metric

    @property
    def example_inputs(self) -> Inputs:
        """Inputs of the first two calibration samples."""
        return tuple(x[:2] for x in self.calibration[0][0])

    def calibration_targets(self, samples: int) -> Tensor | None:
        """Targets of the first `samples` calibration samples; None where some batch came without."""
        if not self.labelled:
            return None
        return torch.cat([targets for _, targets in self.calibration])[:samples]

    def calibration_inputs(self, samples: int) -> Inputs:
        """Inputs of the first `samples` calibration samples, joined into one batch."""
        parts: list[Inputs] = []
        left = samples
        for inputs, _ in self.calibration:
            if left <= 0:
                break
            parts.append(tuple(x[:left] for x in inputs))
            left -= len(inputs[0])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _check_inputs(model: nn.Module, inputs: Inputs) -> None:
    """TaskError unless the model's forward can be called with so many inputs."""
    try:
        inspect.signature(model.forward).bind(*inputs)
    except ValueError:  # not every forward is Python
        return
    except TypeError as error:
        raise TaskError(
            f"A calibration batch must hold what forward takes; given {len(inputs)} it answers {error}: write "
            " two without targets as ((x, y), None), since a bare pair is read as (inputs, targets)."
        ) from error


def _batches(data: Iterable[Any] | None, name: str) -> tuple[Batch, ...] | None:
    """Every batch as (tuple of input tensors, targets); the loader is read once."""
    if data is None:
        return None
    return tuple(_batch(item, name) for item in data)


def _split(item: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch; None for targets it has not. Any two things are inputs and targets."""
    return tuple(item) if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)


def _batch(item: Any, name: str) -> Batch:
    inputs, targets = _split(item)
    inputs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if targets is None and name == "calibration":
        targets = torch.empty(0)  # none still where `dataclasses.replace` hands the batch on
    if not isinstance(targets, Tensor) or not all(isinstance(x, Tensor) for x in inputs):
        raise TaskError(
            f"A {name} batch must be (inputs, targets), tensors both; it is {_kind(item)}: convert it, and put several "
            "inputs in a tuple of their own."
        )
    return inputs, targets


def _kind(item: Any) -> str:
    """What a batch is made of."""
    if not isinstance(item, (tuple, list)):
        return type(item).__name__
    return f"{type(item).__name__} of {', '.join(type(x).__name__ for x in item) or 'nothing'}"
