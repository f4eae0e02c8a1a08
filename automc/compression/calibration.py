"""What the dense model does on calibration data: rows of layer inputs at sampled positions, and their moments.

A refit is a regression over (sample, position) rows. Neighbouring positions say nearly the same, so a random set
of positions per layer stands for all of them; dense outputs are kept at exactly the same positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.errors import GraphError

Conv = nn.Conv1d | nn.Conv2d


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """First and second moment of a layer's inputs, per conv-group, over sampled rows."""

    gram: Tensor
    """X^T X / rows (groups, n, n), n = in / groups * kernel area, in the weight's own order."""
    mean: Tensor
    """(groups, n)"""
    active: Tensor
    """Share of rows where an input is not zero (groups, n)."""

    @property
    def centred(self) -> Tensor:
        """Covariance (groups, n, n)."""
        return self.gram - self.mean[:, :, None] * self.mean[:, None, :]

    def of_groups(self, groups: Tensor) -> "Moments":
        """Those of some conv-groups only."""
        return Moments(self.gram[groups], self.mean[groups], self.active[groups])


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
    """Whether rows of this layer's inputs can be formed: linear, and 1-d or 2-d convolutions with zero padding."""
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.padding_mode == "zeros"


def sampled_positions(output: tuple[int, ...], rows: int, generator: torch.Generator) -> Tensor:
    """Up to `rows` positions, sorted, of an output with this (samples, *positions) shape, as flat indices."""
    total = int(torch.tensor(output).prod())
    if total <= rows:
        return torch.arange(total)
    return torch.randint(total, (rows,), generator=generator).sort().values


def input_rows(module: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """What a layer multiplies at sampled output positions (groups, rows, n); x is the layer's whole input."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])[positions][None]
    if isinstance(module, nn.Conv1d):
        return _patches(
            x[:, :, None],
            positions,
            (1, *module.kernel_size),
            (1, *module.stride),
            (1, *module.dilation),
            (0, *_padding(module)),
            module.groups,
        )
    if isinstance(module, nn.Conv2d):
        return _patches(
            x, positions, module.kernel_size, module.stride, module.dilation, _padding(module), module.groups
        )
    raise GraphError(
        f"Only linear and 1-d or 2-d convolution layers have input rows; got {type(module).__name__}: skip it."
    )


def output_shape(module: nn.Module, x: Tensor) -> tuple[int, ...]:
    """(samples, *positions) of a layer's output for input x."""
    if isinstance(module, nn.Linear):
        return tuple(x.shape[:-1])
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    sizes = zip(x.shape[2:], module.kernel_size, module.stride, module.dilation, _padding(module), strict=True)
    return (x.shape[0], *((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, d, p in sizes))


def output_rows(y: Tensor, positions: Tensor, *, channels_last: bool) -> Tensor:
    """Entries of an output (samples, channels, *positions) at sampled positions (rows, channels)."""
    if channels_last or y.dim() == 2:
        return y.reshape(-1, y.shape[-1])[positions]
    return y.movedim(1, -1).reshape(-1, y.shape[1])[positions]


def moments(rows: Tensor) -> Moments:
    """Moments of input rows (groups, rows, n), accumulated in float32 blocks and kept in float64."""
    mean = rows.mean(dim=1, dtype=torch.float64)
    blocks = rows.split(8192, dim=1)  # type: ignore[no-untyped-call]
    gram = torch.stack([(b.transpose(1, 2) @ b).to(torch.float64) for b in blocks]).sum(dim=0)
    active = (rows != 0).to(torch.float64).mean(dim=1)
    return Moments(gram / rows.shape[1], mean, active)


@contextmanager
def watched(model: nn.Module, names: tuple[str, ...], see: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """While open, `see(name, layer, input)` is called before each named layer runs."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: see(name, module, args[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _padding(module: Conv) -> tuple[int, ...]:
    """Zeros added on each side; "same" is symmetric here because odd kernels make it so."""
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return (0,) * len(module.kernel_size) if isinstance(module.padding, str) else tuple(module.padding)


def _patches(
    x: Tensor,
    positions: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Gathers only the sampled patches: (groups, rows, channels / groups * kernel area)."""
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1).contiguous()
    _, height, width, channels = padded.shape
    out = [(s - d * (k - 1) - 1) // t + 1 for s, k, t, d in zip((height, width), kernel, stride, dilation, strict=True)]
    sample = positions.div(out[0] * out[1], rounding_mode="floor")
    row = positions.div(out[1], rounding_mode="floor") % out[0] * stride[0]
    column = positions % out[1] * stride[1]
    corner = (sample * height + row) * width + column  # (rows,)
    taps = torch.tensor([i * dilation[0] * width + j * dilation[1] for i in range(kernel[0]) for j in range(kernel[1])])
    index = (corner[:, None] + taps).flatten()
    gathered = (
        padded.view(-1, channels).index_select(0, index).view(len(positions), len(taps), groups, channels // groups)
    )
    return gathered.permute(2, 0, 3, 1).reshape(groups, len(positions), -1)  # (groups, rows, channels / groups * taps)
