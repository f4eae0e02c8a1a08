"""A task with enough samples to race on, small enough to search in seconds, compiled or left to torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import automc
from automc.api import Setting, prepare
from automc.budget import Budget
from automc.policy import Policy
from automc.searchers.history import History

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


def policies(of: Setting, count: int) -> list[Policy]:
    """Some that fill the budget, no two alike: good ones and bad ones, compressed alike in all layers or not."""
    history = History(of.problem, 0)
    drawn = []
    for _ in range(count):
        rng = history.rng()
        drawn.append(history.propose(of.problem.projector.project(of.problem.space.sample(rng), fill=True), rng))
    return drawn
