"""A task with enough samples to race on, small enough to search in seconds, compiled or left to torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import automc
from automc.budget import Budget
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.searcher import Problem
from automc.searchers.history import History
from automc.setting import Setting, prepare

SAMPLES = 1500


class Swish(nn.Module):
    """Has no compiled step: torch runs the model, in chunks."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def task(samples: int = SAMPLES, batch: int = 48, activation: type[nn.Module] = nn.ReLU, **changes: Any) -> automc.Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), activation(), nn.Conv2d(8, 12, 3, stride=2), activation(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
        ).eval()  # fmt: skip
        x = torch.randn(samples + 64, 3, 8, 8)
        with torch.no_grad():
            outputs = model(x)
            y = (outputs - outputs.mean(0)).argmax(dim=1)
            model[6].bias -= outputs.mean(0)
    scored = list(zip(x[:samples].split(batch), y[:samples].split(batch), strict=True))
    options: dict[str, Any] = {"metric": "accuracy", "name": "tiny"} | changes
    return automc.Task(model, calibration=[x[samples:]], validation=scored, **options)


def setting(of: automc.Task, stages: Sequence[int] = (), score: str = "metric", budget: str = "macs<=60%") -> Setting:
    return prepare(of, Budget.parse(budget), "channels", score=score, stages=stages, seed=3)


class Blind:
    """Points of any shape, whatever they score: a race has clear losers."""

    proposer = "blind"

    def __init__(self, problem: Problem, seed: int) -> None:
        self.history = History(problem, seed)

    def ask(self) -> Policy:
        rng, problem = self.history.rng(), self.history.problem
        return self.history.propose(problem.projector.project(problem.space.sample(rng), fill=True), rng)

    def tell(self, evaluation: Evaluation) -> None:
        self.history.tell(evaluation)

    def state_dict(self) -> dict[str, Any]:
        return {}


def policies(of: Setting, count: int) -> list[Policy]:
    searcher = Blind(of.problem, 0)
    return [searcher.ask() for _ in range(count)]
