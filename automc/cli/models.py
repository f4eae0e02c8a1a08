"""Commands about models: the tasks there are, what a model consists of, how long its layers take."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from automc.cli.options import TaskArgument
from automc.cli.output import console, say, tell


def tasks() -> None:
    """List the tasks that come with automc."""
    from automc.registry import TASKS

    for name in TASKS:
        tell(name)


def inspect(task: TaskArgument) -> None:
    """Show a model's layers, its groups of coupled channels, their costs, and what is refused."""
    from automc import api
    from automc.report import facts

    found = api.inspect(task)
    for table in facts.tables(found):
        console().print(table)
    for line in facts.lines(found):
        tell(line)


def profile(
    task: TaskArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The table, as JSON; default: where a search looks for it.")
    ] = None,
    space: Annotated[str, typer.Option(help="What a search may decide: only that is timed.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Samples a pass.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: torch's.")] = None,
) -> None:
    """Time the layers of a model as a search may leave them: the table for budgets such as latency<=2ms."""
    import torch

    from automc import profiling
    from automc.report import text

    if threads is not None:
        torch.set_num_threads(threads)
    found, path = profiling.profile_here(
        task, space=space, batch=batch, out=out, progress=lambda what: say(f"timing {what}")
    )
    for line in text.latency_lines(found):
        tell(line)
    tell(f"{path}: search with --latency {shlex.quote(str(path))}" if out or threads else f"{path}: searches find it")
