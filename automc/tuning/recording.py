"""Trials of a run without a searcher in the study all the same: as one of Ray Tune's callbacks.

Schedulers that change configs themselves, such as PopulationBasedTraining, take no searcher beside them. They may draw
policies from one, and this records what becomes of each: one that gives way to another is `pruned`.

    search = automc.tune_searcher(...)
    scheduler = PopulationBasedTraining(hyperparam_mutations={"policy": search.draw}, resample_probability=1.0, ...)
    tune.Tuner(automc.trainable(search), run_config=tune.RunConfig(callbacks=[Recording(search)]), ...)
"""

from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict

from automc.errors import StudyError
from automc.tuning.ledger import POLICY, RESUME
from automc.tuning.searcher import TuneSearcher


class Recording(tune.Callback):
    """Records trials whose policies are drawn from `search`, or from anywhere else."""

    def __init__(self, search: TuneSearcher) -> None:
        self._ledger = search.ledger

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Takes note of a trial; StudyError where one that is over cannot be recorded."""
        self._ledger.settle()
        self._ledger.begin(trial.trial_id, str(trial.config.get(POLICY)))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Takes note of a stage."""
        self._ledger.report(trial.trial_id, flatten_dict(result))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records a trial that is over."""
        self._ledger.over(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records a trial that ended with an error."""
        self._ledger.over(trial.trial_id, error=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Copy, ()  # a Tuner pickles its configuration, with its callbacks, to a file


class _Copy(tune.Callback):
    """What comes out of a pickle."""

    def setup(self, *_: Any, **info: Any) -> None:
        """Lets no run begin that would not be recorded."""
        raise StudyError(RESUME)
