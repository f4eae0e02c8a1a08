"""The command that searches."""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automc.cli.options import CacheOption, TaskArgument, duration, numbers
from automc.cli.output import say, tell

if TYPE_CHECKING:
    from automc.callbacks.callback import Callback
    from automc.study import Study
    from automc.workers import Workers


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
            say(f"Stopped; {kept} trials are kept in {begun[0].storage}: the same command goes on.")
        raise
    _conclude(found, task)


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


def _announce(study: "Study", begun: list["Study"], trials: int) -> None:
    begun.append(study)
    done = len(study.evaluations)
    plan = f"going on after {done} of {trials} trials" if done else f"{trials} trials"
    say(f"study {study.name} in {study.storage}: {plan}")


def _conclude(study: "Study", task: str) -> None:
    from automc.report import text

    dense = study.meta["dense"]
    tell(text.counts_line(study.evaluations))
    said = text.surrogate_line(study.evaluations)
    if said:
        tell(said)
    best = study.best
    costs = text.costs_line(best, dense["costs"], study.costs)
    tell(f"best: trial {best.number}, {text.scores_line(best, study.meta)} at {costs}")
    _compare_latency(study, task)
    usual = Path("runs", f"{study.name}.journal") == Path(study.storage)
    reference = shlex.join([study.name] if usual else [study.storage, "--study", study.name])
    commands = (f"pareto {reference} --html front.html", f"show {reference}", f"apply {reference} --out compressed/")
    later = [f"  automc {command}" for command in commands]
    for line in (f"results: {study.storage}", "next:", *later, f"  optuna-dashboard {shlex.quote(study.storage)}"):
        tell(line)


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
    tell(text.latency_line(foretold, took, table))
    late = text.late_line(foretold, took, study.meta["limits"]["latency"])
    if late:
        say(late)
