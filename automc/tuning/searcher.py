"""Any searcher as one of Ray Tune's, which keeps the study.

A new Tuner on the same study goes on where another stopped, however that was. Tune's own state is pickled files:
nothing of a search is written to them, and they are never read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher as RaySearcher

from automc.begin import begin
from automc.budget import Budget
from automc.compression.bank import MEMORY_BYTES
from automc.errors import StudyError
from automc.policy import Policy, Recipe
from automc.profiling import Given
from automc.space import SpaceBuilder
from automc.study import Study
from automc.task import Task
from automc.tuning.ledger import POLICY, RESUME, Ledger

AGAIN = 20
"""How often a policy is drawn again that is known already."""


def tune_searcher(
    task: Task | str,
    *,
    budget: Budget | str,
    space: str | SpaceBuilder = "auto",
    searcher: str = "joint",
    score: str = "metric",
    stages: Sequence[int] = (),
    trials: int = 100,
    seed: int = 0,
    storage: str | Path | None = None,
    study: str | None = None,
    earlier: Sequence[Study | str | Path] = (),
    recipe: Recipe | None = None,
    latency: Given = None,
    batch: int = 1,
    cache: str | Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> "TuneSearcher":
    """A `ray.tune.search.Searcher` for one `Tuner` whose trainable is `automc.trainable` of it; arguments as `search`.

    Every suggestion meets the budget. `trials` counts all of the study's: with `num_samples=-1` a Tuner scores those
    that remain, and the same calls again go on. `stages` are the numbers of samples after which a scheduler may stop a
    trial; one that does is `pruned`. What is recorded follows the order in which trials finish, so that only with
    `max_concurrent_trials=1` is a run a function of its seed.
    """
    race = {"by": "ray tune"}
    begun = begin(
        task,
        budget=budget,
        space=space,
        searcher=searcher,
        score=score,
        stages=stages,
        race=race,
        seed=seed,
        storage=storage,
        study=study,
        earlier=earlier,
        recipe=recipe,
        latency=latency,
        batch=batch,
        cache=cache,
        memory_bytes=memory_bytes,
    )
    return TuneSearcher(Ledger(begun), trials)


class _Unsaved(RaySearcher):
    """What Tune may ask to save and restore, and even pickle, without any of it reaching a file, or coming from one."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Writes nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing."""

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Reads nothing."""
        raise StudyError(RESUME)

    def restore(self, checkpoint_path: str) -> None:
        """Reads nothing."""
        raise StudyError(RESUME)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Copy, ()  # a Tuner pickles its configuration, with its searcher, to a file


class _Copy(_Unsaved):
    """What comes out of a pickle."""

    def suggest(self, trial_id: str) -> Any:
        """Suggests nothing."""
        raise StudyError(RESUME)

    def draw(self) -> str:
        """Draws nothing."""
        raise StudyError(RESUME)


class TuneSearcher(_Unsaved):
    """Suggests policies as `{"policy": JSON}` and records what becomes of them; made by `tune_searcher`.

    An object serves one run of a Tuner.
    """

    def __init__(self, ledger: Ledger, trials: int) -> None:
        super().__init__(metric="score", mode="max")
        self.ledger, self.trials = ledger, trials
        self._asked: tuple[Policy, str] | None = None
        """A policy that is being scored for another trial, and its JSON."""

    @property
    def study(self) -> Study:
        """Where trials are recorded."""
        return self.ledger.study

    def suggest(self, trial_id: str) -> Any:
        """The config of a trial; None while its policy is being scored for another, FINISHED after the last.

        StudyError where what is over cannot be recorded; that is tried again with the next suggestion.
        """
        self.ledger.settle()
        while len(self.study.evaluations) + len(self.ledger.open) < self.trials:
            policy, text = self._asked or self.ledger.ask()
            self._asked = None
            if policy.digest in self.ledger.known:
                self.ledger.repeat(policy, text)
            elif text in self.ledger.open:
                self._asked = policy, text
                return None
            else:
                self.ledger.begin(trial_id, text)
                return {POLICY: text}
        return self.FINISHED

    def draw(self) -> str:
        """A policy as JSON, a new one if there is any, for schedulers that take no searcher: see
        `automc.tuning.recording`.
        """
        for _ in range(AGAIN):
            policy, text = self.ledger.ask()
            if policy.digest not in self.ledger.known and text not in self.ledger.open:
                break
        return text

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes note of a stage."""
        self.ledger.report(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Records a trial that is over; Tune logs what this raises and goes on, until `suggest` raises it again."""
        if result is not None:
            self.ledger.report(trial_id, result)
        self.ledger.over(trial_id, error=error)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Says that the space is not Tune's to give; StudyError for a metric that is not searched."""
        if (metric or self.metric, mode or self.mode) != (self.metric, self.mode):
            raise StudyError(f"Tune must maximise score; it is told {mode} {metric}: say metric='score', mode='max'.")
        return False
