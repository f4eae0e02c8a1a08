"""What the dense model does on calibration data: rows of layer inputs at sampled positions, and their moments.

A refit is a regression over (sample, position) rows. Neighbouring positions say nearly the same, so a random set
of positions per layer stands for all of them; dense outputs are kept at exactly the same positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import GraphError
from automc.graph.holders import TRANSPOSED

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
GROUP, GROUPED = 16, 256
"""Samples whose rows are drawn together, and how many samples there must be for that."""


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """First and second moment of a layer's inputs, per conv-group, over sampled rows."""

    centred: Tensor
    """Covariance (groups, n, n), n = in / groups * kernel area, in the weight's own order."""
    mean: Tensor
    """(groups, n)"""
    active: Tensor
    """Share of rows where an input is not zero (groups, n)."""

    @property
    def gram(self) -> Tensor:
        """X^T X / rows (groups, n, n)."""
        return self.centred + self.mean[:, :, None] * self.mean[:, None, :]

    def of_groups(self, groups: Tensor) -> "Moments":
        """Those of some conv-groups only."""
        return Moments(self.centred[groups], self.mean[groups], self.active[groups])


@dataclass(frozen=True, eq=False, slots=True)
class Spread:
    """Mean and variance of each channel (channels,), float64."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, chunks: Sequence[Tensor]) -> "Spread":
        """Of values (samples, channels, *positions)."""
        dims = [d for d in range(chunks[0].dim()) if d != 1]
        count = sum(x.numel() // x.shape[1] for x in chunks)
        mean = torch.stack([x.sum(dim=dims, dtype=torch.float64) for x in chunks]).sum(dim=0) / count
        square = torch.stack([x.square().sum(dim=dims, dtype=torch.float64) for x in chunks]).sum(dim=0) / count
        return cls(mean, (square - mean.square()).clamp_min(0))

    def of_channels(self, channels: Tensor) -> "Spread":
        """Those of some channels only."""
        return Spread(self.mean[channels], self.variance[channels])


def refittable(module: nn.Module) -> bool:
    """Whether rows of this layer's inputs can be formed: linear layers and convolutions, not transposed ones."""
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def sampled_positions(output: tuple[int, ...], rows: int, generator: torch.Generator) -> Tensor:
    """Up to `rows` positions, sorted, of an output with this (samples, *positions) shape, as flat indices.

    Of `GROUPED` samples and more, whole groups of `GROUP` successive ones are taken at the same position, and an
    incomplete last group is left out; who goes through tiles of samples can then read them as they lie.
    """
    samples, area = output[0], prod(output[1:])
    size = GROUP if samples >= GROUPED else 1
    places = samples // size * area  # of whole groups
    count = max(1, rows // size)
    chosen = torch.arange(places) if places <= count else torch.randperm(places, generator=generator)[:count]
    first = chosen // area * size * area + chosen % area
    return (first[:, None] + torch.arange(size) * area).flatten().sort().values


def input_rows(module: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """What a layer multiplies at sampled positions (groups, rows, n); x is the layer's whole input.

    Positions are the output's. Of a transposed convolution they are the input's: there it multiplies each input with
    its whole kernel, as a linear layer with as many outputs as places of the kernel would.
    """
    if isinstance(module, TRANSPOSED):
        return x.movedim(1, -1).reshape(-1, x.shape[1])[positions][None]
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])[positions][None]
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return _patches(module, x, positions)
    raise GraphError(f"Only linear and convolution layers have input rows; got {type(module).__name__}: skip it.")


def output_shape(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    """(samples, *positions) of a layer's output for input x; of a transposed convolution of its input."""
    if isinstance(module, TRANSPOSED):
        return (x.shape[0], *x.shape[2:])
    if isinstance(module, nn.Linear):
        return tuple(x.shape[:-1])
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    sizes = zip(x.shape[2:], module.kernel_size, module.stride, module.dilation, padding(module), strict=True)
    return (x.shape[0], *((s + sum(p) - d * (k - 1) - 1) // t + 1 for s, k, t, d, p in sizes))


def output_rows(y: Tensor, positions: Tensor, *, channels_last: bool) -> Tensor:
    """Entries of an output (samples, channels, *positions) at sampled positions (rows, channels)."""
    if channels_last or y.dim() == 2:
        return y.reshape(-1, y.shape[-1])[positions]
    return y.movedim(1, -1).reshape(-1, y.shape[1])[positions]


def gather_inputs(layer: nn.Module, chunks: Sequence[Tensor], positions: Tensor) -> Tensor:
    """A layer's input rows (groups, rows, n) at sampled positions of all chunks together."""
    parts = _by_chunk(positions, [output_shape(layer, x) for x in chunks])
    return torch.cat([input_rows(layer, x, part) for x, part in zip(chunks, parts, strict=True)], dim=1)


def gather_outputs(chunks: Sequence[Tensor], positions: Tensor, *, channels_last: bool) -> Tensor:
    """Output entries (rows, channels) at sampled positions of all chunks together."""
    shapes = [y.shape[:-1] if channels_last else (y.shape[0], *y.shape[2:]) for y in chunks]
    parts = _by_chunk(positions, shapes)
    return torch.cat([output_rows(y, part, channels_last=channels_last) for y, part in zip(chunks, parts, strict=True)])


def moments(rows: Tensor) -> Moments:
    """Moments of input rows (groups, rows, n), accumulated in float32 blocks and kept in float64.

    The mean leaves before squares are summed: inputs that hardly vary would lose their variance to rounding.
    """
    mean = rows.mean(dim=1, dtype=torch.float64)
    around = rows - mean[:, None].to(rows.dtype)
    blocks = around.split(8192, dim=1)  # type: ignore[no-untyped-call]
    covariance = torch.stack([(b.transpose(1, 2) @ b).to(torch.float64) for b in blocks]).sum(dim=0)
    active = (rows != 0).to(torch.float64).mean(dim=1)
    return Moments(covariance / rows.shape[1], mean, active)


@contextmanager
def watched(model: nn.Module, names: tuple[str, ...], see: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """While open, `see(name, layer, input)` is called before each named layer runs."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        return lambda module, args, options: see(name, module, args[0] if args else options["input"])

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_chunk(positions: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Sorted positions of the whole, as positions within each chunk of these (samples, *positions) shapes."""
    ends = torch.tensor([prod(shape) for shape in shapes]).cumsum(0)
    cuts = torch.searchsorted(positions, ends).tolist()
    starts = [0, *ends[:-1].tolist()]
    return [positions[a:b] - start for a, b, start in zip([0, *cuts[:-1]], cuts, starts, strict=True)]


def padding(module: Conv) -> list[tuple[int, int]]:
    """Entries added before and after each dimension; of an odd sum "same" adds the larger half behind."""
    if module.padding == "same":
        sums = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in sums]
    sides = (0,) * len(module.kernel_size) if isinstance(module.padding, str) else module.padding
    return [(side, side) for side in sides]


def _patches(module: Conv, x: Tensor, positions: Tensor) -> Tensor:
    """Gathers only the sampled patches (groups, rows, channels / groups * kernel area), in any number of dimensions."""
    sides = [side for pair in reversed(padding(module)) for side in pair]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = (F.pad(x, sides, mode=mode) if any(sides) else x).movedim(1, -1).contiguous()
    _, *sizes, channels = padded.shape
    pitches = [prod(sizes[i + 1 :]) for i in range(len(sizes))]
    out = output_shape(module, x)[1:]
    corner = positions.div(prod(out), rounding_mode="floor") * prod(sizes)  # (rows,)
    taps = torch.zeros(1, dtype=torch.int64)
    for i, pitch in enumerate(pitches):
        along = positions.div(prod(out[i + 1 :]), rounding_mode="floor") % out[i]
        corner = corner + along * module.stride[i] * pitch
        steps = torch.arange(module.kernel_size[i]) * module.dilation[i] * pitch
        taps = (taps[:, None] + steps).flatten()
    index = (corner[:, None] + taps).flatten()
    groups = module.groups
    gathered = padded.view(-1, channels).index_select(0, index)
    split = gathered.view(len(positions), len(taps), groups, channels // groups)
    columns = channels // groups * len(taps)
    return split.permute(2, 0, 3, 1).reshape(groups, len(positions), columns)  # of no positions as well
