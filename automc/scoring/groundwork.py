"""What an evaluator computes before its first candidate, as one thing that may leave its process."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from automc.compression.gathered import Gathered
from automc.scoring.stages import Stage


@dataclass(frozen=True, eq=False, slots=True)
class Groundwork:
    """For an evaluator of the same task, score and stages elsewhere."""

    gathered: Gathered
    stages: tuple[Stage, ...] | None
    """The validation samples; None where they were not needed yet."""
    dense_outputs: tuple[list[Tensor], ...] | None
    """By stage and chunk; None where candidates are not compared with them."""

    def tensors(self) -> Iterator[Tensor]:
        """Those that nothing writes to; others, such as targets, a task's own metric is given."""
        yield from self.gathered.tensors()
        yield from (stage.samples.known_tiles for stage in self.stages or () if stage.samples.known_tiles is not None)
        for outputs in self.dense_outputs or ():
            yield from outputs
