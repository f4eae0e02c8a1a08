"""Any searcher as an Optuna sampler, the reinforcement-learning agent included."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automc.distributions import distributions, levels_of, parameters
from automc.evaluation import Evaluation
from automc.projection import within
from automc.searcher import Problem, Searcher

PROPOSER = "automc:proposer"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class SearcherSampler(BaseSampler):
    """Proposes a searcher's policies to a study over `automc.distributions.distributions` of its space.

    A trial whose parameters are those of the searcher's space gets a whole policy; any other parameter is drawn at
    random. The searcher is told every finished trial over the space, those of others and of earlier processes before
    its next proposal; a trial over a limit is infeasible, whatever it scored. Threads of one study take turns.
    """

    def __init__(self, searcher: Searcher, problem: Problem, *, seed: int | None = None) -> None:
        self._searcher, self._problem = searcher, problem
        self._ranges = distributions(problem.space.axes)
        self._independent = RandomSampler(seed=seed)
        self._turn = threading.Lock()
        self._told: set[tuple[str, int]] = set()
        """Study and number of every trial told."""

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
            for done in study.get_trials(deepcopy=False, states=FINISHED):
                self._tell(study, done, done.state, done.values)
            policy = self._searcher.ask()
            proposer = str(getattr(self._searcher, "proposer", ""))
        study._storage.set_trial_system_attr(
            trial._trial_id, PROPOSER, proposer
        )  # as Optuna's own samplers note things
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
        with self._turn:
            self._tell(study, trial, state, values)

    def _tell(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tells the searcher a finished trial over its space, once."""
        key = study.study_name, trial.number
        if key in self._told or set(trial.params) != set(self._ranges):
            return
        self._told.add(key)
        point = levels_of(self._problem.space.axes, trial.params)
        costs = tuple(self._problem.projector.costing.of(point).items())
        policy = self._problem.space.decode(point)
        # A pruned trial's value is its last report, on a scale only its objective knows: no estimate of a score.
        if state != TrialState.COMPLETE or values is None:
            told = Evaluation(policy, "failed", None, costs, reason=f"the trial ended as {state.name}")
        elif not within(dict(costs), self._problem.projector.limits):
            told = Evaluation(policy, "infeasible", None, costs, reason="the trial is over a limit")
        else:
            score = values[0] if study.directions[0] == StudyDirection.MAXIMIZE else -values[0]
            told = Evaluation(policy, "ok", score, costs)
        self._searcher.tell(replace(told, proposer=str(trial.system_attrs.get(PROPOSER, ""))))
