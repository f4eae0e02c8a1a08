"""What a batch is taken for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import automc
from automc.class_dimension import class_dimension
from automc.errors import TaskError
from automc.task import accuracy

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


@pytest.mark.parametrize(
    ("outputs", "targets", "dim"),
    [
        ((8, 5), (8,), 1),
        ((8, 6, 5), (8, 6), 2),  # tokens
        ((8, 5, 6), (8, 6), 1),  # as cross_entropy takes them
        ((8, 5, 6, 7), (8, 6, 7), 1),
        ((8, 6, 7, 5), (8, 6, 7), 3),
        ((8, 5, 5), (8, 5), 2),  # both fit: tokens
        ((8, 5, 5, 5), (8, 5, 5), 1),  # both fit: an image
        ((8, 6, 5), (), 2),
        ((8, 5, 6, 7), (8,), 1),
    ],
)
def test_classes_lie_where_outputs_without_them_are_targets(
    outputs: tuple[int, ...], targets: tuple[int, ...], dim: int
) -> None:
    assert class_dimension(outputs, targets) == dim


def test_accuracy_of_positions_is_the_share_that_is_right() -> None:
    targets = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    scores = torch.nn.functional.one_hot(targets, 3).float()  # (B, T, C)
    scores[0, 0] = torch.tensor([0.0, 1.0, 0.0])
    assert accuracy(scores, targets).tolist() == accuracy(scores.transpose(1, 2), targets).tolist() == [0.75, 1.0]
    assert accuracy(scores[:, 0], targets[:, 0]).tolist() == [0.0, 1.0]
    with pytest.raises(TaskError, match=r"gives \(2, 4, 3\) for targets \(2,\): give the task a metric of its own"):
        accuracy(scores, targets[:, 0])
