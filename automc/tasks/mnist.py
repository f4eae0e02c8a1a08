"""MNIST with LeNet-300-100 and LeNet-5: the tasks `mnist-lenet300` and `mnist-lenet5`, trained on first use.

Images are `data/mnist/mnist.npz` (x_train, y_train, x_test, y_test, uint8) under the folder named by AUTOMC_DATA: the
first 55,000 training images train and calibrate, the last 5,000 validate, the 10,000 test images are the report's.
LeNet-5 is the one that Caffe made common (20 and 50 channels, 500 hidden units, 431 thousand parameters), which Han et
al. 2016 compress; with ReLU behind its convolutions, where Caffe's has none.
"""

import hashlib
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import TaskError
from automc.task import Task
from automc.tasks.cifar10 import data_folder
from automc.tasks.trained import State, cached, one_thread

TRAIN = 55_000
BATCH = 500
MEAN, DEVIATION = 0.1307, 0.3081  # of the training images, pixels in [0, 1]
Split = tuple[Tensor, Tensor]
"""Normalised images (N, 1, 28, 28) and labels (N,)."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a network is trained; the cache's file name is made of it."""

    version: int = 1
    """Raised when this file changes what the same settings give."""
    seed: int = 0
    epochs: int = 20
    batch: int = 128
    rate: float = 1e-3
    """Adam's, falling to zero along a cosine."""


def lenet300() -> nn.Module:
    """LeNet-300-100: 784-300-100-10, ReLU between; 266,610 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet5() -> nn.Module:
    """LeNet-5 as in Caffe: 431,080 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def mnist_lenet300() -> Task:
    """LeNet-300-100 on MNIST."""
    return task("mnist-lenet300", lenet300, Training())


def mnist_lenet5() -> Task:
    """LeNet-5 on MNIST."""
    return task("mnist-lenet5", lenet5, Training())


def task(name: str, factory: Callable[[], nn.Module], training: Training) -> Task:
    """A network on MNIST, trained as said."""
    train, validation, test = splits()
    key = hashlib.sha256(repr(astuple(training)).encode()).hexdigest()[:12]
    model = factory()
    model.load_state_dict(cached(f"{name}-{key}", lambda: train_network(factory, training, train)))
    return Task(
        model.eval(),
        calibration=_batches(train)[:10],
        validation=_batches(validation),
        train=_batches(train),
        test=_batches(test),
        name=name,
        factory=factory,
    )


@cache
def splits() -> tuple[Split, Split, Split]:
    """Train, validation and test images."""
    path = data_folder() / "data/mnist/mnist.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(
            f"The mnist tasks need data/mnist/mnist.npz with x_train, y_train, x_test, y_test; {path} cannot be read: "
            "put it there, or set AUTOMC_DATA to the folder that holds it."
        ) from error
    images, labels = _split(arrays["x_train"], arrays["y_train"])
    return (
        (images[:TRAIN], labels[:TRAIN]),
        (images[TRAIN:], labels[TRAIN:]),
        _split(arrays["x_test"], arrays["y_test"]),
    )


def train_network(factory: Callable[[], nn.Module], training: Training, train: Split) -> State:
    """Trains a network; same settings, same weights, and no trace in the global random state."""
    images, labels = train
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]), one_thread(), torch.enable_grad():
        torch.manual_seed(training.seed)
        model = factory().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=training.rate)
        steps = len(labels) // training.batch
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * training.epochs)
        for _ in range(training.epochs):
            order = torch.randperm(len(labels), generator=generator)
            for chosen in torch.split(order[: steps * training.batch], training.batch):
                loss = F.cross_entropy(model(images[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                decay.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _split(pixels: np.ndarray, labels: np.ndarray) -> Split:
    images = torch.from_numpy(pixels).to(torch.float32).unsqueeze(1).div_(255).sub_(MEAN).div_(DEVIATION)
    return images, torch.from_numpy(labels.astype(np.int64))


def _batches(split: Split) -> list[Split]:
    images, labels = split
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))  # type: ignore[no-untyped-call]
