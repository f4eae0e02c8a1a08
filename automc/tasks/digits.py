"""The embedded default task: scikit-learn's 1,797 handwritten digits and a residual network trained on the spot.

The network is a ResNet-14 for 8x8 images in one grey channel, trained for a few seconds on one thread, so that the
result does not depend on the number of cores. Weights are cached as safetensors under $XDG_CACHE_HOME/automc
(~/.cache/automc), with a digest inside: a cache file that is broken or was changed is trained anew.
"""

import hashlib
from dataclasses import astuple, dataclass
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from automc.task import Task
from automc.tasks.augment import shifts
from automc.tasks.resnet import ResNet
from automc.tasks.trained import cached, one_thread

TRAIN, VALIDATION = 897, 450  # and 450 test images
BATCH = 150
MEAN, DEVIATION = 0.305, 0.376  # of the training images, pixels in [0, 1]
DEPTH, WIDTHS = 14, (16, 32, 64)


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained and how; the cache's file name is made of it."""

    version: int = 1
    """Raised when this file changes what the same settings give."""
    depth: int = DEPTH
    widths: tuple[int, int, int] = WIDTHS
    seed: int = 0
    epochs: int = 60
    batch: int = 64
    peak_rate: float = 0.2
    """Highest learning rate of the one-cycle schedule."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.05
    """Label smoothing."""


Split = tuple[Tensor, Tensor]
"""Normalised images (N, 1, 8, 8) and labels (N,)."""

factory = partial(ResNet, DEPTH, widths=WIDTHS, channels_in=1)


def digits() -> Task:
    """The task, trained on first use."""
    train, validation, test = splits()
    model = factory()
    model.load_state_dict(weights(Training()))
    return Task(
        model.eval(),
        calibration=_batches(train),
        validation=_batches(validation),
        train=_batches(train),
        test=_batches(test),
        name="digits",
        augment=shifts,
        factory=factory,
    )


def splits() -> tuple[Split, Split, Split]:
    """Train, validation and test images: always the same ones."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1).div(16).sub(MEAN).div(DEVIATION)
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, validation, test = order.tensor_split((TRAIN, TRAIN + VALIDATION))
    return (images[train], labels[train]), (images[validation], labels[validation]), (images[test], labels[test])


def weights(training: Training) -> dict[str, Tensor]:
    """The trained state dict, from the cache or trained now."""
    key = hashlib.sha256(repr(astuple(training)).encode()).hexdigest()[:12]
    return cached(f"digits-{key}", lambda: train_network(training))


def train_network(training: Training) -> dict[str, Tensor]:
    """Trains the network; same settings, same weights, and no trace in the global random state."""
    images, labels = splits()[0]
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]), one_thread(), torch.enable_grad():
        torch.manual_seed(training.seed)
        model = factory().train()
        _fit(model, images, labels, training, generator)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _fit(model: ResNet, images: Tensor, labels: Tensor, training: Training, generator: torch.Generator) -> None:
    steps = len(labels) // training.batch  # an epoch
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.peak_rate,
        momentum=training.momentum,
        nesterov=True,
        weight_decay=training.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.peak_rate, total_steps=steps * training.epochs)
    for _ in range(training.epochs):
        order = torch.randperm(len(labels), generator=generator)
        for chosen in torch.split(order[: steps * training.batch], training.batch):
            scores = model(_shift(images[chosen], generator))
            loss = F.cross_entropy(scores, labels[chosen], label_smoothing=training.smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by up to one pixel each way, the border filled with paper."""
    down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
    padded = F.pad(images, (1, 1, 1, 1), value=-MEAN / DEVIATION)
    return padded[:, :, down : down + 8, right : right + 8]


def _batches(split: Split) -> list[Split]:
    images, labels = split
    return list(zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True))
