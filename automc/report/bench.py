"""Two models side by side, the dense one and what became of it: seconds, memory, bytes on disk.

Times are those of `latency`: runs taken in turn, each model in its fastest form, so that the speed-up is one over the
best way to run the dense model. Memory is that of `memory`, of the form that was timed.
"""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from torch import nn

from automc import artifact
from automc.compression import provenance
from automc.deployment.forms import forms
from automc.errors import TaskError
from automc.report import latency, text
from automc.report.memory import peak_bytes
from automc.task import Task
from automc.tasks import load_task

_NAMES = ("dense", "compressed")
_PLANNED = "dense by automc"
"""The dense model by automc's kernels: what of a speed-up is theirs, and not that of the compression."""
_PEAK = "the most that all tensors alive take together during one run, weights and inputs included"


def bench(
    module: nn.Module, task: Task | str, *, batches: Sequence[int] = (1, 32, 128), threads: Sequence[int] = (1, 2)
) -> dict[str, Any]:
    """Measures what `apply` or `load` returned against the task's dense model.

    `runs` has an entry for each number of threads and each batch size, with the median and the quartiles of the seconds
    a batch takes, the form that was fastest, the speed-up, and `peak_bytes`, the most that all tensors alive take
    together. `file_bytes` are those of the file `save` writes. TaskError for sizes or threads below 1, ArtifactError
    for a module that automc did not make.
    """
    check_counts("A batch", batches)
    check_counts("A number of threads", threads)
    provenance.of(module)
    found = load_task(task) if isinstance(task, str) else task
    modules = {"dense": found.model, "compressed": module, _PLANNED: found.model}
    runs = []
    for count in threads:
        with latency.threads(count):
            runs += _runs(modules, found, tuple(batches))
    sizes = {name: len(artifact.serialized(modules[name])) for name in _NAMES}
    return {"task": found.name, "unit": "seconds", "peak_bytes": _PEAK, "file_bytes": sizes, "runs": runs}


def check_counts(what: str, counts: Sequence[int]) -> None:
    """TaskError unless there are some, all of them 1 or more."""
    if not counts or min(counts) < 1:
        given = ", ".join(map(str, counts)) or "none"
        raise TaskError(f"{what} must be 1 or more; given is {given}: name others.")


def table(found: dict[str, Any]) -> Table:
    """The result for the terminal."""
    made = Table(title=text.plain(f"{found['task']}: median milliseconds a batch, with quartiles", "table.title"))
    for column in ("threads", "batch", *_NAMES, "speed-up", "memory, dense", "compressed"):
        made.add_column(column, justify="right")
    for run in found["runs"]:
        memory = (text.amount("size", run[name]["peak_bytes"]) for name in _NAMES)
        times = (_milliseconds(run[name]) for name in _NAMES)
        made.add_row(str(run["threads"]), str(run["batch"]), *times, f"{run['speed_up']:.2f}x", *memory)
    return made


def lines(found: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    dense, small = (found["file_bytes"][name] for name in _NAMES)
    size = f"on disk: {text.amount('size', small)} of {text.amount('size', dense)} ({text.share(small, dense)})"
    ways = ", ".join(
        f"{run['threads']} x {run['batch']} {run['compressed']['form']} "
        f"({run[_PLANNED]['median'] / run['compressed']['median']:.2f}x)"
        for run in found["runs"]
    )
    how = f"how, by threads x batch, and the speed-up over the dense model by automc's own kernels: {ways}"
    return [size, f"memory: {_PEAK}", how]


def _runs(modules: dict[str, nn.Module], task: Task, batches: tuple[int, ...]) -> list[dict[str, Any]]:
    """One entry a batch size."""
    timed = latency.compare(modules, task.example_inputs, batches)
    found = []
    for size in batches:
        entry: dict[str, Any] = {"threads": timed["threads"], "batch": size, **timed[f"batch_{size}"]}
        for name in _NAMES:
            entry[name]["peak_bytes"] = _peak(modules[name], task, size, entry[name]["form"])
        found.append(entry | {"speed_up": entry["dense"]["median"] / entry["compressed"]["median"]})
    return found


def _peak(module: nn.Module, task: Task, size: int, form: str) -> int:
    inputs = latency.batch(task.example_inputs, size)
    return peak_bytes(forms(module, inputs)[form], latency.given_to(form, inputs))


def _milliseconds(timed: dict[str, Any]) -> str:
    low, high = (1e3 * x for x in timed["quartiles"])
    return f"{1e3 * timed['median']:.2f} ({low:.2f}-{high:.2f})"
