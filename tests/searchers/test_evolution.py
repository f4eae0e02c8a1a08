"""EvoPress: budget moves from one place to another, the best is the parent, the model picks among offspring."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from automc.scoring.screen import ENOUGH
from automc.scoring.surrogate import AdditiveModel
from automc.searchers.baselines import uniform_point
from automc.searchers.evolution import RISES, STEPS, SWITCHES, EvolutionSearcher, children
from automc.space import IntArray
from tests.searchers import table


@pytest.mark.parametrize(
    ("space", "budget"),
    [("criteria", "macs<=50%"), ("weight-bits", "size<=20%"), ("channels-bits", "macs<=60%,size<=40%")],
)
def test_children_give_up_in_a_few_places_and_take_elsewhere(space: str, budget: str) -> None:
    problem = table.problem(space, budget)
    parent = problem.projector.project(problem.space.sample(np.random.default_rng(1)), fill=True)
    found = children(problem.space, problem.projector, parent, 200, np.random.default_rng(0))
    ordered, sizes = problem.space.ordered, problem.space.sizes
    assert problem.projector.fits(found).all()
    lowered, raised = (found < parent)[:, ordered], (found > parent)[:, ordered]
    assert lowered.sum(axis=1).max() == SWITCHES
    assert ordered.sum() < len(ordered) or lowered.any(axis=1).all()  # where no words are drawn instead
    assert 0 < raised.sum(axis=1).max() <= RISES
    steps = np.abs(found - parent)[:, ordered]
    assert (steps <= np.maximum(sizes // STEPS, 1)[ordered]).all()
    assert steps.max() == max(sizes[ordered].max() // STEPS, 1)
    assert (~ordered).sum() == 0 or (found != parent)[:, ~ordered].any()
    changed = lowered.sum(axis=1) + (found != parent)[:, ~ordered].sum(axis=1)
    assert (changed <= SWITCHES).all()
    assert (changed <= 1).mean() > 0.4  # the lesser of two draws: five ninths, more where a word was drawn again


def test_the_uniform_policy_is_the_first_parent_and_the_best_told_the_next() -> None:
    problem = table.problem("channels", depth=32)
    searcher, evaluate = EvolutionSearcher(problem, 0), table.lookup(problem)
    first = searcher.ask()
    assert np.array_equal(problem.space.encode(first), uniform_point(problem, problem.projector))
    searcher.tell(replace(evaluate(first), score=0.5))
    point = problem.projector.project(problem.space.sample(np.random.default_rng(0)), fill=True)
    searcher.tell(replace(evaluate(problem.space.decode(point)), score=0.6, proposer="somebody"))
    searcher.tell(replace(evaluate(problem.space.decode(point - (point > 0))), score=0.4, proposer="somebody"))
    found = [problem.space.encode(searcher.ask()) for _ in range(20)]
    assert len({c.tobytes() for c in found}) == 20
    near = [np.abs(c - point).sum() < np.abs(c - problem.space.encode(first)).sum() for c in found]
    assert all(near)


def test_a_child_keeps_most_of_its_parent_and_spends_the_budget() -> None:
    problem = table.problem("channels", depth=32)
    parent = problem.projector.project(problem.space.sample(np.random.default_rng(1)), fill=True)
    for child in children(problem.space, problem.projector, parent, 20, np.random.default_rng(0)):
        filled = problem.projector.project(child, fill=True)
        cost = problem.projector.costing.of(filled)["macs"]
        assert cost > 0.97 * problem.projector.limits["macs"]
        assert np.abs(filled - parent).mean() < 0.15 * problem.space.sizes.mean()


def test_the_model_picks_a_child_that_was_not_proposed_and_scores_well() -> None:
    problem = table.problem("channels", depth=32)
    evaluate, rng = table.lookup(problem), np.random.default_rng(0)
    searcher = EvolutionSearcher(problem, 0)
    table.search(searcher, evaluate, 60)
    parent = searcher.history.points[searcher.history.ranked()[0]]
    told, limits = searcher.history, problem.projector
    filled = [limits.project(c, fill=True) for c in children(problem.space, limits, parent, 64, rng)]
    scores = np.array([evaluate(problem.space.decode(child)).score for child in filled])

    def picked() -> IntArray:
        rng = np.random.default_rng(5)
        return searcher._offspring.child(parent, limits, told.points, told.scores, rng)

    first = picked()
    assert np.array_equal(limits.project(first, fill=True), first)
    assert (scores > float(evaluate(problem.space.decode(first)).score or 0)).sum() < 12
    told._seen.add(problem.space.plain(first).tobytes())
    second = picked()
    assert not told.seen(second) and not np.array_equal(first, second)


def test_nothing_is_predicted_from_a_few_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = table.problem()
    searcher, known, of = EvolutionSearcher(problem, 0), [], AdditiveModel.of

    def noted(*arguments: Any) -> AdditiveModel:
        known.append(len(arguments[3]))
        return of(*arguments)

    monkeypatch.setattr(AdditiveModel, "of", noted)
    table.search(searcher, table.lookup(problem), ENOUGH + 3)
    assert known == [ENOUGH, ENOUGH + 1, ENOUGH + 2]


def test_selection_among_offspring_finds_more_than_single_children() -> None:
    problem = table.problem("channels", depth=32)

    def mean(offspring: int) -> float:
        evaluate = table.lookup(problem, noise=0.001)
        searchers = (EvolutionSearcher(problem, seed, offspring=offspring) for seed in range(3))
        return float(np.mean([table.best(table.search(searcher, evaluate, 50)) for searcher in searchers]))

    assert mean(64) > mean(1) + 0.005


def test_it_works_without_layer_errors() -> None:
    problem = replace(table.problem(), errors=None)
    assert len(table.search(EvolutionSearcher(problem, 0), table.lookup(problem), ENOUGH + 4)) == ENOUGH + 4
