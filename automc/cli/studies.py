"""Commands about what a search has found: its front, one trial, the model of one trial."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automc.cli.options import CacheOption, DropOption, JsonOption, NameOption, StudyArgument, TaskOption, TrialOption
from automc.cli.output import console, print_json, say, tell
from automc.cli.reference import reference_of
from automc.errors import StudyError

if TYPE_CHECKING:
    from torch import nn

    from automc.evaluation import Evaluation
    from automc.study import Study
    from automc.task import Task


def pareto(
    study: StudyArgument,
    html: Annotated[Path | None, typer.Option(help="Write an interactive plot to this file.")] = None,
    json: JsonOption = False,
    name: NameOption = None,
    cost: Annotated[list[str] | None, typer.Option(help="Costs the front is over; default: the limited ones.")] = None,
) -> None:
    """Show the Pareto front: the trials no other beats in score and cost."""
    from automc.report import front

    found = open_study(study, name)
    costs = tuple(cost) if cost else found.costs
    _check_costs(found, costs)
    if json:
        print_json(front.document(found, costs))
    else:
        console().print(front.table(found, costs))
    if html is not None:
        front.write_html(found, html)
        say(f"plot: {html}")


def show(
    study: StudyArgument,
    trial: TrialOption = "best",
    max_drop: DropOption = None,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Show what one trial decides for each group and layer."""
    from automc.report import decisions, text

    found = open_study(study, name)
    chosen = _chosen(found, trial, max_drop)
    if json:
        print_json(text.as_json(chosen))
        return
    dense = found.meta["dense"]
    by = chosen.proposer or "unknown"
    tell(f"trial {chosen.number} ({chosen.state}), proposed by {by} {chosen.reason}".rstrip())
    tell(text.scores_line(chosen, found.meta))
    tell(text.costs_line(chosen, dense["costs"], tuple(n for n, _ in chosen.costs)))
    for table in decisions.tables(chosen.policy):
        console().print(table)


def apply(
    study: StudyArgument,
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors, policy.json and report.json.")],
    trial: TrialOption = "best",
    max_drop: DropOption = None,
    name: NameOption = None,
    task: TaskOption = None,
    cache: CacheOption = None,
    distill: Annotated[
        int, typer.Option(min=0, metavar="EPOCHS", help="Then train towards the dense model's outputs, without labels.")
    ] = 0,
) -> None:
    """Compress the model by one trial's policy, measure it, and save it."""
    found = open_study(study, name)
    chosen = _chosen(found, trial, max_drop)
    reference = reference_of(task, found.meta.get("task"), found.storage)
    from automc.files import check_folder

    check_folder(out)  # before minutes of work that could not be kept
    from automc import api, artifact
    from automc.report import summary
    from automc.tasks import load_task

    loaded = load_task(reference)
    small = api.apply(loaded, chosen.policy, cache=cache)
    if distill:
        _distill(small, loaded, distill)
    origin = {"reference": reference, "study": found.name, "trial": chosen.number, "validation_score": chosen.score}
    origin["validation_metric"] = chosen.metric
    origin["distilled_epochs"] = distill
    artifact.save(small, out, report=origin)  # whatever becomes of the report, what was trained is kept
    report = summary.report(loaded, small, origin)
    size = artifact.save(small, out, report=report)
    for line in summary.lines(report):
        tell(line)
    tell(f"{out}: model.safetensors ({size} bytes), policy.json, report.json; check it with: automc evaluate {out}")


def open_study(reference: str, name: str | None) -> "Study":
    """A study by name (in `runs/`), journal path, or URL."""
    named = Path("runs") / f"{reference}.journal"
    if "://" not in reference and not Path(reference).is_file() and not named.is_file():
        hint = _near_study(reference)
        raise StudyError(f"A study must exist; {reference!r} is no file, and {named} is not there: {hint}")
    from automc.study import Study

    direct = "://" in reference or Path(reference).is_file()
    return Study.open(reference, name) if direct else Study.open(named, name, usual=reference)


def _near_study(reference: str) -> str:
    import difflib

    known = sorted(p.stem for p in Path("runs").glob("*.journal"))
    near = difflib.get_close_matches(reference, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known[:5])}." if known else "run `automc search` first."


def _chosen(study: "Study", trial: str, max_drop: float | None) -> "Evaluation":
    """The trial a command is about."""
    if max_drop is None:
        return study.trial(trial)
    if trial != "best":
        raise StudyError(f"A trial is chosen by --trial or by --max-drop; both were given, {trial} too: drop one.")
    return study.cheapest(max_drop)


def _check_costs(study: "Study", costs: Sequence[str]) -> None:
    known = study.meta["dense"]["costs"]
    for name in costs:
        if name not in known:
            raise StudyError(f"A cost must be one of {', '.join(known)}; {name!r} is none of them: name one of these.")


def _distill(small: "nn.Module", task: "Task", epochs: int) -> None:
    from automc import api
    from automc.recovery.distill import Distillation
    from automc.recovery.optimize import Schedule

    def tell(epoch: int, loss: float) -> None:
        say(f"epoch {epoch + 1}/{epochs}: loss {loss:.4g}")

    api.distill(small, task, settings=Distillation(Schedule(epochs=epochs)), progress=tell)
