"""One threshold over all layers, against sorting everything there is by hand."""

import numpy as np
import pytest
import torch

from automc.budget import Budget
from automc.errors import PolicyError
from automc.projection import Projector
from automc.registry import CRITERIA
from automc.search_spaces.channels import channels
from automc.searcher import Problem
from automc.searchers.global_ranking import GlobalSearcher
from automc.space import Axis, SearchSpace
from tests.compression.conftest import Setup

LEVELS = tuple(float(s) for s in np.linspace(0.99, 0.0, 100))


def sparsity_space(setup: Setup, pattern: str = "element") -> SearchSpace:
    axes = [Axis(x.name, "layer", "sparsity", LEVELS) for x in setup.graph.facts.layers]
    if pattern != "element":
        axes += [Axis(x.name, "layer", "pattern", (pattern,)) for x in setup.graph.facts.layers]
    return SearchSpace(setup.graph.facts, tuple(axes))


def problem(setup: Setup, space: SearchSpace, budget: str) -> Problem:
    projector = Projector(space, Budget.parse(budget))
    return Problem(space, projector, 1.0, None, lambda criterion: setup.compressor.thresholds(space, criterion))


def test_global_magnitude_removes_the_smallest_weights_of_the_network(setup: Setup) -> None:
    if setup.task.name == "branches":
        pytest.skip("its file is mostly its header")
    space = sparsity_space(setup)
    policy = GlobalSearcher(problem(setup, space, "size<=60%"), 0, criteria=("l1",)).ask()
    weights = {x.name: setup.task.model.get_submodule(x.name).weight.detach() for x in setup.graph.facts.layers}  # type: ignore[operator]
    shares = {name: policy.layer(name).sparsity for name in weights}
    everything = torch.cat([w.abs().flatten() for w in weights.values()])
    total = sum(shares[name] * w.numel() for name, w in weights.items()) / len(everything)
    threshold = float(everything.quantile(total))
    for name, weight in weights.items():
        assert shares[name] == pytest.approx(float((weight.abs() < threshold).float().mean()), abs=0.035), name


def test_channel_thresholds_are_sums_over_what_makes_and_reads_them(setup: Setup) -> None:
    facts = setup.graph.facts
    group = channels(facts)[0].place
    counts = tuple(n / facts.group(group).units for n in range(1, facts.group(group).units + 1))
    space = SearchSpace(facts, (Axis(group, "group", "keep", counts),))
    found = setup.compressor.thresholds(space, "l1")[0]
    sums = np.zeros(facts.group(group).units)
    for member in facts.group(group).members:
        if member.kind == "layer" and CRITERIA.load("l1").side in ("both", member.axis):
            weight = setup.task.model.get_submodule(member.target).weight.detach().abs()  # type: ignore[operator]
            along = weight.transpose(0, 1) if member.axis == "in" and weight.shape[1] > 1 else weight
            sums += np.array([float(along[i].sum()) for i in member.index[:, 0]])
    if all(m.index.shape[1] == 1 for m in facts.group(group).members):
        assert found[:-1] == pytest.approx(np.sort(sums)[::-1][1:], rel=1e-5)
    assert found[-1] == -np.inf


@pytest.mark.parametrize("criterion", ["l1", "lamp", "activation", "obs", "obd"])
@pytest.mark.parametrize("pattern", ["element", "4x1"])
def test_thresholds_fall_with_the_level(setup: Setup, criterion: str, pattern: str) -> None:
    space = sparsity_space(setup, pattern)
    for axis, cuts in zip(space.axes, setup.compressor.thresholds(space, criterion), strict=True):
        if axis.field == "sparsity":
            assert cuts[-1] == -np.inf and (cuts[1:] <= cuts[:-1]).all() and np.isfinite(cuts[0])
        else:
            assert (cuts == -np.inf).all()


def test_what_a_criterion_cannot_rank_stays_as_dense_as_the_budget_allows(setup: Setup) -> None:
    axes = [Axis(x.name, "layer", "weight_bits", (4, 8, 32)) for x in setup.graph.facts.layers]
    space = SearchSpace(setup.graph.facts, tuple(axes))
    asked = problem(setup, space, "bops<=20%")
    assert all((cuts == -np.inf).all() for cuts in setup.compressor.thresholds(space, "l1"))
    point = space.encode(GlobalSearcher(asked, 0, criteria=("l1",)).ask())
    assert asked.projector.feasible(point) and point.any()


def test_a_problem_without_scores_is_refused(setup: Setup) -> None:
    space = sparsity_space(setup)
    bare = Problem(space, Projector(space, Budget.parse("size<=99%")), 1.0)
    with pytest.raises(PolicyError, match="choose uniform"):
        GlobalSearcher(bare, 0, criteria=("l1",))


def test_lamp_never_empties_a_layer() -> None:
    """A layer's largest weight has score one (Lee et al. 2021, section 3.1), however small its weights are."""
    setup = Setup("mlp")
    with torch.no_grad():
        setup.task.model.get_parameter("3.weight").mul_(1e-4)
    asked, shares = problem(setup, sparsity_space(setup), "size<=40%"), {}
    for criterion in ("l1", "lamp"):
        shares[criterion] = GlobalSearcher(asked, 0, criteria=(criterion,)).ask().layer("3").sparsity
    assert shares["l1"] > 0.95 and shares["lamp"] < 0.9
