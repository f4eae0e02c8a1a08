"""References lead to tasks, and a wrong one says in one line what to write instead."""

from pathlib import Path

import pytest
import torch

import automc
from automc.errors import TaskError
from automc.tasks import load_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"

SMALL = """
import torch
import automc

model = torch.nn.Linear(4, 2)
x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)
task = automc.Task(model, calibration=[x], validation=[(x, y)])

def named():
    return automc.Task(model, calibration=[x], validation=[(x, y)], name="mine")

def needy(argument):
    return task

def broken():
    raise ValueError("no data\\nhere")

def without_data():
    return automc.Task(model, calibration=[x], validation=[])

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


def message(reference: str) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(reference)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_example_file_is_a_task_that_can_be_scored_and_rebuilt():
    task = load_task(f"{EXAMPLE}:task")
    assert task.name == "my_task"
    assert task.factory is not None
    task.factory().load_state_dict(task.model.state_dict())
    inputs, targets = task.validation[0]
    assert task.per_sample(task.model(*inputs), targets).mean() > 0.9


def test_an_attribute_may_be_a_task_or_a_function_that_returns_one(file):
    assert load_task(f"{file}:task").name == "small"
    assert load_task(f"{file}:named").name == "mine"


def test_a_task_in_an_importable_module_is_found(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    assert isinstance(load_task("small:task"), automc.Task)


def test_a_module_in_the_current_folder_is_found_by_the_console_script_too(file, monkeypatch):
    import sys

    package = file.parent / "mine_of_tests"
    package.mkdir()
    file.rename(package / "small.py")
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(file.parent))])
    before = list(sys.path)
    assert isinstance(load_task("mine_of_tests.small:task"), automc.Task)
    assert sys.path == before


def test_a_file_may_import_its_neighbours_and_leaves_the_path_as_it_was(file):
    import sys

    before = list(sys.path)
    user = file.with_name("user.py")
    user.write_text("from small import task")
    assert load_task(f"{user}:task").name == "user"
    assert sys.path == before


def test_a_misspelt_name_is_answered_with_the_nearest():
    assert "did you mean 'digits'" in message("digit")
    assert "did you mean 'cifar10-resnet56'" in message("cifar10-resnet5")


def test_an_unknown_name_is_answered_with_all_names_and_the_file_form():
    text = message("zzz")
    assert "cifar10-resnet20, cifar10-resnet56, digits" in text
    assert "path/to/file.py:attribute" in text


def test_a_file_without_its_attribute_says_how_to_write_it():
    assert "write my_task.py:task" in message("my_task.py")


def test_a_missing_file_is_named():
    assert "nowhere.py does not" in message("nowhere.py:task")


def test_a_missing_attribute_is_answered_with_the_nearest(file):
    assert "has no 'tusk': did you mean 'task'?" in message(f"{file}:tusk")
    assert "has no '': define task there" in message(f"{file}:")


def test_a_module_that_cannot_be_imported_is_named():
    said = "'no_such_package.tasks' is not (ModuleNotFoundError: No module named 'no_such_package'): install it"
    assert said in message("no_such_package.tasks:task")


def test_an_import_that_fails_in_a_file_is_found_by_its_own_line(tmp_path):
    path = tmp_path / "imports.py"
    path.write_text("import torch\n\nimport no_such_package\n")
    assert "ModuleNotFoundError: No module named 'no_such_package' (line 3): mend it" in message(f"{path}:task")


def test_a_file_that_stops_says_why_and_where(tmp_path):
    path = tmp_path / "stops.py"
    path.write_text("import torch\n\n1 / 0\n")
    assert "stopped with ZeroDivisionError: division by zero (line 3)" in message(f"{path}:task")
    path.write_text("def task(:\n")
    assert "stopped with SyntaxError" in message(f"{path}:task")


def test_a_builder_that_stops_says_why_on_one_line(file):
    assert "stopped with ValueError: no data here" in message(f"{file}:broken")
    assert "TypeError" in message(f"{file}:needy")


def test_the_task_s_own_complaint_passes_unchanged(file):
    assert message(f"{file}:without_data").startswith("A task must have validation batches")


def test_something_else_than_a_task_is_named_by_its_type(file):
    assert "leads to a int" in message(f"{file}:number")
    assert "leads to a Tensor" in message(f"{file}:x")


def test_a_registered_task_wins_over_the_file_form(monkeypatch):
    from automc.registry import TASKS

    model, x = torch.nn.Linear(2, 2), torch.zeros(2, 2)
    found = automc.Task(model, calibration=[x], validation=[(x, torch.zeros(2, dtype=torch.int64))])
    monkeypatch.setitem(TASKS.table, "temporary", "automc.tasks.temporary:task")
    monkeypatch.setattr(type(TASKS), "load", lambda self, name: found)
    assert load_task("temporary").name == "temporary"


def test_a_task_that_is_given_its_file_s_name_has_no_labels_it_had_not(file):
    task = load_task(f"{file}:task")
    assert task.name == "small" and not task.labelled and task.calibration_targets(4) is None
