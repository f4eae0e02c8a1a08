"""How every search begins: its task prepared, its study made or found again, its searcher shown earlier studies."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automc.budget import LATENCY, Budget
from automc.costs.latency import LatencyTable
from automc.earlier import recall
from automc.errors import AutomcError, StudyError
from automc.policy import Recipe
from automc.profiling import Given, source, table_of
from automc.registry import SEARCHERS
from automc.scoring.evaluator import check_score
from automc.scoring.stages import check_stages
from automc.searcher import Searcher
from automc.setting import Setting, described, find_space, prepare, study_name
from automc.space import SpaceBuilder
from automc.study import Study, default_path
from automc.task import Task
from automc.tasks import named as named_tasks

_log = logging.getLogger("automc")


@dataclass(frozen=True, eq=False, slots=True)
class Begun:
    """A search before its first trial; the searcher has been told none of the study's."""

    setting: Setting
    study: Study
    searcher: Searcher


def begin(
    task: Task | str,
    *,
    budget: Budget | str,
    space: str | SpaceBuilder,
    searcher: str,
    score: str,
    stages: Sequence[int],
    race: dict[str, Any],
    seed: int,
    storage: str | Path | None,
    study: str | None,
    earlier: Sequence[Study | str | Path],
    recipe: Recipe | None,
    latency: Given,
    batch: int,
    cache: str | Path | None,
    memory_bytes: int,
    shared: bool = False,
    on_start: Callable[[Study], None] | None = None,
) -> Begun:
    """Arguments as `automc.search` explains them; `race` says of its trials what else the study is to note."""
    limits = Budget.parse(budget) if isinstance(budget, str) else budget
    chosen, build = find_space(space, limits)
    SEARCHERS.check(searcher)
    check_score(score)
    check_stages(stages)
    shown = [opened(s) for s in earlier]
    words = chosen if score == "metric" else f"{chosen}-{score}"

    def named(task_name: str) -> str:
        return study or study_name(task_name, limits, words, searcher, seed)

    def recorded(task_name: str) -> LatencyTable | None:
        return _recorded_table(storage, named(task_name))

    timed = source(latency, chosen, batch, recorded) if LATENCY in limits.metrics else None
    setting = prepare(task, limits, build, recipe, cache, memory_bytes, score, stages=stages, seed=seed, latency=timed)
    if setting.reference is not None:
        named_tasks.note(setting.reference)
    race = {"stages": list(_looks(setting, stages))} | race
    meta = described(setting, limits, chosen, searcher, seed) | {"score": score, "race": race}
    record = Study.create(storage, named(setting.task.name), meta, setting.problem.space.axes, shared=shared)
    if on_start is not None:
        on_start(record)
    proposer = SEARCHERS.load(searcher)(setting.problem, record.seed_of(seed))
    recall(proposer, searcher, record, shown, setting.problem.space)
    if "uniform" not in record.meta:
        record.note("uniform", _uniform(setting, seed))
    return Begun(setting, record, proposer)


def opened(study: Study | str | Path) -> Study:
    """A study, or what lies where it is said to be."""
    return study if isinstance(study, Study) else Study.open(study)


def _recorded_table(storage: str | Path | None, name: str) -> LatencyTable | None:
    """The latency table that a study was begun with, if it was."""
    try:
        return table_of(Study.open(default_path(name) if storage is None else storage, name))
    except StudyError:
        return None  # it is yet to be made; what else is wrong is said when that is tried


def _looks(setting: Setting, stages: Sequence[int]) -> tuple[int, ...]:
    """After how many samples candidates may be stopped; that all of `stages` do nothing is said, and is no error."""
    found = setting.evaluator.looks
    if stages and not found:
        needed = "must leave validation samples unseen"
        if setting.task.evaluate is not None:
            needed = "need scores by sample, which a task with an evaluate of its own has not"
        numbers = ", ".join(map(str, stages))
        _log.warning("Stages %s; %s stop nobody here, and every candidate is scored in full.", needed, numbers)
    return found


def _uniform(setting: Setting, seed: int) -> dict[str, Any] | None:
    """The uniform policy at the budget, the baseline of every plot; None where there is none."""
    try:
        policy = SEARCHERS.load("uniform")(setting.problem, seed).ask()
        scored = setting.evaluator.evaluate(policy)
    except AutomcError:
        return None
    if not scored.ok:
        return None
    return {
        "score": scored.score,
        "metric": scored.metric,
        "costs": dict(scored.costs),
        "policy": policy.to_dict(),
    }
