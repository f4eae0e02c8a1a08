"""The forms a module runs in, all of which compute the same: as torch has it, layer by layer, as one plan."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from automc.compression.compress import channels_last, in_channels_last
from automc.compression.quantize import quantized_layers
from automc.deployment.layers import has_zeros, layerwise, packed_ways
from automc.deployment.network import network_of
from automc.graph.runs import copies, tensors
from automc.policy import FULL_BITS
from automc.scoring.folding import folded
from automc.task import Inputs

BY_TORCH = ("as it is", "folded", "channels last", "folded, channels last", "packed weights")
"""Forms that torch's own kernels run."""
TOLERANCE = 1e-4
"""Of the largest output: so much may another order of sums change."""
NUDGE, NUDGES = 1e-6, 4
"""Where activations are rounded, another order of sums may put one on another level, and all behind it elsewhere: what
inputs larger by such a share change in the outputs, so many times over, is allowed, too."""


class ChannelsLast(nn.Module):
    """A module whose images come channels last, however they are given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = in_channels_last(module)

    def forward(self, *inputs: Tensor) -> object:
        """As the module."""
        return self.module(*map(channels_last, inputs))


@torch.no_grad()
def forms(module: nn.Module, inputs: Inputs, *, kernels: bool = True) -> dict[str, nn.Module]:
    """Every form of a module in eval mode, by name; the module itself is left alone.

    As it is; folded (batch norms into convolutions), in both layouts of images; with weights of linear layers packed;
    with `kernels` also its layers with zeros, its layers of 8 bits, and the whole as one plan: each layer as is fastest
    here for inputs like these. A form is there only if it gives what the module gives, to 1e-4 of the largest output
    or, where activations are rounded, to a few times what the least change of the inputs does.
    """
    plain = copy.deepcopy(module).eval()
    wanted = _wanted(plain, inputs)

    @cache
    def small() -> nn.Module:
        return folded(plain)

    makers: dict[str, Callable[[], nn.Module | None]] = {
        "folded": small,
        "channels last": lambda: ChannelsLast(copy.deepcopy(plain)),
        "folded, channels last": lambda: ChannelsLast(copy.deepcopy(small())),
        "packed weights": lambda: layerwise(small(), inputs, packed_ways),
        "sparse layers": lambda: layerwise(small(), inputs) if any(map(has_zeros, small().modules())) else None,
        "layers of 8 bits": lambda: layerwise(plain, inputs) if _rounds(plain) else None,
        "layers of 8 bits, channels last": lambda: (
            layerwise(ChannelsLast(copy.deepcopy(plain)), inputs) if _rounds(plain) and _images(inputs) else None
        ),
        "one plan": lambda: network_of(small(), inputs),
    }
    names = makers if kernels else BY_TORCH[1:]
    found = {name: form for name in names if (form := _checked(makers[name], inputs, wanted)) is not None}
    return {BY_TORCH[0]: plain, **found}


def _rounds(module: nn.Module) -> bool:
    """Whether a layer rounds its weights and what it reads; folding takes the two apart."""
    return any(layer.input is not None and layer.weight_bits < FULL_BITS for _, layer in quantized_layers(module))


def _images(inputs: Inputs) -> bool:
    """Whether an input has a layout."""
    return any(x.dim() == 4 for x in inputs)


@dataclass(frozen=True, eq=False, slots=True)
class _Wanted:
    """What a module gives, and how far from it another form may be."""

    outputs: tuple[Tensor, ...]
    room: tuple[float, ...]

    def met_by(self, found: tuple[Tensor, ...]) -> bool:
        """Whether outputs are these."""
        return len(found) == len(self.outputs) and all(
            a.shape == b.shape and (not b.numel() or float((a - b).abs().max()) <= room)
            for a, b, room in zip(found, self.outputs, self.room, strict=True)
        )


def _wanted(plain: nn.Module, inputs: Inputs) -> _Wanted:
    outputs = tensors(plain(*copies(inputs)))
    nudged = tensors(plain(*(x * (1 + NUDGE) if x.is_floating_point() else x.clone() for x in inputs)))
    room = tuple(
        max(TOLERANCE * max(1e-6, float(a.abs().max())), NUDGES * float((a - b).abs().max())) if a.numel() else 0.0
        for a, b in zip(outputs, nudged, strict=True)
    )
    return _Wanted(outputs, room)


def _checked(make: Callable[[], nn.Module | None], inputs: Inputs, wanted: _Wanted) -> nn.Module | None:
    """A form, if there is one that gives the wanted outputs."""
    try:
        form = make()
        found = () if form is None else tensors(form.eval()(*copies(inputs)))
    except Exception:  # a forward may look into its layers, or ask for a layout
        return None
    return form if wanted.met_by(found) else None
