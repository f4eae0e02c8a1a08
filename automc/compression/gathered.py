"""What is computed of a dense model before any candidate, as one thing that may leave its process."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from automc.compression.reconstruct import DenseRows
from automc.compression.store import Tensors
from automc.policy import Recipe


@dataclass(frozen=True, eq=False, slots=True)
class Gathered:
    """For a compressor of the same model and data elsewhere; nothing here is written to by anybody."""

    recipe: Recipe
    code: str
    """The traced forward, whose nodes are named by `rows`."""
    tables: Mapping[str, Tensors]
    """Of the layer bank, by key."""
    rows: DenseRows | None

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        for table in self.tables.values():
            yield from table.values()
        for targets in () if self.rows is None else self.rows.targets.values():
            yield from targets.tensors()
