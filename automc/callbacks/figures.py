"""What callbacks say of a search and of its trials, as numbers and JSON values."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from automc.errors import StudyError
from automc.evaluation import Evaluation, State
from automc.storage import shown
from automc.study import Study

_SAID = (
    "task", "task_name", "fingerprint", "budget", "limits", "space", "searcher", "seed", "score", "metric", "race",
    "recipe", "dense", "earlier", "threads", "versions",
)  # fmt: skip


def described(study: Study) -> dict[str, Any]:
    """What is searched; without long tables, which are in the study."""
    return {key: study.meta[key] for key in _SAID if key in study.meta}


def place(study: Study) -> str:
    """Where a study is kept, from wherever one looks: a whole path, or a URL without its password."""
    return shown(study.storage) if "://" in study.storage else str(Path(study.storage).absolute())


def best_of(study: Study) -> Evaluation | None:
    """The best trial so far, where there is a feasible one."""
    try:
        return study.best
    except StudyError:
        return None


def counts(study: Study) -> dict[State, int]:
    """How many trials there are, by state."""
    states = [e.state for e in study.evaluations]
    return {state: states.count(state) for state in get_args(State)}


def figures(study: Study, evaluation: Evaluation) -> dict[str, float]:
    """Finite numbers to plot after a trial: its own, and those of the best so far.

    Exact scores and the estimates of trials that were stopped early are two series.
    """
    series = "score" if evaluation.ok else "estimate"
    found: dict[str, float | None] = {series: evaluation.score, "metric": evaluation.metric}
    found |= {"seconds": evaluation.seconds, "share": evaluation.share}
    found |= {f"cost/{name}": value for name, value in evaluation.costs}
    best = best_of(study)
    if best is not None:
        found |= {"best/score": best.score, "best/metric": best.metric}
        found |= {f"best/cost/{name}": value for name, value in best.costs}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def plain(value: Any) -> Any:
    """A JSON value that every reader takes: what is not finite is null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
