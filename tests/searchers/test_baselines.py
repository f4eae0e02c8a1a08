"""The baselines: random draws are what rejection would leave, uniform is uniform, one threshold ranks all layers."""

from dataclasses import replace

import numpy as np
import pytest

from automc.searcher import Problem
from automc.searchers.baselines import RandomSearcher, UniformSearcher, uniform_point, uniform_points
from automc.searchers.global_ranking import GlobalSearcher
from automc.space import Axis, SearchSpace
from tests.searchers import table


def test_random_draws_look_like_uniform_ones_that_spend_the_budget() -> None:
    """Against rejection sampling, layer by layer: the mean level, and its deviation."""
    problem = table.problem("bits", "size<=40%", depth=8)
    space, limit = problem.space, problem.projector.limits["size"]
    rng = np.random.default_rng(0)
    points = rng.integers(0, space.sizes, (200_000, len(space.axes)))
    cost = np.concatenate([problem.projector.costing.batch(part, ("size",))[:, 0] for part in np.split(points, 20)])
    kept = points[(cost <= limit) & (cost > 0.97 * limit)]
    assert len(kept) > 2000
    searcher = RandomSearcher(problem, 0)
    drawn = np.array([searcher.draw(rng) for _ in range(1500)])
    tops = space.sizes - 1
    assert (drawn / tops).mean(axis=0) == pytest.approx((kept / tops).mean(axis=0), abs=0.05)
    assert (drawn / tops).std(axis=0) == pytest.approx((kept / tops).std(axis=0), abs=0.05)


@pytest.mark.parametrize(
    ("space", "budget"),
    [("criteria", "macs<=50%"), ("channels-bits", "macs<=60%,size<=40%"), ("weight-bits", "size<=18%")],
)
def test_random_proposals_leave_no_room_for_a_single_level(space: str, budget: str) -> None:
    problem = table.problem(space, budget)
    told = table.search(RandomSearcher(problem, 0), table.lookup(problem), 10)
    for evaluation in told:
        point = problem.space.encode(evaluation.policy)
        risen = point + np.eye(len(point), dtype=np.int64)[problem.space.ordered & (point < problem.space.sizes - 1)]
        assert problem.projector.feasible(point)
        assert not problem.projector.fits(risen).any()


def test_random_draws_reach_every_level_of_cheap_axes_and_all_words() -> None:
    problem = table.problem("channels-bits", "macs<=60%,size<=40%", depth=8)
    searcher, rng = RandomSearcher(problem, 0), np.random.default_rng(0)
    drawn = np.array([searcher.draw(rng) for _ in range(400)])
    seen = np.array([len(set(column)) for column in drawn.T])
    free = ~problem.space.ordered
    assert (seen[free] == problem.space.sizes[free]).all()
    assert (seen[~free] >= 0.6 * problem.space.sizes[~free]).all()


def test_where_the_budget_binds_nothing_random_stays_on_top_and_where_it_leaves_nothing_on_the_floor() -> None:
    problem = table.problem("channels", "macs<=100%")
    point = RandomSearcher(problem, 0).draw(np.random.default_rng(0))
    assert np.array_equal(point, problem.space.largest)
    least = problem.projector.costing.of(problem.space.smallest)["macs"]
    tight = table.of_space(problem.space, f"macs<={least:.0f}")
    assert not RandomSearcher(tight, 0).draw(np.random.default_rng(0)).any()


def test_uniform_policies_follow_each_other_down_and_stay_uniform() -> None:
    problem = table.problem("channels", depth=32)
    told = table.search(UniformSearcher(problem, 0), table.lookup(problem), 12)
    points = np.array([problem.space.encode(e.policy) for e in told])
    known = {p.tobytes() for p in uniform_points(problem, problem.projector)}
    assert all(p.tobytes() in known for p in points)
    assert (np.diff([e.cost("macs") for e in told]) < 0).all()
    assert told[5].cost("macs") <= 0.95**5 * problem.projector.limits["macs"] < 1.1 * told[5].cost("macs")


def test_coarse_uniform_policies_are_all_proposed_before_anything_else() -> None:
    """Few levels: a tighter budget often allows the same policy as the one before."""
    groups = table.facts(8).groups
    axes = tuple(Axis(g.name, "group", "keep", (0.25, 0.5, 0.75, 1.0)) for g in groups)
    problem = table.of_space(SearchSpace(table.facts(8), axes), "macs<=90%")
    told = table.search(UniformSearcher(problem, 0), table.lookup(problem), 4)
    shares = [{d.keep for _, d in e.policy.groups} for e in told]
    assert shares[:3] == [{0.75}, {0.5}, {0.25}]
    assert len(shares[3]) > 1


@pytest.mark.parametrize("budget", ["macs<={macs:.0f}", "macs<={macs:.0f},size<=90%,bops<={bops:.0f}"])
def test_a_uniform_policy_that_costs_exactly_the_limit_is_taken(budget: str) -> None:
    problem = table.problem("criteria")
    point = uniform_points(problem, problem.projector)[7]
    costs = problem.projector.costing.of(point)
    exact = table.of_space(problem.space, budget.format(**costs))
    assert np.array_equal(uniform_point(exact, exact.projector), point)


def ranked(scores: list[np.ndarray]) -> Problem:
    """Groups whose units have these scores, rising, with one level a unit kept."""
    groups = [g for g in table.facts(14).groups if not g.coupled][: len(scores)]
    axes = tuple(
        Axis(g.name, "group", "keep", tuple((g.units - len(s) + k) / g.units for k in range(len(s) + 1)))
        for g, s in zip(groups, scores, strict=True)
    )
    space = SearchSpace(table.facts(14), axes)
    # What level k removes at most is the score of the unit that level k + 1 keeps.
    cuts = tuple(np.append(np.sort(s)[::-1], -np.inf) for s in scores)
    return replace(table.of_space(space, "params<=97%"), thresholds=lambda _: cuts)


def test_one_threshold_removes_what_scores_least_wherever_it_is() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.uniform(size=5) for _ in range(3)]
    problem = ranked(scores)
    searcher = GlobalSearcher(problem, 0, criteria=("l1",))
    point = problem.space.encode(searcher.ask())
    kept = np.concatenate([np.sort(s)[len(s) - level :] for s, level in zip(scores, point, strict=True)])
    gone = np.concatenate([np.sort(s)[: len(s) - level] for s, level in zip(scores, point, strict=True)])
    assert problem.projector.feasible(point)
    assert len(gone) > 0
    # Save for units that fit in afterwards, because the one that had to go was a larger one.
    assert (gone[:, None] < kept).mean() > 0.9


def test_each_ranking_is_followed_by_one_at_a_tighter_budget() -> None:
    problem = table.problem("channels", depth=32)
    told = table.search(GlobalSearcher(problem, 0, criteria=("l1", "obs")), table.lookup(problem), 6)
    costs = [e.cost("macs") for e in told]
    assert (np.diff(costs[::2]) < 0).all()
    assert len({e.policy for e in told}) == 6


def test_equal_scores_everywhere_still_meet_the_budget() -> None:
    problem = ranked([np.full(5, 0.5)] * 3)
    point = problem.space.encode(GlobalSearcher(problem, 0, criteria=("l1",)).ask())
    assert problem.projector.feasible(point)
    assert point.any()  # not everything has to go because one threshold is all there is


def test_layers_that_nothing_ranks_give_way_only_where_ranked_ones_do_not_suffice() -> None:
    problem = ranked([np.linspace(0.1, 0.5, 5)] * 3)
    cuts = problem.thresholds("l1") if problem.thresholds else ()
    partly = replace(problem, thresholds=lambda _: (*cuts[:2], np.full(6, -np.inf)))
    point = problem.space.encode(GlobalSearcher(partly, 0, criteria=("l1",)).ask())
    assert point[2] == problem.space.largest[2]
    assert (point[:2] < problem.space.largest[:2]).any()
    hopeless = replace(problem, thresholds=lambda _: tuple(np.full(6, -np.inf) for _ in range(3)))
    assert problem.projector.feasible(problem.space.encode(GlobalSearcher(hopeless, 0, criteria=("l1",)).ask()))


@pytest.mark.parametrize("space", ["depth", "depth-channels", "joint"])
def test_a_uniform_policy_keeps_residual_blocks_while_it_can(space: str) -> None:
    blocks = [a.kind == "block" for a in table.problem(space).space.axes]
    for budget in ("size<=60%", "size<=25%"):
        problem = table.problem(space, budget)
        point = uniform_point(problem, problem.projector)
        assert problem.projector.feasible(point)
        kept = np.where(blocks, problem.space.largest, problem.space.smallest)
        assert point[blocks].all() or not problem.projector.feasible(kept)
