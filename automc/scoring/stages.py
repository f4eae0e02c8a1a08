"""Validation samples in stages: random, nested subsets, each sample in one stage.

The order is one random permutation from a seed, so what has been seen after each stage is a simple random sample of
all. A stage holds only its new samples: a candidate that passes every stage runs on each sample once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automc.errors import TaskError
from automc.scoring.forward import Samples
from automc.scoring.racing import LEAST
from automc.task import Batch


@dataclass(frozen=True, eq=False)
class Stage:
    """Samples that are scored together."""

    rows: Tensor
    """Which of all samples these are (n,), rising."""
    samples: Samples


def check_stages(stages: Sequence[int]) -> tuple[int, ...]:
    """The stages as given; TaskError unless they are rising numbers of samples, each enough for a test."""
    found = tuple(stages)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= LEAST for n in found)
    if not whole or any(a >= b for a, b in pairwise(found)):
        raise TaskError(
            f"Stages must be rising numbers of samples, {LEAST} or more; they are {list(found)}: try (256, 1024)."
        )
    return found


def staged(batches: Sequence[Batch], stages: Sequence[int], seed: int, name: str = "") -> tuple[Stage, ...]:
    """The samples of `batches` in stages that end after so many samples; the last one ends with all.

    Numbers that are no smaller than that of all samples are left out; without any, one stage holds the batches as
    they are. `name` tells these samples from others.
    """
    count = sum(len(targets) for _, targets in batches)
    ends = [n for n in stages if n < count]
    if not ends:
        return (Stage(torch.arange(count), Samples(batches, name)),)
    _check_rows(batches)
    order = np.random.default_rng(seed).permutation(count)
    chosen = [torch.from_numpy(np.sort(part)) for part in np.split(order, ends)]
    parts = [Samples(_merged(_taken(batches, rows)), f"{name} {i}") for i, rows in enumerate(chosen)]
    return tuple(Stage(rows, samples) for rows, samples in zip(chosen, parts, strict=True))


def _taken(batches: Sequence[Batch], rows: Tensor) -> Iterator[Batch]:
    """The chosen samples, batch by batch."""
    starts = accumulate((len(targets) for _, targets in batches), initial=0)
    for (inputs, targets), start in zip(batches, starts, strict=False):
        own = rows[(rows >= start) & (rows < start + len(targets))] - start
        if len(own):
            yield tuple(x[own] for x in inputs), targets[own]


def _merged(batches: Iterator[Batch]) -> list[Batch]:
    """Neighbouring batches of the same shapes as one: a handful of samples from each would run slowly."""

    def shapes(batch: Batch) -> list[Any]:
        return [(x.dtype, x.device, x.shape[1:]) for x in (*batch[0], batch[1])]

    return [_joined(list(group)) for _, group in groupby(batches, key=shapes)]


def _joined(group: Sequence[Batch]) -> Batch:
    columns = zip(*(inputs for inputs, _ in group), strict=True)
    return tuple(torch.cat(column) for column in columns), torch.cat([targets for _, targets in group])


def _check_rows(batches: Sequence[Batch]) -> None:
    for inputs, targets in batches:
        if any(len(x) != len(targets) for x in inputs):
            lengths = [len(x) for x in (*inputs, targets)]
            raise TaskError(
                f"Scoring in stages needs inputs and targets of one length; a batch has {lengths}: give no stages."
            )
