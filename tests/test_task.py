"""What a batch is taken for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import automc
from automc.errors import TaskError

X, Y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)


class Two(nn.Module):
    """A model with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.head(x + y)
        return out


def two(*calibration: Any) -> automc.Task:
    return automc.Task(Two(), calibration=calibration, validation=[((X, X), Y)])


def test_two_inputs_with_and_without_targets() -> None:
    assert two(((X, X), Y)).labelled
    for batch in (((X, X), None), [[X, X], None]):
        task = two(batch)
        assert not task.labelled and len(task.example_inputs) == 2 and task.calibration_targets(6) is None
    assert not two(((X, X), Y), ((X, X), None)).labelled


def test_a_bare_pair_is_inputs_and_targets_and_a_model_with_two_inputs_says_so() -> None:
    with pytest.raises(
        TaskError, match=r"given 1 it answers missing a required argument: 'y': .*as \(\(x, y\), None\)"
    ):
        two((X, X))
    with pytest.raises(TaskError, match="forward takes; given 3 it answers too many"):
        two((X, X, X))


def test_a_batch_of_something_else_is_named_by_what_it_holds() -> None:
    with pytest.raises(TaskError, match="tensors both; it is tuple of Tensor, int: convert it"):
        two((X, 3))
    with pytest.raises(TaskError, match=r"A validation batch .* it is Tensor: convert it"):
        automc.Task(nn.Linear(4, 2), calibration=[X], validation=[X])
