"""A study and a saved model as a version of automc wrote them: `python -m tests.faults.files.stored` adds this one's.

The net and its images are made of fractions that every machine computes alike, so that the fingerprint is the same.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

import automc
from automc.study import Study
from automc.task import Task

FOLDER = Path(__file__).parent / "stored"
TRIALS = 4


class Pool(nn.Module):
    """The mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def net() -> nn.Module:
    """A small convolutional net."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(), Pool(), nn.Linear(12, 5)
    )


def fractions(*shape: int, step: int) -> Tensor:
    """Multiples of 1/32 without an order that one sees."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * step) % 61 - 30).to(torch.float32).div(32).reshape(shape)


def task() -> Task:
    """The net with the labels that it gives itself."""
    model = net().eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(fractions(*parameter.shape, step=37 + 2 * number) / 4)
    images = fractions(48, 3, 4, 4, step=17)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    batches = [(images[i : i + 16], labels[i : i + 16]) for i in range(0, 48, 16)]
    return Task(model, calibration=batches[:2], validation=batches[1:], name="stored", factory=net)


def search(where: Path, trials: int) -> Study:
    """What is stored, begun or gone on with."""
    budget, space = "macs<=60%", "channels-bits"
    return automc.search(task(), budget=budget, space=space, searcher="random", trials=trials, storage=where)


def write(folder: Path) -> None:
    """A study and its best model."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    study = search(folder / "study.journal", TRIALS)
    (folder / ".study.journal.owner").unlink()
    automc.save(automc.apply(task(), study.best.policy), folder / "model", report={"reference": "stored"})


if __name__ == "__main__":
    write(FOLDER / automc.__version__)
