"""How long two modules take: medians and quartiles of a few runs at a time, taken in turn, each in its fastest form.

Taking turns makes a slow moment of the machine hit both. A speed-up over a slow way to run the dense model would
flatter, so every module is tried in all its forms (`automc.deployment`), and its best one counts.
"""

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from automc.compression.compress import channels_last
from automc.deployment.forms import forms
from automc.deployment.timing import in_turns, seconds_of
from automc.graph.runs import copies, of_size
from automc.task import Inputs

_BATCHES = (1, 32, 128)
_ROUNDS, _LEAST, _SECONDS = 15, 5, 5.0
"""Rounds a batch size gets, and how many at least where they take longer than so many seconds."""
_RUNS, _TURN = 2, 1e-2
"""How often each runs in a round at least, one time after the other, as a model in use is run, and for how long."""


@dataclass(frozen=True, eq=False, slots=True)
class Fastest:
    """A module in its fastest form, and how long it took."""

    form: str
    module: nn.Module
    quartiles: tuple[float, float, float]
    """Seconds a batch."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        low, median, high = self.quartiles
        return {"median": median, "quartiles": [low, high], "form": self.form}


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
        inputs = of_size(example, size)
        made = {name: forms(module, inputs, kernels=name not in by_torch) for name, module in modules.items()}
        measured[f"batch_{size}"] = {name: found.to_dict() for name, found in fastest(made, inputs).items()}
    return measured


@torch.no_grad()
def fastest(made: Mapping[str, Mapping[str, nn.Module]], inputs: Inputs) -> dict[str, Fastest]:
    """By name, its fastest form; these are then timed in turn, a form that several have once."""
    every = {id(module): (form, module) for own in made.values() for form, module in own.items()}
    short = dict(zip(every, seconds_of(_ways(every.values(), inputs)), strict=True))
    best = {name: min(own, key=lambda form: short[id(own[form])]) for name, own in made.items()}
    chosen = {id(made[name][form]): (form, made[name][form]) for name, form in best.items()}
    timed = in_turns(_ways(chosen.values(), inputs), _ROUNDS, _TURN, _SECONDS, runs=_RUNS, least=_LEAST)
    quartiles = {key: _quartiles(own) for key, own in zip(chosen, timed, strict=True)}
    return {name: Fastest(form, made[name][form], quartiles[id(made[name][form])]) for name, form in best.items()}


def given_to(form: str, inputs: Inputs) -> Inputs:
    """Inputs as a form takes them without work of its own."""
    return tuple(map(channels_last, inputs)) if "channels last" in form else inputs


def _ways(made: Iterable[tuple[str, nn.Module]], inputs: Inputs) -> list[Callable[[], object]]:
    """To run modules in their forms."""
    return [partial(module, *copies(given_to(form, inputs))) for form, module in made]


def _quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(seconds, n=4)
    return low, median, high
