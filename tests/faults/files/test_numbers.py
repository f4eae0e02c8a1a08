"""Numbers that are none: in one weight, one calibration image, one validation image, or what an evaluator answers."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import automc
from automc.errors import AutomcError
from automc.task import Task
from tests.faults.files import readers

NONE = (float("nan"), float("inf"), float("-inf"))


def task(weight: float = 0.0, calibration: float = 0.0, validation: float = 0.0) -> Task:
    """The net with one number somewhere."""
    sound = readers.task()
    model = copy.deepcopy(sound.model)
    (x,), y = sound.calibration[0]
    seen, scored = x.clone(), x.clone()
    seen[3, 0, 0, 0], scored[3, 0, 0, 0] = calibration, validation
    with torch.no_grad():
        model.get_parameter("second.weight")[0, 0, 0, 0] = weight
    return Task(model, [(seen, y)], [(scored, y)], name="net")


def searched(found: Task, folder: Path) -> automc.Study:
    return automc.search(found, budget="macs<=60%", searcher="random", trials=4, storage=folder / "x.journal")


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize("where", ["weight", "validation"])
def test_a_model_that_computes_no_numbers_is_refused_at_the_start(where: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(AutomcError, match="must be finite"):
        searched(task(**{where: value}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", NONE)
def test_candidates_that_cannot_be_fitted_fail_with_the_layer_and_the_search_goes_on(
    value: float, tmp_path: Path
) -> None:
    study = searched(task(calibration=value), tmp_path)
    assert [e.state for e in study.evaluations] == ["failed"] * 4
    assert all("those of 'first' hold" in e.reason and e.score is None for e in study.evaluations)


def answers(value: float) -> Callable[[nn.Module], float]:
    """An evaluator that answers so to every second question."""
    asked: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        asked.append(model)
        return value if len(asked) % 2 == 0 else 0.5

    return evaluate


@pytest.mark.parametrize("value", NONE)
def test_an_evaluator_that_gives_no_number_fails_its_candidate_alone(value: float, tmp_path: Path) -> None:
    sound = readers.task()
    found = Task(sound.model, sound.calibration, [], evaluate=answers(value), name="net")
    study = searched(found, tmp_path)
    assert {e.state for e in study.evaluations} == {"ok", "failed"} and study.best.score == 0.5
