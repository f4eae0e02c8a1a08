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

from automc.kernels.steps import Window
from automc.kernels.threads import threads, together
from automc.kernels.tiles import kernels, lanes

FloatArray = NDArray[np.float64]
NEAR = 4
"""Positions that tell what is near each column's mean."""
NOISE = 1e-6
"""Variance, as a share of the mean square about the shift, that rounding may make of inputs that do not vary."""
PARTS = 4
"""Tiles are summed in so many parts, whatever the number of threads, so that a sum is always the same."""


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
    places = np.ascontiguousarray(positions, dtype=np.int32)
    job = _Job(tiles.contiguous(), window, places, wanted.contiguous())
    near = job.sums(np.zeros(job.padded, dtype=np.float32), min(NEAR, len(places)))
    # In 16 bits, so that zeros, of which there are many, become a number that 16 bits hold (see tiles.c).
    shift = torch.from_numpy(near / (min(NEAR, len(places)) * lanes())).to(torch.bfloat16).to(torch.float32).numpy()
    products = torch.zeros(job.padded, job.padded, dtype=torch.float64)
    first, *_ = together(lambda band: job.sums(shift, len(places), band, products), job.bands(threads()))
    rows = len(places) * lanes()
    mean = torch.from_numpy(first[: job.columns] / rows)
    second = products[: job.columns, : job.columns].div_(rows)
    noise = NOISE * second.diagonal().clone()
    second.addr_(mean, mean, alpha=-1.0)
    varies = second.diagonal() > noise  # what is left of the others is rounding, of any sign
    second *= varies[:, None] & varies
    return ColumnMoments(mean + torch.from_numpy(shift[: job.columns]), second.triu() + second.triu(1).T)


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
        self,
        shift: NDArray[np.float32],
        count: int,
        band: tuple[int, int] = (0, 0),
        products: Tensor | None = None,
    ) -> FloatArray:
        """Sums (padded,) at the first positions, `shift` subtracted first; adds a band of rows to the products."""
        found = np.zeros(self.padded)
        scratch = torch.zeros(int(kernels().tiles_moments_floats(self.columns)))
        kernels().tiles_moments(
            ctypes.byref(self._reading),
            ctypes.c_void_p(self._tiles.data_ptr()),
            ctypes.c_void_p(self._wanted.data_ptr()),
            ctypes.c_void_p(shift.ctypes.data),
            ctypes.c_void_p(self._places.ctypes.data),
            count,
            ctypes.c_void_p(found.ctypes.data),
            *band,
            ctypes.c_void_p(None if products is None else products.data_ptr()),
            ctypes.c_void_p(scratch.data_ptr()),
        )
        return found

    def bands(self, count: int) -> list[tuple[int, int]]:
        """Rows of the upper triangle in bands of about the same area."""
        side = int(kernels().tiles_side())
        ends = self.padded * (1.0 - np.sqrt(1.0 - np.arange(1, count) / count))
        cuts = [0, *(round(float(end) / side) * side for end in ends), self.padded]
        return [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
