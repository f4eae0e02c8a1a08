"""A TPE's suggestion from some of the told points, without a study of its own for each.

A told point is turned into an Optuna trial once; a storage that shows a choice of these trials takes their place in a
study. Copying them into a new study for each suggestion would take two hundred milliseconds.
"""

import math
from collections.abc import Container, Sequence

import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automc.searcher import Problem
from automc.searchers.optuna_search import asked, finished_trial, level_ranges, levels_at, parameters_at, tpe_sampler
from automc.space import IntArray
from automc.storage import quiet


class Trials:
    """Told points as Optuna trials, to choose from."""

    def __init__(self, problem: Problem) -> None:
        self._space, self._ranges = problem.space, level_ranges(problem.space)
        self._told: list[FrozenTrial | None] = []

    def tell(self, point: IntArray, score: float) -> None:
        """Takes note of a told point; one whose score is NaN is never chosen."""
        params = parameters_at(self._space, point)
        trial = None if math.isnan(score) else finished_trial(params, self._ranges, [score])
        if trial is not None:
            trial.number = len(self._told)  # TPE weighs trials by their age
        self._told.append(trial)

    def suggest(self, chosen: Sequence[int], seed: int) -> IntArray:
        """Levels of all axes from a TPE that knows the chosen points alone, by their order of telling."""
        known = [trial for i in chosen if (trial := self._told[i]) is not None]
        with quiet():
            study = optuna.create_study(direction=StudyDirection.MAXIMIZE, storage=_Shown(known))
        return levels_at(self._space, asked(study, tpe_sampler(seed), self._ranges).params)


class _Shown(InMemoryStorage):
    """Trials that others hold, and the one that is being asked for."""

    def __init__(self, known: list[FrozenTrial]) -> None:
        super().__init__()
        self._known = known

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """What is shown first, whatever is asked for: complete trials."""
        shown = self._known if states is None or TrialState.COMPLETE in states else []
        return [*shown, *super().get_all_trials(study_id, deepcopy, states)]
