"""What a layer should give at sampled positions, as rows or as tiles of samples, whichever a pass asks for."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.kernels.tiles import lanes

IntArray = NDArray[np.int64]
PositionArray = NDArray[np.int32]


class Targets:
    """The dense model's values at sampled positions of one layer's output.

    They are held once, in the form last asked for: most policies of a search go the same way.
    """

    def __init__(self, positions: Tensor, rows: Tensor) -> None:
        self.positions = positions
        """Flat indices (rows,) into an output (samples, *positions), sorted."""
        self._rows: Tensor | None = rows
        self._tiles: Tensor | None = None
        self._order: Tensor | None = None
        """Of the rows, so that those of one position follow one another by lane."""
        self._places: PositionArray | None = None

    def tensors(self) -> Iterator[Tensor]:
        """What it holds now; another form is made of it, never written over it."""
        yield from (x for x in (self.positions, self._rows, self._tiles, self._order) if x is not None)

    def rows(self, outputs: IntArray) -> Tensor:
        """Values of some channels (rows, channels), in the order of the positions."""
        if self._rows is None:
            assert self._tiles is not None and self._order is not None
            by_lane = self._tiles.transpose(1, 2).flatten(0, 1)
            self._rows = torch.empty_like(by_lane)
            self._rows[self._order] = by_lane
            self._tiles = None
        return self._rows if len(outputs) == self._rows.shape[1] else self._rows[:, outputs]

    def tiles(self, outputs: IntArray, height: int, width: int) -> tuple[PositionArray, Tensor]:
        """Tile, row and column (S, 3) of an output (samples, height, width), and values (S, channels, lanes) there.

        Only of positions drawn for whole groups of samples (`calibration.sampled_positions`).
        """
        if self._tiles is not None and self._tiles.shape[2] != lanes():  # made where vectors are longer or shorter
            self.rows(np.arange(self._tiles.shape[1]))
            self._order = self._places = None
        if self._order is None or self._places is None:
            self._order, self._places = _by_tile(self.positions, height, width)
        if self._tiles is None:
            assert self._rows is not None
            arranged = self._rows[self._order].reshape(len(self._places), lanes(), -1)
            self._tiles, self._rows = arranged.transpose(1, 2).contiguous(), None
        chosen = self._tiles if len(outputs) == self._tiles.shape[1] else self._tiles[:, outputs]
        return self._places, chosen


def _by_tile(positions: Tensor, height: int, width: int) -> tuple[Tensor, PositionArray]:
    area, size = height * width, lanes()
    sample, at = positions // area, positions % area
    order = ((sample // size * area + at) * size + sample % size).argsort()
    first = order[::size]
    found = torch.stack((sample[first] // size, at[first] // width, at[first] % width), dim=1)
    return order, found.numpy().astype(np.int32)
