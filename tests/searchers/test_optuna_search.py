"""Optuna's samplers as searchers: what they see, what survives a resume, what they leave alone."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.registry import SEARCHERS
from automc.searcher import Problem
from automc.searchers.optuna_search import (
    POPULATION,
    STARTUP,
    OptunaSearcher,
    level_ranges,
    levels_at,
    parameters_at,
    tpe_sampler,
)
from automc.space import Axis, SearchSpace
from tests.searchers import table

SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "nsga3")


def made(name: str, problem: Problem, seed: int = 0) -> OptunaSearcher:
    found = SEARCHERS.load(name)(problem, seed)
    assert isinstance(found, OptunaSearcher)
    return found


def test_points_survive_as_parameters_and_every_level_has_a_stretch_of_the_same_length() -> None:
    space = table.problem("joint").space
    rng, ranges, widest = np.random.default_rng(0), level_ranges(space), int(space.sizes.argmax())
    for point in [space.smallest, space.largest, *(space.sample(rng) for _ in range(20))]:
        assert np.array_equal(levels_at(space, parameters_at(space, point)), point)
    stretch = ranges[space.axes[widest].key]
    assert isinstance(stretch, FloatDistribution)
    drawn = rng.uniform(stretch.low, stretch.high, 3000)
    levels = [levels_at(space, {space.axes[widest].key: x})[widest] for x in drawn]
    counts = np.bincount(levels, minlength=int(space.sizes[widest]))
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()


def test_axes_without_a_choice_are_no_parameters() -> None:
    groups = table.facts(8).groups
    axes = (Axis(groups[0].name, "group", "keep", (1.0,)), Axis(groups[1].name, "group", "keep", (0.5, 1.0)))
    space = SearchSpace(table.facts(8), axes)
    assert list(level_ranges(space)) == [axes[1].key]
    assert levels_at(space, parameters_at(space, np.array([0, 1]))).tolist() == [0, 1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resume_in_any_generation_goes_on_alike_whatever_was_asked_before(name: str) -> None:
    """Through two generations, those of NSGA-III until its selection draws lots.

    The uninterrupted search has open asks that a resumed one never had.
    """
    problem = table.problem("joint", "macs<=60%,size<=40%,params<=80%", depth=8)
    evaluate, whole = table.lookup(problem, noise=0.002), made(name, problem)
    trials = {"gp": STARTUP + 4, "nsga3": 6 * POPULATION}.get(name, 2 * POPULATION + 12)
    told: list[Evaluation] = []
    for number in range(trials):
        asked = [whole.ask() for _ in range(1 + number % 3)]
        found = evaluate(asked[0])
        told.append(found if number % 7 else replace(found, state="failed", score=None))
        whole.tell(told[-1])
        whole.history.asked = 0  # the others were lost
        if number in (3, trials // 2, trials - 1):
            again = made(name, problem)
            for evaluation in told:
                again.tell(evaluation)
            assert np.array_equal(again.suggest(np.random.default_rng(5)), whole.suggest(np.random.default_rng(5)))


def generations(searcher: OptunaSearcher) -> list[int]:
    """Of the told trials, as the sampler counts them."""
    trials = searcher._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [next((v for k, v in t.system_attrs.items() if k.endswith("generation")), 0) for t in trials]


@pytest.mark.parametrize("name", ["cmaes", "nsga2", "nsga3"])
def test_generations_follow_each_other(name: str) -> None:
    problem = table.problem("channels")
    searcher = made(name, problem)
    table.search(searcher, table.lookup(problem), 2 * POPULATION + 3)
    found = generations(searcher)
    assert found == sorted(found)
    assert found[-1] >= 2


@pytest.mark.parametrize("name", ["cmaes", "nsga2", "nsga3", "tpe"])
def test_a_sampler_moves_to_where_scores_are_better(name: str) -> None:
    """The score is the share of levels in the first half of the axes; a projection onto macs makes room for it."""
    problem = table.problem("channels", depth=32)
    half = len(problem.space.axes) // 2

    def evaluate(policy: Policy) -> Evaluation:
        point = problem.space.encode(policy)
        score = float((point / problem.space.largest)[:half].mean())
        return Evaluation(policy, "ok", score, tuple(problem.projector.costing.of(point).items()))

    told = table.search(made(name, problem), evaluate, 160)
    scores = [e.score for e in told if e.score is not None]
    assert np.mean(scores[-60:]) > np.mean(scores[:20]) + 0.04  # three deviations of random search


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_a_genetic_algorithm_minimises_every_limited_cost(name: str) -> None:
    problem = table.problem("joint", "macs<=60%,size<=40%")
    searcher = made(name, problem)
    found = table.search(searcher, table.lookup(problem), 3)
    directions = [d.name for d in searcher._study.directions]
    assert directions == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    trials = searcher._study.get_trials(states=(TrialState.COMPLETE,))
    assert [t.values for t in trials] == [[e.score, e.cost("macs"), e.cost("size")] for e in found]


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_global_state_is_touched(name: str) -> None:
    problem = table.problem("criteria", depth=8)
    searcher = made(name, problem)
    before = torch.get_rng_state(), str(np.random.get_state()), torch.get_num_threads(), optuna.logging.get_verbosity()
    table.search(searcher, table.lookup(problem), STARTUP + 3)
    after = torch.get_rng_state(), str(np.random.get_state()), torch.get_num_threads(), optuna.logging.get_verbosity()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_failed_policy_is_no_trial_a_model_is_fitted_to() -> None:
    problem = table.problem("channels")
    searcher = made("cmaes", problem)
    found = table.lookup(problem)(searcher.ask())
    for evaluation in (replace(found, state="failed", score=None), replace(found, score=float("nan")), found):
        searcher.tell(evaluation)
    trials = searcher._study.get_trials(states=(TrialState.COMPLETE,))
    assert [t.value for t in trials] == [found.score]


def test_cmaes_leaves_words_to_chance_and_shares_to_the_distribution() -> None:
    problem = table.problem("criteria")
    searcher = made("cmaes", problem)
    table.search(searcher, table.lookup(problem), 60)
    ordered = problem.space.ordered
    points = np.array([searcher.suggest(np.random.default_rng(seed)) for seed in range(60)])
    spread = (points / np.maximum(problem.space.sizes - 1, 1)).std(axis=0)
    assert spread[ordered].mean() < 0.2 < 0.3 < spread[~ordered].mean()  # uniform over four words: 0.37


def test_a_sampler_of_ones_own_is_a_searcher() -> None:
    problem = table.problem("channels")
    searcher = OptunaSearcher(problem, 0, lambda draw: optuna.samplers.QMCSampler(seed=draw), name="sobol")
    found = table.search(searcher, table.lookup(problem), 5)
    assert {e.proposer for e in found} == {"sobol"}
    assert tpe_sampler(0)._multivariate
