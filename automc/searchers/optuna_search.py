"""Any Optuna sampler as a searcher.

A sampler works on an in-memory study that is told the executed policies, not the ones it proposed: the projection is
part of the objective. Its parameters are levels: words are categories, ordered decisions a line on which every level
has a stretch of the same length, so that samplers see the order of bits and draw all levels alike.

A fresh sampler with a seed of its own for every ask makes a proposal a function of the seed and the history, so a
resumed search goes on as an uninterrupted one. What a sampler writes on a trial when it is asked (the generation, the
state of CMA-ES) it would write on asks that are lost with the process; here it is written by one more ask after every
tell, and stands on the trial told next. Every told policy thus belongs to the generation that was open when it was
told, whoever proposed it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.searcher import Problem
from automc.searchers.history import FromHistory
from automc.space import IntArray, SearchSpace
from automc.storage import quiet

SamplerFactory = Callable[[int], BaseSampler]
"""From a seed to a sampler."""
POPULATION = 20
"""Of the genetic algorithms; Optuna's 50 would leave a search of a few hundred trials a handful of generations."""
STARTUP = 10
"""Random trials before a model is fitted."""


class OptunaSearcher(FromHistory):
    """Asks an Optuna sampler.

    costs: what is minimised beside the score. fill: whether proposals are raised to the budget. generations: whether
    the sampler writes on trials what it needs later.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        sampler: SamplerFactory,
        *,
        name: str = "optuna",
        costs: Sequence[str] = (),
        fill: bool = True,
        generations: bool = False,
    ) -> None:
        super().__init__(problem, seed)
        self.proposer = name
        self._sampler, self._fill, self._costs, self._generations = sampler, fill, tuple(costs), generations
        self._ranges = level_ranges(problem.space)
        self._study = memory_study(1 + len(self._costs))
        self._notes: Mapping[str, Any] = {}
        """What the sampler writes on the next trial."""
        self._note()

    def ask(self) -> Policy:
        """What the sampler suggests, made feasible."""
        rng = self.history.rng()
        point = self.history.problem.projector.project(self.suggest(rng), fill=self._fill)
        return self.history.propose(point, rng)

    def suggest(self, rng: np.random.Generator) -> IntArray:
        """The sampler's own point, before projection."""
        return levels_at(self.history.problem.space, self._asked(rng).params)

    def tell(self, evaluation: Evaluation) -> None:
        """Adds the executed policy to the sampler's study."""
        point = self.history.tell(evaluation)
        values = None
        if not np.isnan(self.history.scores[-1]):  # an estimate is dominated by what it was raced against
            values = [self.history.scores[-1], *(evaluation.cost(name) for name in self._costs)]
        params = parameters_at(self.history.problem.space, point)
        self._study.add_trial(finished_trial(params, self._ranges, values, self._notes))
        self._note()

    def _note(self) -> None:
        """Has the sampler write what it needs, from what was told alone: open asks are lost with the process."""
        if self._generations:
            rng = np.random.default_rng((self.history.seed, 1, len(self.history.points)))
            self._notes = self._asked(rng).system_attrs

    def _asked(self, rng: np.random.Generator) -> FrozenTrial:
        """What a fresh sampler makes of the study."""
        with quiet():
            return asked(self._study, self._sampler(int(rng.integers(2**31))), self._ranges)


def level_ranges(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Levels of the axes that have a choice, as a sampler sees them: half a level of room beyond the first and last."""
    return {
        axis.key: FloatDistribution(-0.5, int(size) - 0.5) if ordered else CategoricalDistribution(range(int(size)))
        for axis, size, ordered in zip(space.axes, space.sizes, space.ordered, strict=True)
        if size > 1
    }


def parameters_at(space: SearchSpace, levels: IntArray) -> dict[str, float | int]:
    """A point as parameters in these ranges."""
    chosen = zip(space.axes, levels.tolist(), space.sizes, space.ordered, strict=True)
    return {axis.key: float(level) if ordered else level for axis, level, size, ordered in chosen if size > 1}


def levels_at(space: SearchSpace, params: Mapping[str, Any]) -> IntArray:
    """The point nearest to parameters in these ranges."""
    levels = np.array([round(params.get(axis.key, 0)) for axis in space.axes], dtype=np.int64)
    return np.clip(levels, 0, space.sizes - 1)


def tpe(problem: Problem, seed: int) -> OptunaSearcher:
    """Tree-structured Parzen estimators over all decisions at once (Bergstra et al. 2011), ten random trials first."""
    return OptunaSearcher(problem, seed, tpe_sampler, name="tpe")


def gp(problem: Problem, seed: int) -> OptunaSearcher:
    """A Gaussian process and the expected improvement, ten random trials first.

    Exact, so an ask grows dear: 0.3 s with 27 decisions and 100 told policies, 2 s with 110, 18 s with 110 and 400.
    """

    def sampler(draw: int) -> BaseSampler:
        return _GP(seed=draw, n_startup_trials=STARTUP)

    return OptunaSearcher(problem, seed, sampler, name="gp")


def cmaes(problem: Problem, seed: int) -> OptunaSearcher:
    """CMA-ES (Hansen and Ostermeier 2001) over ordered decisions; Optuna draws those without an order at random.

    Told policies, projected ones and others' among them, count as its own samples (injection, Hansen 2011). Separable
    (Ros and Hansen 2008): a few hundred trials do not teach the covariances of a hundred decisions.
    """
    choices = problem.space.sizes[problem.space.ordered] > 1

    def sampler(draw: int) -> BaseSampler:
        return _CmaEs(seed=draw, use_separable_cma=bool(choices.sum() > 1), warn_independent_sampling=False)

    return OptunaSearcher(problem, seed, sampler, name="cmaes", generations=True)


def nsga2(problem: Problem, seed: int) -> OptunaSearcher:
    """NSGA-II (Deb et al. 2002) on the score and every limited cost; it may stay below the budget to widen the
    front."""
    return _genetic(problem, seed, "nsga2", lambda draw: _NSGAII(population_size=POPULATION, seed=draw))


def nsga3(problem: Problem, seed: int) -> OptunaSearcher:
    """NSGA-III (Deb and Jain 2014): as `nsga2`, the front spread along reference directions."""
    return _genetic(problem, seed, "nsga3", lambda draw: _NSGAIII(population_size=POPULATION, seed=draw))


def _genetic(problem: Problem, seed: int, name: str, sampler: SamplerFactory) -> OptunaSearcher:
    costs = tuple(problem.projector.limits)
    return OptunaSearcher(problem, seed, sampler, name=name, costs=costs, fill=False, generations=True)


def tpe_sampler(seed: int) -> TPESampler:
    """The TPE every searcher here uses."""
    with quiet():
        return _TPE(seed=seed, multivariate=True, n_startup_trials=STARTUP, constant_liar=False)


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


class _GP(_WholeSpace, GPSampler):
    """A Gaussian process over the whole space."""


class _NSGAII(_WholeSpace, NSGAIISampler):
    """NSGA-II over the whole space."""


class _NSGAIII(_WholeSpace, NSGAIIISampler):
    """NSGA-III over the whole space."""


class _CmaEs(_WholeSpace, CmaEsSampler):
    """CMA-ES over what has an order."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The last trial's parameters, categories left out."""
        ranges = super().infer_relative_search_space(study, trial)
        return {name: r for name, r in ranges.items() if isinstance(r, FloatDistribution)}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Optuna adds the trial's number to the seed; here that would tell how often was asked before a resume."""
        trial = copy.copy(trial)
        trial.number = 0
        return super().sample_relative(study, trial, search_space)


def memory_study(objectives: int) -> optuna.Study:
    """An in-memory study: the score is maximised, costs are minimised."""
    with quiet():
        directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * (objectives - 1)]
        return optuna.create_study(directions=directions, sampler=RandomSampler(seed=0))


def asked(study: optuna.Study, sampler: BaseSampler, ranges: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial as a sampler suggests it for a study; it is closed at once and never counts."""
    study.sampler = sampler
    with quiet():
        return study.tell(study.ask(ranges), state=TrialState.FAIL)


def finished_trial(
    params: Mapping[str, Any],
    ranges: dict[str, BaseDistribution],
    values: Sequence[float] | None,
    notes: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A told trial, failed without values, with a sampler's own notes."""
    if values is None:
        return create_trial(state=TrialState.FAIL, params=dict(params), distributions=ranges)
    attributes = dict(notes or {})
    return create_trial(params=dict(params), distributions=ranges, values=list(values), system_attrs=attributes)
