"""Everything registered keeps its contract; the packs themselves can fail."""

import numpy as np
import pytest
import torch

from automc.budget import Budget
from automc.criteria.criterion import Criterion
from automc.errors import SpaceError
from automc.evaluation import Evaluation
from automc.graph.trace import trace_model
from automc.policy import Policy
from automc.projection import Projector
from automc.registry import AGENTS, COSTS, CRITERIA, SEARCHERS, SPACES
from automc.searcher import Problem
from automc.space import Axis, SearchSpace
from automc.tasks.resnet import ResNet
from automc.testing import check_agent, check_cost, check_criterion, check_searcher, check_space
from tests.searchers import table
from tests.searchers.table import serves
from tests.spaces import models


@pytest.fixture(scope="module")
def facts():
    model = ResNet(14, widths=(8, 16, 32), classes=5).eval()
    return trace_model(model, (torch.zeros(2, 3, 8, 8),), verify=False).facts


def problem_of(facts, name: str, budget: str) -> Problem:
    space = SearchSpace(facts, SPACES.load(name)(facts))
    errors = tuple(np.linspace(1.0, 0.0, n) ** 2 * o for n, o in zip(space.sizes, space.ordered, strict=True))
    return Problem(
        space,
        Projector(space, Budget.parse(budget)),
        0.9,
        lambda: errors,
        lambda _: tuple(np.where(o, e, -np.inf) for e, o in zip(errors, space.ordered, strict=True)),
    )


@pytest.mark.parametrize("name", list(CRITERIA))
def test_criterion_keeps_its_contract(name):
    check_criterion(CRITERIA.load(name))


@pytest.mark.parametrize("name", list(COSTS))
def test_cost_keeps_its_contract(name, facts):
    axes = {a.key: a for space in ("joint", "channels-all", "codebooks") for a in SPACES.load(space)(facts)}
    check_cost(COSTS.load(name), SearchSpace(facts, tuple(axes.values())))


@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize("net", ["resnet", "wide", "transformer"])
def test_space_keeps_its_contract(name, net, facts):
    """Presets are registered as well."""
    nets = {"resnet": facts, "wide": models.wide(), "transformer": models.facts_of("transformer")}
    check_space(SPACES.load(name), nets[net])


@pytest.mark.parametrize("name", list(AGENTS))
def test_agent_keeps_its_contract(name):
    check_agent(AGENTS.load(name))


SETTINGS = (
    ("criteria", "macs<=50%"),
    ("channels-bits", "macs<=60%,size<=40%"),
    ("joint", "bops<=10%,macs<=60%,size<=40%"),
)


@pytest.mark.parametrize(
    ("name", "space", "budget"),
    [
        table.soon_or_slow(name in table.WIDELY or i % len(SETTINGS) == j, name, *SETTINGS[j])
        for i, name in enumerate(SEARCHERS)
        for j in range(len(SETTINGS))
    ],
)
def test_searcher_keeps_its_contract(name, space, budget, facts):
    problem = problem_of(facts, space, budget)
    if serves(name, problem.space):
        check_searcher(SEARCHERS.load(name), problem)


def test_a_pack_finds_a_broken_criterion():
    with pytest.raises(AssertionError, match="must not be negative"):
        check_criterion(Criterion("broken", lambda view: view.weight))
    with pytest.raises(AssertionError, match="scores for"):
        check_criterion(Criterion("broken", lambda view: view.weight.flatten(1).sum(dim=1)))


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ((Axis("conv1", "layer", "weight_bits", (32, 8)),), "cheapest first"),
        ((Axis("conv1", "layer", "sparsity", (0.0, 0.5)),), "cheapest first"),
        ((Axis("conv1", "layer", "weight_bits", (4, 8)),), "top level must be dense"),
        ((Axis("linear", "layer", "weight_bits", (8, 32), ("conv1",)),), "forward order"),
        ((Axis("conv1", "layer", "criterion", ("l1", "l1")),), "each once"),
    ],
)
def test_a_pack_finds_a_broken_space(axes, said, facts):
    with pytest.raises((AssertionError, SpaceError), match=said):
        check_space(lambda facts: axes, facts)


def test_a_pack_finds_a_searcher_that_ignores_the_budget(facts):
    class Dense:
        def __init__(self, problem: Problem, seed: int) -> None:
            self.space = problem.space

        def ask(self) -> Policy:
            return self.space.decode(self.space.largest)

        def tell(self, evaluation: Evaluation) -> None: ...

        def state_dict(self) -> dict[str, object]:
            return {}

    with pytest.raises(AssertionError, match="must meet the budget"):
        check_searcher(Dense, problem_of(facts, "criteria", "macs<=50%"))
