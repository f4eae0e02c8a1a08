"""Tasks by reference: a registered name, `path/to/file.py:attribute`, or `package.module:attribute`.

The attribute is a Task, or a callable without arguments that returns one. A file or module is code, and it is run
because the user named it.
"""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from automc.errors import AutomcError, TaskError
from automc.registry import TASKS
from automc.task import Task

FILE_MODULE = "automc_task_"
"""How names of modules begin that were made from task files."""


def load_task(reference: str) -> Task:
    """The task that `reference` names; anything else raises TaskError."""
    if reference in TASKS:
        return _task(TASKS.load(reference), reference, default_name=reference)
    target, colon, attribute = reference.rpartition(":")
    if not colon:
        raise TaskError(_unknown_name(reference))
    module = _load_file(Path(target)) if target.endswith(".py") else _load_module(target)
    return _task(_attribute(module, attribute, target), reference, default_name=module_name(target))


def module_name(target: str) -> str:
    """The short name of a file or module: `my_task` for `examples/my_task.py` and for `examples.my_task`."""
    return Path(target).stem if target.endswith(".py") else target.rpartition(".")[2]


def _unknown_name(reference: str) -> str:
    if reference.endswith(".py"):
        return f"A task file must be followed by its attribute; {reference!r} is not: write {reference}:task."
    near = difflib.get_close_matches(reference, TASKS, n=1)
    hint = f"did you mean {near[0]!r}" if near else f"take one of {', '.join(sorted(TASKS))}"
    return (
        f"A task must be a registered name or file.py:attribute; {reference!r} is neither: "
        f"{hint}, or write path/to/file.py:attribute?"
    )


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"A task file must exist; {path} does not: give the path of a Python file.")
    name = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up by name
    try:
        with _importing_from(path.resolve().parent):  # the file may import its neighbours, as when it is run
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise TaskError(f"A task file must run; {path} stopped with {_reason(error)}: mend it.") from error
    return module


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """While modules are first looked for in a folder."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _load_module(target: str) -> ModuleType:
    try:
        with _importing_from(Path.cwd()):  # as `python -m` has it; a console script has its own folder there
            return importlib.import_module(target)
    except Exception as error:
        raise TaskError(
            f"A task's module must be importable; {target!r} is not ({_reason(error)}): "
            "install it, or give path/to/file.py:attribute."
        ) from error


def _attribute(module: ModuleType, attribute: str, target: str) -> Any:
    if hasattr(module, attribute):
        return getattr(module, attribute)
    near = difflib.get_close_matches(attribute, [n for n in vars(module) if not n.startswith("_")], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"define {attribute or 'task'} there."
    raise TaskError(f"A task must be an attribute of its file; {target} has no {attribute!r}: {hint}")


def _task(found: Any, reference: str, *, default_name: str) -> Task:
    """A Task as it stands, or what a callable without arguments returns."""
    if callable(found):
        try:
            found = found()
        except AutomcError:
            raise
        except Exception as error:
            raise TaskError(
                f"A task's builder must return a Task; {reference} stopped with {_reason(error)}: mend it."
            ) from error
    if not isinstance(found, Task):
        raise TaskError(
            f"A reference must lead to an automc.Task, or a function without arguments that returns one; {reference} "
            f"leads to a {type(found).__name__}: wrap it in automc.Task(model, calibration=..., validation=...)."
        )
    return replace(found, name=default_name) if found.name == "task" else found


def _reason(error: Exception) -> str:
    """An exception on one line, with the line of code it came from, if that is anybody's but Python's and ours."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    return f"{type(error).__name__}: {text}" + (f" (line {lines[-1]})" if lines else "")
