"""Whether a written file computes what the module it was made of computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from automc.errors import ArtifactError
from automc.graph.runs import copies, repeatable, tensors
from automc.task import Inputs

_FLOOR = 1e-6
"""Difference that is none, whatever the outputs' size."""


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Inputs, and what the module gives for them."""

    inputs: Inputs
    outputs: tuple[Tensor, ...]


def sampled(module: nn.Module, inputs: Inputs, *, any_size: bool) -> list[Sample]:
    """The inputs as they are and, where a batch may have any size, as one sample and one more than there are."""
    more = tuple(torch.cat((x, x[:1])) for x in inputs)
    batches = [inputs, tuple(x[:1] for x in inputs), more] if any_size else [inputs]
    return [Sample(batch, outputs(module, batch)) for batch in batches]


def outputs(module: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    """Every tensor that a module gives for some inputs, however they are held."""
    with repeatable():
        return tuple(x.clone() for x in tensors(module(*copies(inputs))))


def check(expected: Sequence[Tensor], found: Sequence[Tensor], share: float, where: Any = "its outputs") -> None:
    """ArtifactError unless tensors are equal up to a share of the largest number among those expected."""
    largest = (float(x[x.isfinite()].double().abs().max()) if bool(x.isfinite().any()) else 0.0 for x in expected)
    within(expected, found, [share * x + _FLOOR for x in largest], where)


def within(
    expected: Sequence[Tensor], found: Sequence[Tensor], room: Sequence[float], where: Any = "its outputs"
) -> None:
    """ArtifactError unless no number of a tensor is farther from the one expected than there is room."""
    if [tuple(x.shape) for x in expected] != [tuple(x.shape) for x in found]:
        raise _unequal(f"the shapes of {where}")
    for one, other, allowed in zip(expected, found, room, strict=True):
        difference = (one.double() - other.double()).abs()
        finite = one.isfinite()
        if not torch.equal(finite, other.isfinite()):
            raise _unequal(f"which of {where} are finite")
        if not bool(finite.any()):
            continue
        largest = float(difference[finite].max())
        if not largest <= allowed:  # what is allowed may be no number
            raise _unequal(f"{where} by {largest:.3g}, where {allowed:.3g} is rounding")


def _unequal(what: str) -> ArtifactError:
    return ArtifactError(
        f"An exported model must compute what the module does; this one differs in {what}: keep the file automc saved, "
        "and report the model."
    )
