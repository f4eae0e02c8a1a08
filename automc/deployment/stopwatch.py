"""How long layers and whole models take: by a user's own measure, or here."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from automc.deployment.deploy import deploy
from automc.deployment.probes import passage
from automc.deployment.probes import ways as ways_of
from automc.deployment.timing import in_turns
from automc.graph.runs import copies, of_size, with_threads
from automc.task import Inputs

Measure: TypeAlias = Callable[[nn.Module, Inputs], float]
"""Seconds of one pass of a module, on whatever device."""
Way: TypeAlias = Callable[[], object]
ROUNDS, TURN, SECONDS = 15, 1e-3, 15.0
"""Of each comparison: rounds, seconds of each way in a round, and seconds after which rounds end."""
RUNS, LONG = 2, 1e-2
"""Of a whole model in a round: runs at least, and seconds. Models in use are run one time after the other, and it takes
some runs until nothing is left in the caches of what ran before."""
RUN = 16
"""Single samples that a plan takes one after another when it is timed: a call costs as much as a small layer."""
LEAST = 0.1
"""Share of what a layer takes alone that remains of it in a plan, at least."""
ONE_PLAN = "one plan"


@dataclass(frozen=True, eq=False, slots=True)
class Stopwatch:
    """What layers of a dense model take, and whole models beside it."""

    measure: Measure | None
    form: str
    """The fastest of the dense model; none by a user's measure."""
    dense: float
    """Seconds of the dense model in it."""
    way: Way | None
    """To run that. Whole models are timed in turn with it, and count relative to it: within the minutes that a table
    takes, what else a machine has to do changes."""
    noises: list[float]
    """Of everything that was timed: half the distance of the quartiles, relative to the median."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, inputs: Inputs, measure: Measure | None = None) -> "Stopwatch":
        """For what may become of a dense model."""
        if measure is not None:
            return cls(measure, "", measure(model, inputs), None, [])
        (way, form), noises = _fastest(model, inputs), list[float]()
        return cls(None, form, _medians([way], noises, LONG, RUNS)[0], way, noises)

    def layers(self, probes: Sequence[tuple[nn.Module, Tensor]]) -> list[float]:
        """Seconds of layers, each on its input, timed in turn; of a plan, without what reading and handing over takes
        a layer alone."""
        if self.measure is not None:
            return [self.measure(layer, (x,)) for layer, x in probes]
        if self._planned and len(probes[0][1]) == 1:
            with with_threads(1):
                return [took / RUN for took in self._alone([(layer, of_size((x,), RUN)[0]) for layer, x in probes])]
        return self._alone(probes)

    def model(self, module: nn.Module, inputs: Inputs) -> float:
        """Seconds of a whole model in its fastest form."""
        if self.measure is not None:
            return self.measure(module, inputs)
        assert self.way is not None  # it is here that things are timed
        took, dense = _medians([_fastest(module, inputs)[0], self.way], self.noises, LONG, RUNS)
        return took * self.dense / dense

    @property
    def _planned(self) -> bool:
        """Whether whole models run as one plan."""
        return self.form == ONE_PLAN

    def _alone(self, probes: Sequence[tuple[nn.Module, Tensor]]) -> list[float]:
        runs = [list(ways_of(layer, x, planned=self._planned)) for layer, x in probes]
        values = [(x, layer(x)) for layer, x in probes] if self._planned else []
        distinct = {y.shape: y for pair in values for y in pair}
        passages = {shape: way for shape, y in distinct.items() if (way := passage(y)) is not None}
        found = iter(_medians([way for own in runs for way in own] + list(passages.values()), self.noises, TURN))
        alone = [min(next(found) for _ in own) for own in runs]
        if not passages:
            return alone
        around = dict(zip(passages, found, strict=True))
        sides = [sum(around.get(y.shape, 0.0) for y in pair) / 2 for pair in values]
        return [max(took - side, LEAST * took) for took, side in zip(alone, sides, strict=True)]


@torch.no_grad()
def seconds(module: nn.Module, inputs: Inputs) -> float:
    """Of one pass of a module in its fastest form."""
    return Stopwatch.of(module, inputs).dense


def _fastest(module: nn.Module, inputs: Inputs) -> tuple[Way, str]:
    """To run a model in its fastest form, and which that is."""
    found = deploy(module, inputs)
    return partial(found.module, *copies(inputs)), found.form


def _medians(ways: Sequence[Way], noises: list[float], turn: float, runs: int = 1) -> list[float]:
    """Of the seconds that each takes; so many seconds in a round, and so many runs at least."""
    found = []
    for took in in_turns(ways, ROUNDS, turn, SECONDS, runs=runs):
        low, median, high = statistics.quantiles(took, n=4) if len(took) > 1 else took * 3
        noises.append((high - low) / (2 * median))
        found.append(median)
    return found
