"""Optuna's own suite on `SearcherSampler`, and what it hands to a real study."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase
from optuna.trial import TrialState

from automc.distributions import distributions, levels_of, parameters
from automc.registry import SEARCHERS
from automc.searchers.baselines import random_searcher
from automc.searchers.rl import AgentSearch, AgentSearcher
from automc.searchers.searcher_sampler import SearcherSampler
from tests.searchers import table


class TestRandomSearcher(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Everything, once: most cases are about parameters outside the space, which reach no searcher."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        problem = table.problem(depth=8)
        return lambda: SearcherSampler(random_searcher(problem, 0), problem, seed=0)


class TestAgent(BasicSamplerTestCase, RelativeSamplerTestCase):
    """The reinforcement-learning agent as an Optuna sampler."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        problem = table.problem("channels", depth=8)
        return lambda: SearcherSampler(AgentSearcher(problem, 0, AgentSearch(warmup=2)), problem, seed=0)


Case = Callable[[Callable[[], BaseSampler]], None]
BASIC, RELATIVE = BasicSamplerTestCase(), RelativeSamplerTestCase()
ASKING: dict[str, Case] = {
    "an objective that gives nan": BASIC.test_nan_objective_value,
    "a parameter that is fixed": BASIC.test_partial_fixed_sampling,
    "parameters that come and go": BASIC.test_conditional_parameter_objective,
    "ranges that move": lambda sampler: BASIC.test_dynamic_range_objective(sampler, 0, 20),
    "one job": lambda sampler: RELATIVE.test_trial_relative_params(1, sampler),
    "two jobs": lambda sampler: RELATIVE.test_trial_relative_params(2, sampler),
}
"""The cases of Optuna's suite in which a study asks the searcher itself, ten times and more without a tell."""


@pytest.mark.parametrize("case", ASKING.values(), ids=list(ASKING))
@pytest.mark.parametrize("name", list(SEARCHERS))
def test_every_searcher_passes_the_cases_that_ask_it(name: str, case: Case) -> None:
    problem = table.problem_for(name, space="channels", depth=8)
    case(lambda: SearcherSampler(SEARCHERS.load(name)(problem, 0), problem, seed=0))


@pytest.mark.parametrize("name", list(SEARCHERS))
def test_a_study_over_the_space_gets_feasible_policies_and_teaches_the_searcher(name: str) -> None:
    problem = table.problem_for(name)
    evaluate = table.lookup(problem)
    searcher = SEARCHERS.load(name)(problem, 0)
    ranges = distributions(problem.space.axes)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=SearcherSampler(searcher, problem, seed=0))
    for number in range(6):
        trial = study.ask(ranges)
        point = levels_of(problem.space.axes, trial.params)
        assert problem.projector.feasible(point)
        if number == 2:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, evaluate(problem.space.decode(point)).score)
    assert len(searcher.history.points) == 6
    assert sum(s != s for s in searcher.history.scores) == 1  # the failed one, as NaN


def test_a_minimising_study_tells_the_searcher_the_negated_value() -> None:
    problem = table.problem()
    searcher = random_searcher(problem, 0)
    study = optuna.create_study(direction="minimize", sampler=SearcherSampler(searcher, problem))
    study.tell(study.ask(distributions(problem.space.axes)), 0.25)
    assert searcher.history.scores == [-0.25]


@pytest.mark.parametrize("name", ["evolution", "dp"])
def test_a_trial_over_a_limit_is_no_example(name: str) -> None:
    problem = table.problem("channels")
    evaluate, space = table.lookup(problem), problem.space
    searcher = SEARCHERS.load(name)(problem, 0)
    study = optuna.create_study(direction="maximize", sampler=SearcherSampler(searcher, problem, seed=0))
    study.enqueue_trial(parameters(space.axes, space.largest))
    ranges = distributions(space.axes)

    def objective(trial: optuna.Trial) -> float:
        levels = levels_of(space.axes, {n: trial._suggest(n, r) for n, r in ranges.items()})
        return float(evaluate(space.decode(levels)).score or 0.0)

    study.optimize(objective, n_trials=12)
    assert study.best_trial.number == 0  # for Optuna, which knows no limits
    assert len(searcher.history.ranked()) == 11 and np.isnan(searcher.history.scores[0])


@pytest.mark.parametrize("name", ["evolution", "dp", "random", "joint"])
def test_a_study_gone_on_with_proposes_what_an_uninterrupted_one_does(name: str) -> None:
    problem = table.problem()
    evaluate, ranges = table.lookup(problem), distributions(problem.space.axes)

    def objective(trial: optuna.Trial) -> float:
        levels = levels_of(problem.space.axes, {n: trial._suggest(n, r) for n, r in ranges.items()})
        return float(evaluate(problem.space.decode(levels)).score or 0.0)

    def run(*lengths: int) -> list[dict[str, Any]]:
        study = optuna.create_study(direction="maximize")
        for length in lengths:
            study.sampler = SearcherSampler(SEARCHERS.load(name)(problem, 0), problem, seed=0)
            study.optimize(objective, n_trials=length)
        return [t.params for t in study.trials]

    assert run(12) == run(6, 6)
