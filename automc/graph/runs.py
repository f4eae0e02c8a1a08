"""Running a model without leaving a trace: a forward may change its inputs, and may draw random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from automc.errors import TaskError


def copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs for a forward to change as it likes."""
    return tuple(x.clone() for x in inputs)


def batch_size(inputs: tuple[Tensor, ...]) -> int:
    """Samples in the batch that these inputs are."""
    return inputs[0].shape[0] if inputs and inputs[0].dim() else 1


def of_size(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """A batch of `size` samples, repeated from another; TaskError where that has none."""
    if not batch_size(inputs):
        raise TaskError("Example inputs must hold at least one sample to be timed; there is none: pass a batch.")
    return tuple(torch.cat([x] * -(-size // len(x)))[:size] for x in inputs)


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Within, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensors(outputs: Any) -> tuple[Tensor, ...]:
    """What a forward gives, whatever it is held by."""
    return tuple(x for x in tree_leaves(outputs) if isinstance(x, Tensor))


@contextmanager
def repeatable() -> Iterator[None]:
    """Within, no gradients, and the same random numbers every time; outside, those there would have been."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
