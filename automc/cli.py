"""The command line: automc tasks, inspect, profile, search, pareto, show, apply, evaluate, export, bench.

An error is one line on standard error and exit status 2; Ctrl-C gives 130, SIGTERM 143. Heavy packages are imported
inside the commands, so that help and typing errors answer at once.
"""

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from automc.errors import AutomcError, StudyError, TaskError, told
from automc.visible import visible

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from automc.callbacks.callback import Callback
    from automc.evaluation import Evaluation
    from automc.leaving.export import Exported
    from automc.study import Study
    from automc.task import Task
    from automc.workers import Workers

app = typer.Typer(
    help="Search, layer by layer, how to compress a PyTorch model within a budget.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


def _version(wanted: bool) -> None:
    if wanted:
        from automc import __version__

        print(__version__)
        raise typer.Exit


VersionOption = Annotated[  # eager, since it needs no command
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
]


@app.callback()
def root(version: VersionOption = False) -> None:
    """Search, layer by layer, how to compress a PyTorch model within a budget."""


@app.command()
def tasks() -> None:
    """List the tasks that come with automc."""
    from automc.registry import TASKS

    for name in TASKS:
        _tell(name)


@app.command()
def inspect(task: TaskArgument) -> None:
    """Show a model's layers, its groups of coupled channels, their costs, and what is refused."""
    from automc import api
    from automc.report import facts

    found = api.inspect(task)
    for table in facts.tables(found):
        _console().print(table)
    for line in facts.lines(found):
        _tell(line)


@app.command()
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
        task, space=space, batch=batch, out=out, progress=lambda what: _say(f"timing {what}")
    )
    for line in text.latency_lines(found):
        _tell(line)
    _tell(f"{path}: search with --latency {shlex.quote(str(path))}" if out or threads else f"{path}: searches find it")


@app.command()
def search(
    task: TaskArgument,
    budget: Annotated[str, typer.Option(help='Limits, such as "macs<=50%" or "macs<=60%,size<=1MB".')],
    space: Annotated[
        str, typer.Option(help="Open decisions: a name, a YAML file, or auto: bits only where the budget needs them.")
    ] = "auto",
    searcher: Annotated[str, typer.Option(help="What proposes policies.")] = "joint",
    score: Annotated[
        str, typer.Option(help="What is searched: metric, or likeness to the dense model: kl, mse.")
    ] = "metric",
    stages: Annotated[
        str | None, typer.Option(metavar="N,N", help="Validation samples after which clear losers stop: 256,1024.")
    ] = None,
    keep: Annotated[
        int, typer.Option(min=1, help="With --stages or --screen: the best so many are never stopped or skipped.")
    ] = 1,
    screen: Annotated[bool, typer.Option("--screen", help="Skip what is predicted to lose by a surrogate.")] = False,
    trials: Annotated[int, typer.Option(min=1, help="Trials of the study in all, earlier ones counted.")] = 100,
    time: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Ask for nothing more after this long: 90s, 10m, 2h.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    storage: Annotated[str | None, typer.Option(help="Journal file or URL; default runs/<study>.journal.")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; default made from the other options.")] = None,
    earlier: Annotated[
        list[str] | None, typer.Option(metavar="STORAGE", help="Studies of the same model that the agent learns from.")
    ] = None,
    latency: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table of `automc profile`; else layers are timed now, once.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a pass, where layers are timed now.")] = 1,
    cache: CacheOption = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="How much of that is held in memory, by each worker.")
    ] = "768MiB",
    workers: Annotated[int, typer.Option(min=1, help="Processes that score candidates; 1: this one.")] = 1,
    executor: Annotated[
        str | None, typer.Option(help="Where workers are: processes of this machine, or ray.", show_default="processes")
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Candidates asked for before the first is told; default: as the study had, at first two a worker.",
        ),
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Other processes may run the same command: they share the trials.")
    ] = False,
    trial_time: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Give a candidate up after this long: 90s, 10m.")
    ] = None,
    trial_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Give a candidate up that takes so much more: 2GiB.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append what happens to this file, one JSON object a line.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write curves for TensorBoard: needs automc[tensorboard].")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Log a run, as to sqlite:///mlflow.db: needs automc[mlflow].")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append what happens to this file, for people.")
    ] = None,
) -> None:
    """Search policies within a budget; the same command again goes on where it stopped."""
    from automc.budget import parse_bytes
    from automc.registry import SEARCHERS, SPACE_FILES, SPACES, TASKS

    seconds = None if time is None else duration(time)
    memory_bytes = parse_bytes(memory)
    looks = () if stages is None else numbers(stages)
    spread = _workers(workers, executor, in_flight, trial_time, trial_memory)
    SEARCHERS.check(searcher)
    if space != "auto" and Path(space).suffix.lower() not in SPACE_FILES:
        SPACES.check(space)
    if ":" not in task and not task.endswith(".py"):
        TASKS.check(task)
    if log is not None:
        _log_to(log)
    callbacks = _callbacks(events=events, tensorboard=tensorboard, mlflow=mlflow)
    from automc import api

    begun: list[Study] = []
    try:
        found = api.search(
            task,
            budget=budget,
            space=space,
            searcher=searcher,
            score=score,
            stages=looks,
            keep=keep,
            screen=screen,
            trials=trials,
            seconds=seconds,
            seed=seed,
            storage=storage,
            study=study,
            earlier=earlier or (),
            latency=latency,
            batch=batch,
            cache=cache,
            memory_bytes=memory_bytes,
            workers=spread,
            shared=shared,
            progress=True,
            callbacks=callbacks,
            on_start=lambda s: _announce(s, begun, trials),
        )
    except (KeyboardInterrupt, SystemExit):
        if begun:
            kept = len(begun[0].evaluations)
            _say(f"Stopped; {kept} trials are kept in {begun[0].storage}: the same command goes on.")
        raise
    _conclude(found, task)


@app.command()
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
        _print_json(front.document(found, costs))
    else:
        _console().print(front.table(found, costs))
    if html is not None:
        front.write_html(found, html)
        _say(f"plot: {html}")


@app.command()
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
        _print_json(text.as_json(chosen))
        return
    dense = found.meta["dense"]
    by = chosen.proposer or "unknown"
    _tell(f"trial {chosen.number} ({chosen.state}), proposed by {by} {chosen.reason}".rstrip())
    _tell(text.scores_line(chosen, found.meta))
    _tell(text.costs_line(chosen, dense["costs"], tuple(n for n, _ in chosen.costs)))
    for table in decisions.tables(chosen.policy):
        _console().print(table)


@app.command()
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
    reference = _reference(task, found.meta.get("task"), found.storage)
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
        _tell(line)
    _tell(f"{out}: model.safetensors ({size} bytes), policy.json, report.json; check it with: automc evaluate {out}")


@app.command()
def evaluate(
    directory: SavedArgument,
    task: TaskOption = None,
) -> None:
    """Load a saved model and score it again."""
    saved = _report(directory)
    loaded, module = _loaded(directory, task, saved)
    from automc.report import summary, text
    from automc.saved import cost
    from automc.setting import evaluator_of

    split = summary.split_of(loaded)
    score = evaluator_of(loaded).score(module, split)
    before = summary.score_of(saved)
    _tell(f"score on {split}: {text.score(score)} (when saved: {text.score(before)})")
    for metric, value in cost(module, loaded.example_inputs).items():
        _tell(f"{metric}: {text.amount(metric, value)}")


@app.command()
def export(
    directory: SavedArgument,
    format: Annotated[str, typer.Option(help="pt2: PyTorch's own; onnx: needs automc[onnx].")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: model.pt2 or model.onnx in DIR.")] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="As the model runs fastest here: such a pt2 needs automc where it runs.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="With --kernels: samples a pass that it is fastest for.")] = 1,
    task: TaskOption = None,
) -> None:
    """Write a saved model as a file for other programs, and check that it computes the same."""
    from automc.registry import FORMATS

    FORMATS.check(format)
    target = out or directory / f"model.{format}"
    saved = _report(directory)
    from automc.leaving import export as leaving

    leaving.ready(target, format, kernels=kernels)  # before the task is loaded, which may train it
    loaded, module = _loaded(directory, task, saved)
    inputs = loaded.calibration_inputs(leaving.SAMPLES)
    made = leaving.export(module, target, format=format, example_inputs=inputs, kernels=kernels, batch=batch)
    if not made.any_size:
        _say(f"It takes batches of {len(inputs[0])} only, since its forward computes with the size of a batch.")
    if not made.checked:
        _say("Nothing was checked, since onnxruntime is not installed: pip install automc[onnx].")
    _tell(f"{made.path}: {made.bytes} bytes" + f", checked: it computes what {directory} does" * made.checked)
    if kernels:
        _tell_of_kernels(made, directory)


@app.command()
def bench(
    directory: SavedArgument,
    task: TaskOption = None,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Batch sizes.")] = "1,32,128",
    threads: Annotated[str, typer.Option(metavar="N,N", help="Numbers of threads.")] = "1,2",
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Let layers of both models compute in bfloat16, where that is faster.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Time a saved model against the dense one, and measure the memory and the bytes both take."""
    batches = numbers(batch, "Batch sizes", "1,32,128")
    counts = numbers(threads, "Threads", "1,2")
    saved = _report(directory)
    from automc.report import bench as side_by_side

    side_by_side.check_counts("A batch", batches)
    side_by_side.check_counts("A number of threads", counts)
    loaded, module = _loaded(directory, task, saved)
    found = side_by_side.bench(module, loaded, batches=batches, threads=counts, bf16=bf16)
    if json:
        _print_json(found)
        return
    _console().print(side_by_side.table(found))
    for line in side_by_side.lines(found):
        _tell(line)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0, or 2 with one line on standard error."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    sys.exit(_guarded(lambda: app(args=given, prog_name="automc", standalone_mode=False)))


def _guarded(run: Callable[[], Any]) -> int:
    """The exit status of a command, every exception told in one line; AUTOMC_DEBUG=1 shows where it came from."""
    try:
        status = run()
    except Exception as error:
        if type(error).__name__ == "Abort":  # what older typer makes of Ctrl-C
            return 130
        if os.environ.get("AUTOMC_DEBUG"):
            raise
        _say("error: " + " ".join(_explain(error).split()))
        return 2
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


def _explain(error: Exception) -> str:
    if isinstance(error, AutomcError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's own errors, whichever click it carries
        return str(error.format_message())
    if isinstance(error, OSError):
        said = error.strerror or error
        return f"{error.filename or 'A file'} must be usable; the system says {said}: mend that and repeat the command."
    if isinstance(error, MemoryError):
        return "Memory must suffice; it did not: use smaller batches, or close other programs."
    return f"A command must finish; this one stopped with {told(error)}: set AUTOMC_DEBUG=1 to see where."


def _say(line: str) -> None:
    print(visible(line), file=sys.stderr)


def _tell(line: str) -> None:
    """A line of what was asked for; whatever names stand in it, the terminal only shows it."""
    print(visible(line))


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


def open_study(reference: str, name: str | None) -> "Study":
    """A study by name (in `runs/`), journal path, or URL."""
    named = Path("runs") / f"{reference}.journal"
    if "://" not in reference and not Path(reference).is_file() and not named.is_file():
        hint = _near_study(reference)
        raise StudyError(f"A study must exist; {reference!r} is no file, and {named} is not there: {hint}")
    from automc.study import Study

    direct = "://" in reference or Path(reference).is_file()
    return Study.open(reference, name) if direct else Study.open(named, name, usual=reference)


def _workers(
    count: int, executor: str | None, in_flight: int | None, time: str | None, memory: str | None
) -> "int | Workers":
    """Workers as they were asked for; 1 where candidates are scored here."""
    if count == 1 and all(given is None for given in (executor, in_flight, time, memory)):
        return 1
    from automc.budget import parse_bytes
    from automc.workers import Workers

    return Workers(
        count,
        executor or "processes",
        in_flight,
        None if time is None else duration(time),
        None if memory is None else parse_bytes(memory),
    )


def _callbacks(**given: "Path | str | None") -> "list[Callback]":
    """The callbacks that were asked for, by name, each with the place it writes to."""
    from automc.registry import CALLBACKS

    return [CALLBACKS.load(name)(where) for name, where in given.items() if where is not None]


def _log_to(path: Path) -> None:
    """Has automc's log go to a file; warnings go to standard error as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file, errors = logging.FileHandler(path), logging.StreamHandler()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    errors.setLevel(logging.WARNING)
    log = logging.getLogger("automc")
    log.setLevel(logging.INFO)
    log.handlers = [file, errors]


def _chosen(study: "Study", trial: str, max_drop: float | None) -> "Evaluation":
    """The trial a command is about."""
    if max_drop is None:
        return study.trial(trial)
    if trial != "best":
        raise StudyError(f"A trial is chosen by --trial or by --max-drop; both were given, {trial} too: drop one.")
    return study.cheapest(max_drop)


def _near_study(reference: str) -> str:
    import difflib

    known = sorted(p.stem for p in Path("runs").glob("*.journal"))
    near = difflib.get_close_matches(reference, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known[:5])}." if known else "run `automc search` first."


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
        _say(f"epoch {epoch + 1}/{epochs}: loss {loss:.4g}")

    api.distill(small, task, settings=Distillation(Schedule(epochs=epochs)), progress=tell)


def _report(directory: Path) -> dict[str, Any]:
    """The report beside a saved model, once its files are what they were."""
    from automc import artifact

    return artifact.read_report(directory)


def _loaded(directory: Path, task: str | None, saved: dict[str, Any]) -> tuple["Task", "nn.Module"]:
    """The task of a saved model, and the model."""
    reference = _reference(task, saved.get("reference"), str(directory))
    from automc.saved import load
    from automc.tasks import load_task

    loaded = load_task(reference)
    return loaded, load(directory, loaded)


def _tell_of_kernels(made: "Exported", directory: Path) -> None:
    """What an export with kernels has become, and what it needs."""
    from automc.kernels.images import lanes
    from automc.leaving.kernels import loading

    if made.form is None:
        why = "nothing is faster here than torch's own kernels" if lanes() else "there are no compiled kernels here"
        _say(f"It is written as without --kernels, and runs without automc, since {why}.")
        return
    saved = (directory / "model.safetensors").stat().st_size
    plans = f"plans run on vectors of {lanes()} floats, as here, and say so elsewhere"
    _tell(f"form: {made.form}; {plans}; model.safetensors takes {saved} bytes")
    _tell(f"to load, where automc is installed: {loading(made.path)}")


def _reference(given: str | None, recorded: Any, where: str) -> str:
    """The task that was named now, or in an earlier command: what a file says alone has no code run."""
    from automc.tasks import named

    if given:
        named.note(given)
        return given
    if not recorded or not isinstance(recorded, str):
        raise TaskError("A task must be known by a reference; this one was an object: add --task file.py:attribute.")
    named.check(recorded, where)
    return recorded


def _announce(study: "Study", begun: list["Study"], trials: int) -> None:
    begun.append(study)
    done = len(study.evaluations)
    plan = f"going on after {done} of {trials} trials" if done else f"{trials} trials"
    _say(f"study {study.name} in {study.storage}: {plan}")


def _conclude(study: "Study", task: str) -> None:
    from automc.report import text

    dense = study.meta["dense"]
    _tell(text.counts_line(study.evaluations))
    said = text.surrogate_line(study.evaluations)
    if said:
        _tell(said)
    best = study.best
    costs = text.costs_line(best, dense["costs"], study.costs)
    _tell(f"best: trial {best.number}, {text.scores_line(best, study.meta)} at {costs}")
    _compare_latency(study, task)
    usual = Path("runs", f"{study.name}.journal") == Path(study.storage)
    reference = shlex.join([study.name] if usual else [study.storage, "--study", study.name])
    commands = (f"pareto {reference} --html front.html", f"show {reference}", f"apply {reference} --out compressed/")
    later = [f"  automc {command}" for command in commands]
    for line in (f"results: {study.storage}", "next:", *later, f"  optuna-dashboard {shlex.quote(study.storage)}"):
        _tell(line)


def _compare_latency(study: "Study", task: str) -> None:
    """What was foretold of the best trial's seconds, beside what they are, where a table of this machine was used."""
    from automc import api, profiling
    from automc.deployment.profile import processor
    from automc.report import text
    from automc.tasks import load_task

    table = profiling.table_of(study)
    if table is None or not table.timed_by(processor()):
        return
    loaded = load_task(task)
    took = profiling.latency_of(api.apply(loaded, study.best.policy), loaded, table)
    foretold = study.best.cost("latency")
    _tell(text.latency_line(foretold, took, table))
    late = text.late_line(foretold, took, study.meta["limits"]["latency"])
    if late:
        _say(late)


def _print_json(document: Any) -> None:
    import json

    print(json.dumps(document, indent=1))


def _console() -> "Console":
    """Wide where the output is no terminal, so that nothing is cut."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)
