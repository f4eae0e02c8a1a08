"""A search without a model: scores come from a table, policies from a seeded draw."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import GroupDecision, LayerDecision, Policy
from automc.searcher import Problem
from automc.space import Axis
from automc.study import Study

GROUPS, FINGERPRINT = ("stem", "body.0", "body.1"), "f" * 64
KEEP = tuple(round(0.05 * i, 2) for i in range(2, 21))
AXES = (
    *(Axis(g, "group", "keep", KEEP) for g in GROUPS),
    *(Axis(g, "group", "criterion", ("l1", "obs")) for g in GROUPS),
    *(Axis(g, "layer", "weight_bits", (2, 4, 8, 32)) for g in GROUPS),
)
LIMITS = {"macs": 700.0, "size": 3000.0}


def meta(**changes: Any) -> dict[str, Any]:
    return {
        "fingerprint": FINGERPRINT,
        "task": "lab",
        "budget": "macs<=70%,size<=75%",
        "limits": LIMITS,
        "recipe": {"seed": 0},
        "dense": {"score": 0.99, "costs": {"macs": 1000.0, "size": 4000.0}},
    } | changes


def study(path: Path | str, name: str = "lab", *, shared: bool = False, **changes: Any) -> Study:
    return Study.create(path, name, meta(**changes), AXES, shared=shared)


def draw(rng: np.random.Generator) -> Policy:
    groups = tuple((g, GroupDecision(float(rng.choice(KEEP[:12])), str(rng.choice(("l1", "obs"))))) for g in GROUPS)
    layers = tuple((g, LayerDecision(int(rng.choice((2, 4, 8, 32))))) for g in GROUPS)
    return Policy(FINGERPRINT, groups, layers)


def lookup(policy: Policy) -> Evaluation:
    """A score and costs that depend on nothing but the policy."""
    digest = hashlib.sha256(json.dumps(policy.to_dict(), sort_keys=True).encode()).digest()
    keep = sum(d.keep for _, d in policy.groups) / len(GROUPS)
    bits = sum(d.weight_bits for _, d in policy.layers) / 32 / len(GROUPS)
    score = 0.5 * keep + 0.3 * bits + 0.2 * digest[0] / 255
    return Evaluation(policy, "ok", score, (("macs", 1000 * keep), ("size", 4000 * keep * bits)), seconds=0.01)


def written(path: Path, trials: int = 6) -> bytes:
    """A journal with so many trials, as it lies there."""
    made, rng = study(path), np.random.default_rng(1)
    for _ in range(trials):
        made.record(lookup(draw(rng)))
    return path.read_bytes()


def pruned(evaluation: Evaluation, score: float | None = None) -> Evaluation:
    """As a race leaves it that stopped at the first of two looks."""
    found = evaluation.score if score is None else score
    assert found is not None
    return replace(
        evaluation, state="pruned", score=found, metric=0.5, share=0.05, stages=((256, found),), reason="Stopped."
    )


def problem() -> Problem:
    return cast(Problem, SimpleNamespace(projector=SimpleNamespace(limits=LIMITS)))


class Draws:
    """The smallest searcher that keeps the contract: its draw depends on the seed and on what it was told."""

    proposer = "draws"

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.told = seed, 0
        self.best = 0.0

    def ask(self) -> Policy:
        return draw(np.random.default_rng([self.seed, self.told, int(1e6 * self.best)]))

    def tell(self, evaluation: Evaluation) -> None:
        self.told += 1
        self.best = max(self.best, evaluation.score or 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}


def contents(evaluations: tuple[Evaluation, ...]) -> list[tuple[Any, ...]]:
    """Everything about evaluations that a resumed search must repeat."""
    return [(e.number, e.policy, e.state, e.score, e.costs, e.proposer) for e in evaluations]
