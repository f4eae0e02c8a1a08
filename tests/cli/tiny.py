"""A task and a searcher that take no time: a small convolutional net on random images, and projected draws."""

from typing import Any

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.searcher import Problem

TASK = """
import torch
from torch import nn

import automc


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )


def task(seed=0):
    torch.manual_seed(seed)
    model = net().eval()
    images = torch.randn(64, 3, 8, 8)
    targets = model(images).argmax(dim=1)
    batches = [(images[i:i + 16], targets[i:i + 16]) for i in range(0, 64, 16)]
    return automc.Task(model, calibration=batches[:1], validation=batches[1:3], test=batches[3:], factory=net)


def retrained():
    return task(seed=1)


def broken():
    found = task()
    with torch.no_grad():
        found.model[3].weight[0, 0, 0, 0] = float("nan")
    return found


def many():
    found = task()
    images = torch.randn(600, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    targets = found.model(images).argmax(dim=1)
    return automc.Task(found.model, calibration=found.calibration, validation=[(images, targets)], factory=net)


def own():
    found = task()
    return automc.Task(
        found.model, calibration=found.calibration, validation=[], evaluate=lambda model: 0.5, factory=net
    )


def blind():
    return automc.Task(net(), calibration=task().calibration, validation=[])


def crashing():
    raise KeyError("labels")


def surprising():
    found = task()

    def evaluate(model):
        raise ZeroDivisionError("no samples")

    return automc.Task(found.model, calibration=found.calibration, validation=[], evaluate=evaluate)
"""


class Stub:
    """Draws points from the seed and its own count, and projects them."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed, self.told = problem, seed, 0

    def ask(self) -> Policy:
        space = self.problem.space
        drawn = space.sample(np.random.default_rng([self.seed, self.told]))
        return space.decode(self.problem.projector.project(drawn, fill=True))

    def tell(self, evaluation: Evaluation) -> None:
        self.told += 1

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}
