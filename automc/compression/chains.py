"""The chains of smaller layers a factorisation makes, how they multiply to the dense weight, and where they start.

Indices of the einsums: o and i are the dense layer's output and input channels, y and x its kernel's rows and columns,
n all its columns at once, r and s ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor, nn

from automc.compression.alternating import Product, leading
from automc.compression.quantize import bare

Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Linear


class FactoredLayer(nn.Module):
    """A layer as a chain of smaller ones; the last one has the bias."""

    def __init__(self, method: str, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.method = method
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """As the dense layer, from x to its output."""
        for part in self.parts:
            x = part(x)
        return x

    @property
    def bias(self) -> Tensor | None:
        """Of the whole layer (out,)."""
        bias = bare(self.parts[-1]).bias
        return bias if isinstance(bias, Tensor) else None

    @property
    def weight(self) -> Tensor:
        """The weight that the chain stands for, in the dense layer's shape and type; a forward may look at it."""
        own = [_tensor(bare(part)) for part in self.parts]
        kernel = [max(sizes) for sizes in zip(*(weight.shape[2:] for weight in own), strict=True)]
        return self.rows().reshape(-1, own[0].shape[1], *kernel).to(own[0].dtype)

    def rows(self) -> Tensor:
        """The weight (out, n) that the chain stands for, float64."""
        return self.product().rows(self.tensors())

    def product(self) -> Product:
        """How the factors make the weight."""
        chain, sizes = CHAINS[self.method], self._sizes()
        return Product(chain.terms, chain.target, sizes["o"], prod(sizes[c] for c in chain.target[1:]))

    def tensors(self) -> list[Tensor]:
        """The factors without axes of size one, float64."""
        terms = CHAINS[self.method].terms
        return [
            _tensor(bare(part)).to(torch.float64).flatten(len(term) - 1)
            for part, term in zip(self.parts, terms, strict=True)
        ]

    def start(self, weight: Tensor) -> list[Tensor]:
        """Factors of the weight (out, n) itself, all inputs counting alike."""
        chain, sizes = CHAINS[self.method], self._sizes()
        assert chain.start is not None
        ranks = [sizes[c] for c in "rs" if c in sizes]
        return chain.start(weight.reshape([sizes[c] for c in chain.target]), ranks)

    def _sizes(self) -> dict[str, int]:
        """The size of every index."""
        indices = "".join(CHAINS[self.method].terms)
        return dict(zip(indices, [size for factor in self.tensors() for size in factor.shape], strict=True))


def _tensor(part: nn.Module) -> Tensor:
    assert isinstance(part.weight, Tensor)
    return part.weight.detach()


@dataclass(frozen=True, slots=True)
class Chain:
    """One method as a chain."""

    terms: tuple[str, ...]
    """Indices of each factor."""
    target: str
    """Indices of the weight."""
    parts: Callable[[Layer, tuple[int, ...]], list[nn.Module]]
    """The layers, unfitted, in the place of a dense one."""
    start: Callable[[Tensor, list[int]], list[Tensor]] | None = None
    """Factors of a weight in the target's shape, of these ranks; None where the optimum has a closed form."""


def _part(
    layer: Layer, fan_in: int, out: int, axes: Sequence[int] = (), *, groups: int = 1, bias: bool = False
) -> nn.Module:
    """A layer with the original's kernel, stride, dilation and padding along `axes` and 1 x 1 along the others."""
    place = layer.weight.device
    if isinstance(layer, nn.Linear):
        return nn.Linear(fan_in, out, bias, "meta", layer.weight.dtype).to_empty(device=place)

    def along(values: tuple[int, ...], otherwise: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else otherwise for axis, value in enumerate(values))

    made = (nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Conv1d)(
        fan_in,
        out,
        kernel_size=along(layer.kernel_size, 1),  # type: ignore[arg-type]
        stride=along(layer.stride, 1),  # type: ignore[arg-type]
        padding=layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),  # type: ignore[arg-type]
        dilation=along(layer.dilation, 1),  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        padding_mode=layer.padding_mode,
        device="meta",  # where nothing is drawn to initialise it
        dtype=layer.weight.dtype,
    )
    return made.to_empty(device=place)


def _svd_parts(layer: Layer, ranks: tuple[int, ...]) -> list[nn.Module]:
    out, fan_in = layer.weight.shape[:2]
    (r,) = ranks
    return [_part(layer, fan_in, r, (0, 1)), _part(layer, r, out, bias=layer.bias is not None)]


def _spatial_parts(layer: Layer, ranks: tuple[int, ...]) -> list[nn.Module]:
    out, fan_in = layer.weight.shape[:2]
    (r,) = ranks
    return [_part(layer, fan_in, r, (0,)), _part(layer, r, out, (1,), bias=layer.bias is not None)]


def _tucker2_parts(layer: Layer, ranks: tuple[int, ...]) -> list[nn.Module]:
    out, fan_in = layer.weight.shape[:2]
    r, s = ranks
    return [
        _part(layer, fan_in, r),
        _part(layer, r, s, (0, 1)),
        _part(layer, s, out, bias=layer.bias is not None),
    ]


def _eigen_parts(layer: Layer, ranks: tuple[int, ...]) -> list[nn.Module]:
    out, fan_in = layer.weight.shape[:2]
    columns, rows = ranks
    return [
        _part(layer, fan_in, columns, (0, 1)),
        _part(layer, columns, rows),
        _part(layer, rows, out, bias=layer.bias is not None),
    ]


def _cp_parts(layer: Layer, ranks: tuple[int, ...]) -> list[nn.Module]:
    out, fan_in = layer.weight.shape[:2]
    (r,) = ranks
    return [
        _part(layer, fan_in, r),
        _part(layer, r, r, (0,), groups=r),
        _part(layer, r, r, (1,), groups=r),
        _part(layer, r, out, bias=layer.bias is not None),
    ]


def _spatial_start(weight: Tensor, ranks: list[int]) -> list[Tensor]:
    out, fan_in, height, width = weight.shape
    (r,) = ranks
    matrix = weight.permute(1, 2, 0, 3).reshape(fan_in * height, out * width)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    vertical = (u[:, :r] * s[:r].sqrt()).T.reshape(r, fan_in, height)
    horizontal = (s[:r, None].sqrt() * v[:r]).reshape(r, out, width).transpose(0, 1)
    return [vertical, horizontal]


def _tucker2_start(weight: Tensor, ranks: list[int]) -> list[Tensor]:
    r, s = ranks
    fan_in = weight.transpose(0, 1).flatten(1)  # (in, out kh kw)
    first = leading(fan_in @ fan_in.T, r)  # (in, r)
    for _ in range(3):
        seen = torch.einsum("oiyx,ir->oryx", weight, first).flatten(1)
        second = leading(seen @ seen.T, s)  # (out, s)
        made = torch.einsum("oiyx,os->isyx", weight, second).flatten(1)
        first = leading(made @ made.T, r)
    return [first.T, torch.einsum("oiyx,ir,os->sryx", weight, first, second), second]


def _cp_start(weight: Tensor, ranks: list[int]) -> list[Tensor]:
    (r,) = ranks
    rows, columns = weight.movedim(2, 0).flatten(1), weight.movedim(3, 0).flatten(1)
    y, x = leading(rows @ rows.T, len(rows)), leading(columns @ columns.T, len(columns))
    slices = torch.einsum("oiyx,ya,xb->aboi", weight, y, x)  # (kh, kw, out, in)
    u, s, v = torch.linalg.svd(slices, full_matrices=False)
    chosen = s.flatten().topk(r).indices  # of (kh, kw, min(out, in))
    a, b, term = torch.unravel_index(chosen, s.shape)
    scale = s[a, b, term].sqrt()
    return [v[a, b, term] * scale[:, None], y[:, a].T, x[:, b].T, (u[a, b, :, term] * scale[:, None]).T]


CHAINS: Mapping[str, Chain] = {
    "svd": Chain(("rn", "or"), "on", _svd_parts),
    "spatial": Chain(("riy", "orx"), "oiyx", _spatial_parts, _spatial_start),
    "tucker2": Chain(("ri", "sryx", "os"), "oiyx", _tucker2_parts, _tucker2_start),
    "eigendamage": Chain(("rn", "sr", "os"), "on", _eigen_parts),
    "cp": Chain(("ri", "ry", "rx", "or"), "oiyx", _cp_parts, _cp_start),
}
