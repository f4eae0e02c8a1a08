"""Two models side by side, the dense one and what became of it: seconds, memory, bytes on disk.

Times are those of `latency`: runs taken in turn, each model in its fastest form, so that the speed-up is one over the
best way to run the dense model. Memory is that of `memory`, of the form that was timed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table
from torch import nn

from automc import artifact
from automc.compression import provenance
from automc.deployment.forms import BY_TORCH, LOOSE, forms
from automc.errors import TaskError
from automc.graph.runs import of_size, with_threads
from automc.report import latency, text
from automc.report.memory import peak_bytes
from automc.setting import found_task
from automc.task import Inputs, Task

_NAMES = ("dense", "compressed")
_PLANNED = "dense by automc"
"""The dense model by automc's kernels: what of a speed-up is theirs, and not that of the compression."""
_PEAK = "the most that all tensors alive take together during one run, weights and inputs included"


def bench(
    module: nn.Module,
    task: Task | str,
    *,
    batches: Sequence[int] = (1, 32, 128),
    threads: Sequence[int] = (1, 2),
    bf16: bool = False,
) -> dict[str, Any]:
    """Measures what `apply` or `load` returned against the task's dense model.

    `runs` has an entry for each number of threads and each batch size, with the median and the quartiles of the seconds
    a batch takes, the form that was fastest, the speed-up, and `peak_bytes`, the most that all tensors alive take
    together. `file_bytes` are those of the file `save` writes. With `bf16` both models may compute in bfloat16, as with
    `deploy`; `bfloat16` says whether they might. TaskError for sizes or threads below 1, ArtifactError
    for a module that automc did not make.
    """
    check_counts("A batch", batches)
    check_counts("A number of threads", threads)
    provenance.of(module)
    found = found_task(task)
    runs = []
    for count in threads:
        with with_threads(count):
            runs += [_run(found.model, module, of_size(found.example_inputs, size), bf16) for size in batches]
    sizes = {name: len(artifact.serialized(m)) for name, m in zip(_NAMES, (found.model, module), strict=True)}
    named = {"task": found.name, "unit": "seconds", "bfloat16": bf16, "peak_bytes": _PEAK}
    return named | {"file_bytes": sizes, "runs": runs}


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
    loose = [f"bfloat16: layers of both models might compute in it; outputs may be {LOOSE:.1%} of the largest off"]
    return [size, f"memory: {_PEAK}", how, *(loose if found["bfloat16"] else [])]


def _run(dense: nn.Module, small: nn.Module, inputs: Inputs, bf16: bool) -> dict[str, Any]:
    """The entry of one batch, with the threads that torch has."""
    whole = forms(dense, inputs, bf16=bf16)
    by_torch = {name: form for name, form in whole.items() if name in BY_TORCH}
    made = {"dense": by_torch, "compressed": forms(small, inputs, bf16=bf16), _PLANNED: whole}
    timed = latency.fastest(made, inputs)
    entry: dict[str, Any] = {"threads": torch.get_num_threads(), "batch": len(inputs[0])}
    entry |= {name: found.to_dict() for name, found in timed.items()}
    for name in _NAMES:
        entry[name]["peak_bytes"] = peak_bytes(timed[name].module, latency.given_to(timed[name].form, inputs))
    return entry | {"speed_up": entry["dense"]["median"] / entry["compressed"]["median"]}


def _milliseconds(timed: dict[str, Any]) -> str:
    low, high = (1e3 * x for x in timed["quartiles"])
    return f"{1e3 * timed['median']:.2f} ({low:.2f}-{high:.2f})"
