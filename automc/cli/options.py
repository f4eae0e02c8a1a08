"""Arguments and options that several commands share, and how what is typed for them reads."""

import re
from pathlib import Path
from typing import Annotated

import typer

from automc.errors import StudyError, TaskError

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="A task's name, or path/to/file.py:attribute.")]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name, journal file, or database URL.")]
NameOption = Annotated[str | None, typer.Option("--study", help="Name of the study, where STUDY holds several.")]
TrialOption = Annotated[str, typer.Option("--trial", help="'best', or a trial's number.")]
DropOption = Annotated[
    float | None,
    typer.Option(metavar="DROP", help="Instead of the best: the cheapest trial whose score is at most so much lower."),
]
SavedArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `automc apply` wrote.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="The task, where its recorded name does not find it.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="Folder where what is computed once per layer is kept, for later runs.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def duration(text: str) -> float:
    """Seconds in `90`, `90s`, `10m`, `2h`, `1h30m`."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = sum(float(x or 0) * unit for x, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0.0
    if seconds <= 0:
        raise StudyError(f"A duration must be like 90s, 10m or 2h; {text!r} is not: rewrite it.")
    return seconds


def numbers(text: str, what: str = "Stages", such: str = "256,1024") -> tuple[int, ...]:
    """The numbers in `256,1024`."""
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise TaskError(f"{what} must be numbers such as {such}; {text!r} is not: rewrite it.")
    return tuple(int(word) for word in text.split(","))
