"""Any searcher as an Optuna sampler, the reinforcement-learning agent included."""

import threading
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automc.distributions import distributions, levels_of, parameters
from automc.evaluation import Evaluation
from automc.searcher import Problem, Searcher


class SearcherSampler(BaseSampler):
    """Proposes a searcher's policies to a study over `automc.distributions.distributions` of its space.

    A trial whose parameters are those of the searcher's space gets a whole policy; any other parameter is drawn at
    random. Studies over the space are told to the searcher as their trials finish. Threads of one study take turns.
    """

    def __init__(self, searcher: Searcher, problem: Problem, *, seed: int | None = None) -> None:
        self._searcher, self._problem = searcher, problem
        self._ranges = distributions(problem.space.axes)
        self._independent = RandomSampler(seed=seed)
        self._turn = threading.Lock()

    def reseed_rng(self) -> None:
        """Reseeds what draws parameters outside the space."""
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, always: a policy is one decision."""
        return self._ranges

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A policy from the searcher, where the trial is about its space; random values for any other space."""
        if search_space != self._ranges:
            return {n: self.sample_independent(study, trial, n, r) for n, r in search_space.items()}
        with self._turn:
            policy = self._searcher.ask()
        return parameters(self._problem.space.axes, self._problem.space.encode(policy))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tells the searcher what its policy scored."""
        if set(trial.params) != set(self._ranges):
            return
        point = levels_of(self._problem.space.axes, trial.params)
        costs = tuple(self._problem.projector.costing.of(point).items())
        policy = self._problem.space.decode(point)
        # A pruned trial's value is its last report, on a scale only its objective knows: no estimate of a score.
        if state == TrialState.COMPLETE and values is not None:
            score = values[0] if study.directions[0] == StudyDirection.MAXIMIZE else -values[0]
            told = Evaluation(policy, "ok", score, costs)
        else:
            told = Evaluation(policy, "failed", None, costs, reason=f"the trial ended as {state.name}")
        with self._turn:
            self._searcher.tell(told)
