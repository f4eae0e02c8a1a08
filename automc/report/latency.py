"""How long two modules take: medians and quartiles of runs taken in turn, each module in its fastest form.

Taking turns makes a slow moment of the machine hit both. A speed-up over a slow way to run the dense model would
flatter, so every module is timed in all its forms (`automc.deployment`), and its best one counts.
"""

import contextlib
import statistics
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from automc.compression.compress import channels_last
from automc.deployment.forms import Inputs, forms
from automc.graph.runs import copies

_BATCHES = (1, 32, 128)
_ROUNDS, _LEAST, _SECONDS = 15, 5, 5.0
"""Rounds a batch size gets, and how many at least where they take longer than so many seconds."""


@torch.no_grad()
def compare(
    modules: Mapping[str, nn.Module],
    example: Inputs,
    batches: tuple[int, ...] = _BATCHES,
    *,
    by_torch: Collection[str] = ("dense",),
) -> dict[str, Any]:
    """Seconds per batch of each module, by batch size, with the form that was fastest and the threads used.

    by_torch: modules that only torch's own kernels count for.
    """
    measured: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "rounds": f"{_LEAST} to {_ROUNDS}",
        "unit": "seconds",
    }
    for size in batches:
        inputs = batch(example, size)
        made = {
            f"{name}/{form}": found
            for name, module in modules.items()
            for form, found in forms(module, inputs, kernels=name not in by_torch).items()
        }
        times = _times(made, inputs)
        measured[f"batch_{size}"] = {name: _best(name, times) for name in modules}
    return measured


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batch(example: Inputs, size: int) -> Inputs:
    """`size` samples, repeated from the example."""
    return tuple(torch.cat([x] * -(-size // len(x)))[:size] for x in example)


def given_to(form: str, inputs: Inputs) -> Inputs:
    """Inputs as a form takes them without work of its own."""
    return tuple(map(channels_last, inputs)) if "channels last" in form else inputs


def _times(made: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, list[float]]:
    inputs_of = {name: given_to(name, inputs) for name in made}
    times: dict[str, list[float]] = {name: [] for name in made}
    begin = time.perf_counter()
    for turn in range(_ROUNDS + 2):
        if turn >= _LEAST + 2 and time.perf_counter() - begin > _SECONDS:
            break
        for name, module in made.items():
            given = copies(inputs_of[name])  # a model may change them
            start = time.perf_counter()
            module(*given)
            if turn >= 2:  # the first runs pay for allocation and primitives
                times[name].append(time.perf_counter() - start)
    return times


def _best(name: str, times: Mapping[str, list[float]]) -> dict[str, Any]:
    own = {
        full.partition("/")[2]: statistics.quantiles(x, n=4) for full, x in times.items() if full.startswith(f"{name}/")
    }
    form = min(own, key=lambda f: own[f][1])
    low, median, high = own[form]
    return {"median": median, "quartiles": [low, high], "form": form}
