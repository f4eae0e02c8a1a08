"""What a search works with: task, traced model, open space, projection and evaluator, before anything is scored."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch

from automc import wider
from automc.budget import LATENCY, Budget
from automc.compression.bank import MEMORY_BYTES
from automc.compression.compress import Compressor
from automc.costs.latency import LatencyTable
from automc.errors import BudgetError, SpaceError, TaskError
from automc.graph.facts import ModelFacts
from automc.graph.trace import ModelGraph, trace_model
from automc.paying import fastest_first, paying
from automc.policy import Recipe
from automc.projection import Costing, Projector
from automc.registry import SPACE_FILES, SPACES
from automc.scoring.evaluator import Evaluator
from automc.scoring.groundwork import Groundwork
from automc.scoring.screen import Screen
from automc.searcher import Problem
from automc.space import SearchSpace, SpaceBuilder
from automc.task import Task
from automc.tasks import load_task
from automc.tasks.named import portable

LatencySource: TypeAlias = LatencyTable | Callable[[Compressor, SearchSpace], LatencyTable | None]
_AUTO = {"bops": "zeros-bits", "size": "channels-bits"}
"""Limits that fewer bits help to meet, and what `auto` opens for them; otherwise `channels-ranks`."""


@dataclass(frozen=True, eq=False)
class Scoring:
    """How candidates are scored: what an evaluator is made from, here or in another process."""

    task: Task
    space: SearchSpace
    latency: LatencyTable | None = None
    cache: Path | None = None
    memory_bytes: int = MEMORY_BYTES
    """For what is known of layers and fitting passes, and as much for scoring passes."""
    score: str = "metric"
    stages: tuple[int, ...] = ()
    seed: int = 0

    def evaluator(self, groundwork: Groundwork | None = None) -> Evaluator:
        """A new evaluator, which traces the model; TaskError where it turns out to be another one than before.

        groundwork: what an evaluator of the same scoring has computed already.
        """
        graph = trace_model(self.task.model, self.task.example_inputs)
        if _outline(graph.facts) != _outline(self.space.facts):
            raise TaskError("A model must be the same wherever it is traced; this one is not: make its forward repeat.")
        gathered = None if groundwork is None else groundwork.gathered
        compressor = Compressor(graph, self.task.model, self.task, self.cache, self.memory_bytes, gathered)
        return self.evaluator_of(compressor, Costing(self.space, self.latency), groundwork)

    def evaluator_of(self, compressor: Compressor, costing: Costing, groundwork: Groundwork | None = None) -> Evaluator:
        """An evaluator of what is there already."""
        return Evaluator(
            self.task,
            compressor,
            costing,
            self.score,
            stages=self.stages,
            seed=self.seed,
            memory_bytes=self.memory_bytes,
            groundwork=groundwork,
        )

    def evaluator_like(self, other: Evaluator) -> Evaluator:
        """A new evaluator of the same graph and samples as another of this scoring; it has computed nothing yet."""
        graph = other.compressor.graph
        compressor = Compressor(graph, self.task.model, self.task, self.cache, self.memory_bytes)
        made = self.evaluator_of(compressor, other.costing)
        made.share_samples(other)
        return made


@dataclass(frozen=True, eq=False)
class Setting:
    """Everything a search works with."""

    task: Task
    reference: str | None
    """How the task was named; None for an object."""
    graph: ModelGraph
    scoring: Scoring
    evaluator: Evaluator
    problem_parts: tuple[SearchSpace, Projector]

    @cached_property
    def problem(self) -> Problem:
        """What a searcher is given; scores the dense model on first use."""
        space, projector = self.problem_parts
        compressor = self.evaluator.compressor
        return Problem(
            space,
            projector,
            self.evaluator.dense_score,
            lambda: compressor.errors(space),
            lambda criterion: compressor.thresholds(space, criterion),
        )

    @property
    def screen(self) -> Screen:
        """What predicts scores from layers' errors, told nothing yet."""
        space = self.problem_parts[0]
        return Screen(space, lambda: self.evaluator.compressor.errors(space))


def prepare(
    task: Task | str,
    budget: Budget,
    space: str | SpaceBuilder,
    recipe: Recipe | None = None,
    cache: str | Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
    score: str = "metric",
    *,
    stages: Sequence[int] = (),
    seed: int = 0,
    latency: LatencySource | None = None,
) -> Setting:
    """Traces the model, opens the space and refuses a budget that cannot be met; nothing is scored yet.

    latency: the table of the model, or what makes or finds one; needed where the budget limits latency, and where
    nothing else is limited, levels that save no time leave the space (see `paying`).
    """
    name, build = find_space(space, budget)
    found = found_task(task)
    graph = trace_model(found.model, found.example_inputs)
    opened = SearchSpace(graph.facts, build(graph.facts), recipe or Recipe())
    if not opened.axes:
        raise TaskError(
            f"A search must have something to decide; {name} opens nothing in {found.name!r}: {_others(opened)}."
        )
    half = memory_bytes // 2
    compressor = Compressor(graph, found.model, found, cache, half)
    table = latency(compressor, opened) if callable(latency) else latency
    if LATENCY in budget.metrics:
        if table is None:
            raise BudgetError("A budget of seconds must come with a latency table; there is none: run automc profile.")
        opened = _timely(opened, table, budget, name)
    projector = Projector(opened, budget, table)
    kept = None if cache is None else Path(cache)
    scoring = Scoring(found, opened, table, kept, half, score, tuple(stages), seed)
    evaluator = scoring.evaluator_of(compressor, projector.costing)
    return Setting(
        found, portable(task) if isinstance(task, str) else None, graph, scoring, evaluator, (opened, projector)
    )


def _outline(facts: ModelFacts) -> tuple[object, ...]:
    """What of a model a policy speaks of."""
    groups = tuple((group.name, group.units) for group in facts.groups)
    return facts.fingerprint, facts.layers, groups, tuple(block.name for block in facts.blocks)


def _timely(space: SearchSpace, table: LatencyTable, budget: Budget, name: str) -> SearchSpace:
    """The space as a budget of seconds leaves it."""
    table.check(space.facts)
    if set(budget.metrics) != {LATENCY}:
        return fastest_first(space, table)
    left = paying(space, table)
    if not left.axes:
        raise SpaceError(
            f"A space must hold decisions that save time on {table.device}; {name} has none: open channels or ranks."
        )
    return left


def _others(space: SearchSpace) -> str:
    """What to search instead of a space that opens nothing."""
    found = wider.spaces(space.facts)
    if not found:
        return "no registered space does, see what `automc inspect` says of the model"
    return f"try --space {wider.listed(wider.nearest(space, found))}"


def evaluator_of(task: Task, score: str = "metric") -> Evaluator:
    """An evaluator outside a search, for reports."""
    graph = trace_model(task.model, task.example_inputs, verify=False)
    return Evaluator(task, Compressor(graph, task.model, task), Costing(SearchSpace(graph.facts, ())), score)


def find_space(space: str | SpaceBuilder, budget: Budget) -> tuple[str, SpaceBuilder]:
    """Name and builder of a space: of a registered one, of a YAML file, of "auto", or of a function."""
    if space == "auto":
        space = next((name for metric, name in _AUTO.items() if metric in budget.metrics), "channels-ranks")
    if isinstance(space, str) and Path(space).suffix.lower() not in SPACE_FILES:
        return space, SPACES.load(space)
    build: Any = SPACE_FILES.load(Path(space).suffix.lower())(Path(space)) if isinstance(space, str) else space
    return str(getattr(build, "name", None) or getattr(build, "__name__", "custom")), build


def study_name(task: str, budget: Budget, space: str, searcher: str, seed: int) -> str:
    """The default name, always the same for the same search, so that a repeated command goes on."""
    words = f"{task}-{re.sub('[<>]=', '', str(budget))}-{space}-{searcher}-{seed}"
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")


def metric_name(task: Task) -> str:
    """What the task's metric is called in reports."""
    if task.evaluate is not None:
        return str(getattr(task.evaluate, "__name__", "evaluate"))
    return task.metric if isinstance(task.metric, str) else str(getattr(task.metric, "__name__", "metric"))


def found_task(task: Task | str) -> Task:
    """A task, looked up where it is named."""
    return load_task(task) if isinstance(task, str) else task


def described(setting: Setting, budget: Budget, space: str, searcher: str, seed: int) -> dict[str, Any]:
    """What a study says of its search."""
    space_, projector = setting.problem_parts
    table = projector.costing.latency
    timed = {} if table is None else {"latency": table.model_dump(mode="json")}
    return timed | {
        "fingerprint": setting.graph.facts.fingerprint,
        "task": setting.reference,
        "task_name": setting.task.name,
        "budget": str(budget),
        "limits": projector.limits,
        "space": space,
        "searcher": searcher,
        "seed": seed,
        "recipe": asdict(space_.recipe),
        "metric": metric_name(setting.task),
        "dense": {
            "score": setting.evaluator.dense_score,
            "metric": setting.evaluator.dense_metric,
            "costs": projector.costing.dense(),
        },
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version()} | {n: version(n) for n in ("torch", "optuna", "numpy")}
