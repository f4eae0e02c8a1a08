"""The public calls that compress, from search to distill. The command line is a thin layer over them.

A task is given as a `Task`, or as a reference: a registered name, `path/to/file.py:attribute`, or `module:attribute`.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from automc import loop
from automc.begin import begin, opened
from automc.budget import Budget
from automc.callbacks.callback import Callback
from automc.callbacks.telling import telling
from automc.compression import provenance
from automc.compression.bank import MEMORY_BYTES
from automc.compression.compress import Compressor
from automc.earlier import recall
from automc.errors import StudyError, TaskError
from automc.evaluation import Evaluation
from automc.executors.executor import Executor
from automc.graph.facts import ModelFacts
from automc.graph.trace import trace_model
from automc.policy import Policy, Recipe
from automc.profiling import Given, table_of
from automc.recovery import distill as recovery
from automc.recovery.distill import Distillation
from automc.registry import SEARCHERS
from automc.scoring.incumbents import check_keep
from automc.scoring.race import Race
from automc.searcher import ServesBudgets
from automc.setting import Setting, found_task, prepare
from automc.space import SpaceBuilder
from automc.study import Study
from automc.task import Task
from automc.tasks import named as named_tasks
from automc.workers import Workers, here, settled, spread

_log = logging.getLogger("automc")
SLACK = 0.005
"""Share of a limit by which one trial may cost more than another that it stops."""


def search(
    task: Task | str,
    *,
    budget: Budget | str,
    space: str | SpaceBuilder = "auto",
    searcher: str = "joint",
    score: str = "metric",
    stages: Sequence[int] = (),
    keep: int = 1,
    screen: bool = False,
    trials: int = 100,
    seconds: float | None = None,
    seed: int = 0,
    storage: str | Path | None = None,
    study: str | None = None,
    earlier: Sequence[Study | str | Path] = (),
    recipe: Recipe | None = None,
    latency: Given = None,
    batch: int = 1,
    cache: str | Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
    workers: int | Workers = 1,
    shared: bool = False,
    progress: bool | Callable[[Evaluation], None] = False,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Study], None] | None = None,
) -> Study:
    """Searches policies for `task` that meet `budget`, and returns the study of all evaluations.

    The same call again goes on where the study stopped: `trials` counts all of a study's trials. After `seconds`
    nothing more is asked for; what is in flight is finished and recorded: one candidate here, with workers as many as
    `Workers.in_flight` says, each for as long as `Workers.seconds` lets it. `space` is a registered name, a YAML file,
    or a function from facts to axes; "auto" opens bits only where the budget limits size or bops. `score` says what is
    searched: the task's "metric", or likeness to the dense model's outputs, "kl" or "mse" (see `automc.scoring.soft`);
    the metric is recorded in any case. `stages` such as (256, 1024) are numbers of validation samples after which a
    candidate is stopped if it is clearly worse than the `keep`-th best of the trials that cost no more (see
    `automc.scoring.race`); none, the default, scores every candidate on all samples, and so do stages that leave none
    unseen and a task with an `evaluate` of its own, both with a logged warning. With `screen` a candidate whose
    predicted score is that much worse is not even compressed (`automc.scoring.screen`). `storage` is a journal file or
    a database URL; by default `runs/<study>.journal`. `earlier` studies of the same model, or where they lie, show
    their trials to the searcher's agent before it begins (see `automc.earlier`). Where the budget limits latency,
    `latency` is the table of the model, its file, or a function that times a module for its inputs on a device of your
    own; without it layers are timed here, for `batch` samples a pass, unless runs/latency/ has the table. `cache` is a
    folder where what is computed once per layer is kept, `memory_bytes` bounds how much of it is held in memory, in
    each worker. `workers` is how many processes score candidates, by default this one alone; see `Workers` for Ray, and
    for limits of time and memory a candidate. With `shared`, the same search may run in other processes, or on other
    hosts where `storage` is a server: each policy is scored by one of them and told to all, and `trials` counts what
    they do together. `progress` shows a bar, or is called with each recorded evaluation. `callbacks` are told when the
    search begins, each recorded evaluation, and how it ended; see `automc.callbacks` for those there are.
    """
    check_keep(keep)
    spreading = None if workers == 1 else workers if isinstance(workers, Workers) else Workers(workers)
    begun = begin(
        task,
        budget=budget,
        space=space,
        searcher=searcher,
        score=score,
        stages=stages,
        race={"keep": keep, "screen": screen},
        seed=seed,
        storage=storage,
        study=study,
        earlier=earlier,
        recipe=recipe,
        latency=latency,
        batch=batch,
        cache=cache,
        memory_bytes=memory_bytes,
        shared=shared,
        on_start=on_start,
    )
    setting, record = begun.setting, begun.study
    with _watching(progress, record, trials, seconds) as shown_trial, telling(callbacks, record) as told_trial:

        def on_trial(evaluation: Evaluation) -> None:
            told_trial(evaluation)
            shown_trial(evaluation)

        slack = {name: SLACK * bound for name, bound in record.meta["limits"].items()}
        runner = Race(setting.evaluator, record.costs, keep, screen=setting.screen if screen else None, slack=slack)
        done = len(record.evaluations) >= trials  # then nobody need begin to work
        with _scored_by(1 if done else settled(spreading, record), setting, runner) as scores:
            loop.run(
                setting.problem,
                begun.searcher,
                scores,
                record,
                trials=trials,
                seconds=seconds,
                on_trial=on_trial,
                learn=runner.learn,
            )
    return record


def _scored_by(
    workers: Workers | int, setting: Setting, race: Race
) -> contextlib.AbstractContextManager[Callable[[Policy], Evaluation] | Executor[Policy, Evaluation]]:
    """What scores a race's policies: this process, with so many in flight, or workers."""
    if isinstance(workers, int):
        return contextlib.nullcontext(here(race, workers))
    return spread(workers, setting.scoring, race)


def policy_for(
    study: Study | str | Path,
    share: float,
    *,
    task: Task | str | None = None,
    space: str | SpaceBuilder | None = None,
    earlier: Sequence[Study | str | Path] = (),
) -> Policy:
    """What the agent of a study does with a budget of that share of the dense cost, trained by all that was recorded.

    For studies of `amc-budgets`, whose agent is shown budgets; `share` is cut to those it was trained on. The policy is
    within every limit of the study and has not been scored. `task`, `space` and `earlier` as given to `search`, where
    they were more than registered names. StudyError for a study of another searcher.
    """
    record = opened(study)
    meta = record.meta
    reference = task or meta["task"]
    if reference is None:
        raise TaskError(f"Study {record.name!r} was searched on a task object; it must be given again: pass task=.")
    if task is None:
        named_tasks.check(str(reference), record.storage)
    setting = prepare(
        reference,
        Budget.parse(meta["budget"]),
        space or meta["space"],
        Recipe.from_dict(meta["recipe"]),
        score=meta.get("score", "metric"),
        latency=table_of(record),
    )
    searcher = SEARCHERS.load(meta["searcher"])(setting.problem, meta["seed"])
    if not isinstance(searcher, ServesBudgets):
        raise StudyError(
            f"A study must have an agent that was shown budgets; {record.name!r} was searched by {meta['searcher']}: "
            "search with amc-budgets."
        )
    shown = [opened(s) for s in earlier]
    recall(searcher, meta["searcher"], record, shown, setting.problem.space)
    for evaluation in record.evaluations:
        searcher.tell(evaluation)
    return searcher.policy_for(share)


def apply(task: Task | str, policy: Policy, *, cache: str | Path | None = None) -> nn.Module:
    """The task's model compressed by `policy`, in eval mode; `task.model` is untouched. `cache` as in `search`."""
    found = found_task(task)
    graph = trace_model(found.model, found.example_inputs)
    return Compressor(graph, found.model, found, cache).compress(policy)


def distill(
    module: nn.Module,
    task: Task | str,
    *,
    settings: Distillation | None = None,
    samples: int = 2048,
    progress: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Trains what `apply` returned, in place, to compute what the task's dense model computes; returns it.

    Needs no labels: the first `samples` calibration inputs are used, changed by the task's `augment` if it has one.
    What the policy decided stays as it is. `progress` is told each epoch's number and mean loss.
    """
    found = found_task(task)
    provenance.of(module)
    graph = trace_model(found.model, found.example_inputs, verify=False)
    inputs = found.calibration_inputs(samples)
    recovery.distill(module, found.model, graph, inputs, settings, augment=found.augment, progress=progress)
    return module


def inspect(task: Task | str) -> ModelFacts:
    """Layers, groups of coupled channels, and what is refused, of a task's model."""
    found = found_task(task)
    return trace_model(found.model, found.example_inputs).facts


def _watching(progress: bool | Callable[[Evaluation], None], study: Study, trials: int, seconds: float | None) -> Any:
    """A context that gives what is called with each evaluation."""
    from contextlib import nullcontext

    if callable(progress) or not progress:
        return nullcontext(progress or (lambda _: None))
    from automc.report.progress import Bar

    return Bar(study, trials, seconds)
