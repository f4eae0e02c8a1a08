"""Where latency tables come from: given, read from a file, measured by the user's own function, or measured here.

What is measured for a search is kept in runs/latency/, by model, space, processor, threads and batch, so that the next
search finds it.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from automc.budget import LATENCY, Budget
from automc.compression.compress import Compressor
from automc.costs.latency import LatencyTable
from automc.deployment.profile import processor
from automc.deployment.profile import profile as profiled
from automc.deployment.stopwatch import Measure, seconds
from automc.errors import TaskError
from automc.files import check_folder, sha256
from automc.graph.runs import of_size
from automc.graph.trace import trace_model
from automc.setting import LatencySource, find_space, found_task
from automc.space import SearchSpace, SpaceBuilder
from automc.study import Study
from automc.task import Task

FOLDER = Path("runs") / "latency"
Given: TypeAlias = LatencyTable | str | Path | Measure | None
"""A table, the file of one, or a function that times a module on a device of one's own."""
_log = logging.getLogger("automc")


def profile(
    task: Task | str,
    *,
    space: str | SpaceBuilder = "auto",
    batch: int = 1,
    measure: Measure | None = None,
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> LatencyTable:
    """Times a task's layers as a search in `space` may leave them, on this machine with torch's threads.

    batch: samples a pass. measure: seconds of a module for its inputs on another device, which `device` names; what it
    is given are layers and models in eval mode. progress: is told what is being timed.
    """
    _, compressor, opened = _opened(task, space)
    return _measured(compressor, opened, batch, measure, device, progress)


def profile_here(
    task: Task | str,
    *,
    space: str | SpaceBuilder = "auto",
    batch: int = 1,
    out: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[LatencyTable, Path]:
    """As `profile` on this machine; written to `out`, by default where a search in that space looks for it."""
    name, compressor, opened = _opened(task, space)
    path = out or usual(opened, compressor.task.name, name, batch)
    check_folder(path.parent)  # before minutes of work that could not be kept
    table = _measured(compressor, opened, batch, None, None, progress)
    table.write(path)
    return table, path


def table_of(study: Study) -> LatencyTable | None:
    """The latency table that a study was begun with, if it was."""
    found = study.meta.get("latency")
    return None if found is None else LatencyTable.checked(found, f"study {study.name!r} in {study.storage}")


def latency_of(module: nn.Module, task: Task, table: LatencyTable) -> float:
    """Seconds of one pass of a module here, in its fastest form, as the table's were measured."""
    return seconds(module, of_size(task.example_inputs, table.batch))


def source(
    given: Given,
    space: str,
    batch: int,
    recorded: Callable[[str], LatencyTable | None],
) -> LatencySource:
    """Finds or makes the table for a search in the space of that name; asked only when it is known what is open.

    recorded: what a search of a task of that name began with, which it goes on with unless another one is given.
    """

    def find(compressor: Compressor, opened: SearchSpace) -> LatencyTable:
        if isinstance(given, LatencyTable):
            return given
        if isinstance(given, (str, Path)):
            return LatencyTable.read(Path(given))
        known = recorded(compressor.task.name)
        if known is not None:
            return known
        if given is not None:
            return _measured(compressor, opened, batch, given, None, None)
        path = usual(opened, compressor.task.name, space, batch)
        if path.is_file():
            return LatencyTable.read(path)
        _log.warning("Timing the layers of %s, once for this machine: a minute or two.", compressor.task.name)
        table = _measured(compressor, opened, batch, None, None, None)
        table.write(path)
        return table

    return find


def usual(opened: SearchSpace, task: str, space: str, batch: int) -> Path:
    """Where the table of a model, what is open of it, this processor, its threads and a batch lies."""
    words = f"{task} {space} {processor()} {torch.get_num_threads()}t {batch}b"
    name = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")
    digest = sha256(f"{opened.facts.fingerprint} {opened.axes}".encode())
    return FOLDER / f"{name}-{digest[:8]}.json"


def _opened(task: Task | str, space: str | SpaceBuilder) -> tuple[str, Compressor, SearchSpace]:
    """What a search in a space works with; the space's own name."""
    name, build = find_space(space, Budget.parse(f"{LATENCY}<=100%"))
    found = found_task(task)
    graph = trace_model(found.model, found.example_inputs)
    return name, Compressor(graph, found.model, found), SearchSpace(graph.facts, build(graph.facts))


def _measured(
    compressor: Compressor,
    opened: SearchSpace,
    batch: int,
    measure: Measure | None,
    device: str | None,
    progress: Callable[[str], None] | None,
) -> LatencyTable:
    if batch < 1:
        raise TaskError(f"A batch must hold at least one sample; {batch} is too few: give a larger one.")
    inputs = of_size(compressor.task.example_inputs, batch)
    return profiled(compressor, opened, inputs, measure=measure, device=device, progress=progress)
