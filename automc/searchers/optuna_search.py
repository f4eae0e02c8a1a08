"""Both bridges to Optuna: any sampler as a searcher, any searcher as a sampler.

A sampler works on an in-memory study that is told the executed policies, not the ones it proposed: the projection is
part of the objective. A fresh sampler with a seed of its own for every ask makes a proposal a function of the seed and
the history, so a resumed search goes on as an uninterrupted one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from automc.distributions import distributions, levels_of, parameters
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.searcher import Problem, Searcher
from automc.searchers.history import History
from automc.space import IntArray
from automc.storage import quiet

SamplerFactory = Callable[[int], BaseSampler]
"""From a seed to a sampler."""
POPULATION = 20


class OptunaSearcher:
    """A searcher from any Optuna sampler."""

    def __init__(
        self,
        problem: Problem,
        seed: int,
        sampler: SamplerFactory,
        *,
        name: str = "optuna",
        costs: Sequence[str] = (),
        fill: bool = True,
    ) -> None:
        self.history = History(problem, seed)
        self.proposer = name
        self._sampler, self._fill, self._costs = sampler, fill, tuple(costs)
        self._ranges = distributions(problem.space.axes)
        self._study = memory_study(1 + len(self._costs))

    def ask(self) -> Policy:
        """What the sampler suggests, made feasible."""
        rng = self.history.rng()
        point = self.history.problem.projector.project(self.suggest(rng), fill=self._fill)
        return self.history.propose(point, rng)

    def suggest(self, rng: np.random.Generator) -> IntArray:
        """The sampler's own point, before projection."""
        params = suggested(self._study, self._sampler(int(rng.integers(2**31))), self._ranges)
        return levels_of(self.history.problem.space.axes, params)

    def tell(self, evaluation: Evaluation) -> None:
        """Adds the executed policy to the sampler's study."""
        point = self.history.tell(evaluation)
        values = None
        if evaluation.scored and evaluation.score is not None:  # an estimate is dominated by what it was raced against
            values = [evaluation.score, *(evaluation.cost(name) for name in self._costs)]
        told = len(self.history.points) - 1
        params = parameters(self.history.problem.space.axes, point)
        self._study.add_trial(finished_trial(params, self._ranges, values, told // POPULATION))

    def state_dict(self) -> dict[str, Any]:
        """How much was told; the study itself is the state."""
        return {"told": len(self.history.points)}


class SearcherSampler(BaseSampler):
    """An Optuna sampler from any searcher, the reinforcement-learning agent included.

    A trial whose parameters are those of the searcher's space gets a whole policy; any other parameter is drawn at
    random. Studies over the space are told to the searcher as their trials finish.
    """

    def __init__(self, searcher: Searcher, problem: Problem, *, seed: int | None = None) -> None:
        self._searcher, self._problem = searcher, problem
        self._ranges = distributions(problem.space.axes)
        self._independent = RandomSampler(seed=seed)

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
            self._searcher.tell(Evaluation(policy, "ok", score, costs))
        else:
            self._searcher.tell(Evaluation(policy, "failed", None, costs, reason=f"the trial ended as {state.name}"))


def tpe(problem: Problem, seed: int) -> OptunaSearcher:
    """Tree-structured Parzen estimators over all decisions at once (Bergstra et al. 2011), ten random trials first."""
    return OptunaSearcher(problem, seed, tpe_sampler, name="tpe")


def nsga2(problem: Problem, seed: int) -> OptunaSearcher:
    """NSGA-II (Deb et al. 2002) on the score and every limited cost; it may stay below the budget to widen the
    front."""

    def sampler(draw: int) -> BaseSampler:
        return _NSGAII(population_size=POPULATION, seed=draw)

    return OptunaSearcher(problem, seed, sampler, name="nsga2", costs=tuple(problem.projector.limits), fill=False)


def tpe_sampler(seed: int) -> TPESampler:
    """The TPE every searcher here uses."""
    with quiet():
        return _TPE(seed=seed, multivariate=True, n_startup_trials=10, constant_liar=False)


class _WholeSpace:
    """Skips the search through all trials for the parameters they share: here every trial has all of them.

    That search compares every value of every trial, and a fresh sampler makes it anew: most of an ask otherwise.
    """

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The last trial's parameters, single-valued ones left out."""
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {name: r for name, r in told[-1].distributions.items() if not r.single()} if told else {}


class _TPE(_WholeSpace, TPESampler):
    """TPE over the whole space."""


class _NSGAII(_WholeSpace, NSGAIISampler):
    """NSGA-II over the whole space."""


def memory_study(objectives: int) -> optuna.Study:
    """An in-memory study: the score is maximised, costs are minimised."""
    with quiet():
        directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * (objectives - 1)]
        return optuna.create_study(directions=directions, sampler=RandomSampler(seed=0))


def suggested(study: optuna.Study, sampler: BaseSampler, ranges: dict[str, BaseDistribution]) -> dict[str, Any]:
    """One suggestion of a sampler for a study; the trial it needs is closed at once and never counts."""
    study.sampler = sampler
    with quiet():
        trial = study.ask(ranges)
        params = dict(trial.params)
        study.tell(trial, state=TrialState.FAIL)
    return params


def finished_trial(
    params: dict[str, Any], ranges: dict[str, BaseDistribution], values: Sequence[float] | None, generation: int
) -> FrozenTrial:
    """A told trial; the generation is where NSGA-II counts it."""
    if values is None:
        return create_trial(state=TrialState.FAIL, params=params, distributions=ranges)
    attributes = {NSGAIISampler._get_generation_key(): generation}
    return create_trial(params=params, distributions=ranges, values=list(values), system_attrs=attributes)
