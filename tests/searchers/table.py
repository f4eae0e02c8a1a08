"""Problems whose scores are looked up: a small residual network, additive errors, no forward pass."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from automc.budget import Budget
from automc.episode import BITS, RATIOS
from automc.evaluation import Evaluation
from automc.graph.facts import ModelFacts
from automc.graph.trace import trace_model
from automc.policy import Policy
from automc.projection import Projector
from automc.registry import SPACES
from automc.searcher import Problem, Searcher
from automc.space import Axis, FloatArray, SearchSpace
from automc.tasks.resnet import ResNet

DENSE = 0.95
NEEDS: dict[str, tuple[str, ...]] = {
    "amc": RATIOS,
    "amc-guaranteed": RATIOS,
    "haq": BITS,
    **dict.fromkeys(("amc-budgets", "ddpg", "reinforce", "td3", "sac", "ppo", "joint"), (*RATIOS, *BITS)),
}
"""Fields of which a searcher needs one; what is not named here searches any space."""


WIDELY = ("joint", "amc", "dp", "evolution", "tpe")
"""Searchers of each kind: tried in every setting at once, the others in some, and in all by the slow tests."""


def soon_or_slow(soon: bool, *values: str) -> Any:
    """A test's parameters; of a slow test, unless it is to be run `soon`."""
    return pytest.param(*values, marks=() if soon else pytest.mark.slow)


def serves(name: str, space: SearchSpace) -> bool:
    """Whether a searcher has something to decide in a space."""
    return name not in NEEDS or any(a.field in NEEDS[name] for a in space.axes)


@cache
def facts(depth: int = 14) -> ModelFacts:
    model = ResNet(depth, widths=(8, 16, 32), classes=5).eval()
    return trace_model(model, (torch.zeros(2, 3, 8, 8),), verify=False).facts


def problem(space: str = "criteria", budget: str = "macs<=50%", depth: int = 14) -> Problem:
    return of_space(SearchSpace(facts(depth), SPACES.load(space)(facts(depth))), budget)


def problem_for(name: str, budget: str = "macs<=50%", space: str = "criteria", depth: int = 14) -> Problem:
    """The problem of a space, or that of channels and bits where a searcher would refuse it."""
    usual = problem(space, budget, depth)
    return usual if serves(name, usual.space) else problem("channels-bits", budget, depth)


def both_bits(budget: str, depth: int = 14) -> Problem:
    """Weight and activation bits of every layer; the first is pinned to 8, the last to 8 or more."""
    layers = facts(depth).layers
    pinned: dict[str, tuple[int, ...]] = {layers[0].name: (8,), layers[-1].name: (8, 32)}
    axes = []
    for x in layers:
        axes.append(Axis(x.name, "layer", "weight_bits", pinned.get(x.name, (2, 3, 4, 5, 6, 7, 8, 32))))
        axes.append(Axis(x.name, "layer", "activation_bits", pinned.get(x.name, (4, 5, 6, 7, 8, 32))))
    return of_space(SearchSpace(facts(depth), tuple(axes)), budget)


def of_space(space: SearchSpace, budget: str) -> Problem:
    projector = Projector(space, Budget.parse(budget))
    return Problem(space, projector, DENSE, lambda: calibrated(space), lambda _: thresholds(space))


def calibrated(space: SearchSpace) -> tuple[FloatArray, ...]:
    """What calibration says of the layers: the same curve for all of them."""
    return tuple(np.linspace(1.0, 0.0, n) ** 2 * o for n, o in zip(space.sizes, space.ordered, strict=True))


def thresholds(space: SearchSpace) -> tuple[FloatArray, ...]:
    """What a global ranking sees: the same scores everywhere; nothing of decisions without an order."""
    ranks = zip(space.sizes, space.ordered, strict=True)
    return tuple(np.append(np.linspace(1.0, 0.1, n - 1), -np.inf) if o else np.full(n, -np.inf) for n, o in ranks)


def lookup(of: Problem, seed: int = 0, noise: float = 0.0) -> Callable[[Policy], Evaluation]:
    """Scores additive in the layers, some of which matter ten times more than others; every second criterion hurts."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.uniform(-1.2, 1.2, len(of.space.axes)))
    errors = [
        w * e if o else 0.1 * rng.uniform(size=len(e))
        for w, e, o in zip(weights, calibrated(of.space), of.space.ordered, strict=True)
    ]

    def evaluate(policy: Policy) -> Evaluation:
        point = of.space.encode(policy)
        lost = sum(float(e[level]) for e, level in zip(errors, point, strict=True))
        jitter = noise * np.random.default_rng(point).standard_normal()
        costs = tuple(of.projector.costing.of(point).items())
        return Evaluation(policy, "ok", DENSE - 0.02 * lost + jitter, costs)

    return evaluate


def search(searcher: Searcher, evaluate: Callable[[Policy], Evaluation], trials: int) -> list[Evaluation]:
    """The loop without a record."""
    told = []
    for _ in range(trials):
        policy = searcher.ask()
        found = evaluate(policy)
        named = Evaluation(
            policy, found.state, found.score, found.costs, proposer=str(getattr(searcher, "proposer", ""))
        )
        searcher.tell(named)
        told.append(named)
    return told


def best(told: list[Evaluation]) -> float:
    return max(e.score for e in told if e.score is not None)
