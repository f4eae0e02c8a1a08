"""First and second moments of what a layer reads and what it should give, straight from tiles of samples.

A least-squares fit needs X^T X and X^T Y; forming X, nine times its input for a 3x3 kernel, costs more than all else. A
row is one sample at one output position; a position is drawn for a whole tile.
"""

import ctypes
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.kernels.tiles import Window, kernels, lanes, together

FloatArray = NDArray[np.float64]
PARTS = 4
"""Rows are summed in so many parts, whatever the number of threads, so that a sum is always the same."""


class _Reading(ctypes.Structure):
    """As in tiles.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("height", "width", "channels", "wanted")),
        *((name, ctypes.c_int * 2) for name in ("kernel", "stride", "padding", "dilation")),
    ]


@dataclass(frozen=True, eq=False, slots=True)
class ColumnMoments:
    """Of all columns: the inputs, in a weight's own order, and then the outputs."""

    mean: Tensor
    """(columns,), float64"""
    centred: Tensor
    """(columns, columns), of the deviations from the mean; divided by the rows."""


def column_moments(tiles: Tensor, window: Window, positions: NDArray[np.int32], wanted: Tensor) -> ColumnMoments:
    """Moments over all samples of the tiles at positions.

    tiles (tiles, height, width, channels, lanes); positions (positions, 3): tile, row and column of an output; wanted
    (positions, outputs, lanes).
    """
    tiles, wanted, places = tiles.contiguous(), wanted.contiguous(), np.ascontiguousarray(positions, dtype=np.int32)
    job = _Job(tiles, window, places, wanted)
    near, _ = job.sums(np.zeros(job.padded, dtype=np.float32), 0, min(4, len(places)), products=False)
    # In 16 bits, so that zeros, of which there are many, become a number that 16 bits hold (see tiles.c).
    shift = torch.from_numpy(near / (min(4, len(places)) * lanes())).to(torch.bfloat16).to(torch.float32).numpy()
    bounds = np.linspace(0, len(places), PARTS + 1).astype(int).tolist()
    found = together(lambda part: job.sums(shift, *part), list(itertools.pairwise(bounds)))
    rows = len(places) * lanes()
    sums, products = found[0]
    for more_sums, more_products in found[1:]:
        sums += more_sums
        products += more_products
    first = torch.from_numpy(sums[: job.columns] / rows)
    second = torch.from_numpy(products[: job.columns, : job.columns]).div_(rows).addr_(first, first, alpha=-1.0)
    return ColumnMoments(first + torch.from_numpy(shift[: job.columns]), second.triu() + second.triu(1).T)


def channel_moments(tiles: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (channels,), float64, over all positions of the first `samples` samples."""
    whole, left = divmod(samples, lanes())
    near = tiles[0].mean(dim=(0, 1, 3)).contiguous()  # without it, squares would round away a small variance
    bounds = np.linspace(0, whole, PARTS + 1).astype(int).tolist()
    found = together(lambda part: _spread(tiles[part[0] : part[1]], near), list(itertools.pairwise(bounds)))
    if left:
        rest = (tiles[whole, ..., :left] - near[:, None]).double()
        found.append((rest.sum(dim=(0, 1, 3)), rest.square().sum(dim=(0, 1, 3))))
    count = samples * tiles.shape[1] * tiles.shape[2]
    mean, square = (torch.stack(column).sum(dim=0) / count for column in zip(*found, strict=True))
    return near + mean, (square - mean.square()).clamp_min(0)


def _spread(tiles: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and sums of squares (channels,), float64, `near` subtracted."""
    tiles, channels = tiles.contiguous(), len(near)
    sums, squares = torch.zeros(2, channels, dtype=torch.float64)
    scratch = torch.empty(2 * channels * lanes())
    positions = ctypes.c_size_t(math.prod(tiles.shape[:3]))
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (near, sums, squares, scratch)]
    kernels().tiles_spread(ctypes.c_void_p(tiles.data_ptr()), positions, channels, *pointers)
    return sums, squares


class _Job:
    """What all parts of one computation have in common."""

    def __init__(self, tiles: Tensor, window: Window, places: NDArray[np.int32], wanted: Tensor) -> None:
        self._tiles, self._places, self._wanted = tiles, places, wanted
        self._reading = _Reading(*tiles.shape[1:4], wanted.shape[1], *window.as_c())
        self.columns = tiles.shape[3] * window.kernel[0] * window.kernel[1] + wanted.shape[1]
        self.padded = int(kernels().tiles_columns(self.columns))

    def sums(
        self, shift: NDArray[np.float32], start: int, stop: int, *, products: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Sums (padded,) and sums of products (padded, padded) of some positions, `shift` subtracted first."""
        sums, both = np.zeros(self.padded), np.zeros((self.padded, self.padded) if products else 0)
        scratch = torch.zeros(int(kernels().tiles_moments_floats(self.columns)))
        kernels().tiles_moments(
            ctypes.byref(self._reading),
            ctypes.c_void_p(self._tiles.data_ptr()),
            ctypes.c_void_p(self._wanted[start:].data_ptr()),
            ctypes.c_void_p(shift.ctypes.data),
            ctypes.c_void_p(self._places[start:].ctypes.data),
            stop - start,
            ctypes.c_void_p(sums.ctypes.data),
            ctypes.c_void_p(both.ctypes.data if products else None),
            ctypes.c_void_p(scratch.data_ptr()),
        )
        return sums, both
