"""The forms a module runs in, all of which compute the same: as torch has it, layer by layer, as one plan."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from automc.compression.compress import channels_last, in_channels_last
from automc.compression.quantize import quantized_layers
from automc.deployment.layers import by_torch, every_way, has_zeros, layerwise, packed_ways
from automc.deployment.network import network_of
from automc.graph.runs import copies, tensors
from automc.policy import FULL_BITS
from automc.scoring.folding import folded
from automc.task import Inputs

BFLOAT16 = ("layers in bfloat16", "layers in bfloat16, channels last")
BY_TORCH = ("as it is", "folded", "channels last", "folded, channels last", "packed weights", *BFLOAT16)
"""Forms that torch's own kernels run."""
SPARSE_BFLOAT16 = "layers with zeros or in bfloat16"
TOLERANCE = 1e-4
"""Of the largest output: so much may another order of sums change."""
LOOSE = 2**-5
"""The same of forms in bfloat16: every layer rounds to 2^-8 of its values, and what many make of that adds up."""
NUDGE, NUDGES = 1e-6, 4
"""Where activations are rounded, another order of sums may put one on another level, and all behind it elsewhere: what
inputs larger by such a share change in the outputs, or sums without rounding, so many times over, is allowed, too. The
same holds on a GPU, where torch's convolutions round factors to TF32 unless that is forbidden."""


class ChannelsLast(nn.Module):
    """A module whose images come channels last, however they are given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = in_channels_last(module)

    def forward(self, *inputs: Tensor) -> object:
        """As the module."""
        return self.module(*map(channels_last, inputs))


@torch.no_grad()
def forms(module: nn.Module, inputs: Inputs, *, kernels: bool = True, bf16: bool = False) -> dict[str, nn.Module]:
    """Every form of a module in eval mode, by name; the module itself is left alone.

    As it is; folded (batch norms into convolutions), in both layouts of images; with weights of linear layers packed;
    with `kernels` also its layers with zeros, its layers of 8 bits, and the whole as one plan: each layer as is fastest
    here for inputs like these. On a GPU, where inputs lie there, only layers with zeros have kernels. A form is there
    only if it gives what the module gives, to 1e-4 of the largest output or, where activations are rounded or outputs
    are of half precision, to a few times what that or the least change of inputs or sums does. With `bf16` layers run
    in bfloat16, too, where that is faster, in forms whose names say so, held to 2^-5 of the largest output.
    """
    plain = copy.deepcopy(module).eval()
    wanted = Wanted.of(plain, inputs)
    loose, found = wanted.within(LOOSE), {BY_TORCH[0]: plain}
    for name, make in _makers(plain, inputs, bf16).items():
        form = _checked(make, inputs, loose if "bfloat16" in name else wanted) if kernels or name in BY_TORCH else None
        if form is not None:
            found[name] = form
    return found


def _makers(plain: nn.Module, inputs: Inputs, bf16: bool) -> dict[str, Callable[[], nn.Module | None]]:
    """How each form is made, where there is one."""
    gpu, images = any(x.is_cuda for x in inputs), any(x.dim() == 4 for x in inputs)
    rounds = _rounds(plain) and not gpu  # integers are a processor's

    @cache
    def small() -> nn.Module:
        return folded(plain, inputs)

    def last(module: nn.Module) -> nn.Module:
        return ChannelsLast(copy.deepcopy(module))

    def sparse_or_bfloat16() -> nn.Module | None:
        if rounds:
            return layerwise(plain, inputs, every_way)
        return layerwise(small(), inputs, every_way) if _sparse(small()) else None

    found: dict[str, Callable[[], nn.Module | None]] = {
        "folded": small,
        "channels last": lambda: last(plain),
        "folded, channels last": lambda: last(small()),
        "packed weights": lambda: layerwise(small(), inputs, packed_ways),
        "sparse layers": lambda: layerwise(small(), inputs) if _sparse(small()) else None,
        "layers of 8 bits": lambda: layerwise(plain, inputs) if rounds else None,
        "layers of 8 bits, channels last": lambda: layerwise(last(plain), inputs) if rounds and images else None,
        "one plan": lambda: network_of(small(), inputs),
    }
    if gpu and images:
        found["sparse layers, channels last"] = lambda: layerwise(last(small()), inputs) if _sparse(small()) else None
    if bf16:
        found |= {
            BFLOAT16[0]: lambda: _halved(layerwise(small(), inputs, by_torch)),
            BFLOAT16[1]: lambda: _halved(layerwise(last(small()), inputs, by_torch)) if images else None,
            SPARSE_BFLOAT16: lambda: _halved(sparse_or_bfloat16()),
        }
    return found


def _halved(form: nn.Module | None) -> nn.Module | None:
    """A form of which at least one layer is in bfloat16, as its name says."""
    held = () if form is None else (*form.parameters(), *form.buffers())
    return form if any(x.dtype == torch.bfloat16 for x in held) else None


def _sparse(module: nn.Module) -> bool:
    """Whether a layer has zeros enough to try what skips them."""
    return any(map(has_zeros, module.modules()))


def _rounds(module: nn.Module) -> bool:
    """Whether a layer rounds its weights and what it reads; folding takes the two apart."""
    return any(layer.input is not None and layer.weight_bits < FULL_BITS for _, layer in quantized_layers(module))


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """What a module gives, and how far from it another form may be."""

    outputs: tuple[Tensor, ...]
    room: tuple[float, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, module: nn.Module, inputs: Inputs) -> "Wanted":
        """Of a module in eval mode: 1e-4 of an output's largest number, a few roundings of it where it is of half
        precision, or what rounding makes of the least change of inputs or of sums."""
        outputs = tensors(module(*copies(inputs)))
        nudged = tensors(module(*(x * (1 + NUDGE) if x.is_floating_point() else x.clone() for x in inputs)))
        moved = [_farthest(outputs, others) for others in (nudged, _in_doubles(module, inputs))]
        room = tuple(
            max(_share(a) * max(1e-6, float(a.abs().max())), *(NUDGES * far for far in own)) if a.numel() else 0.0
            for a, *own in zip(outputs, *moved, strict=True)
        )
        return cls(outputs, room)

    def within(self, share: float) -> "Wanted":
        """The same, with room for so large a share of the largest output at least."""
        largest = (share * float(a.abs().max()) if a.numel() else 0.0 for a in self.outputs)
        return Wanted(self.outputs, tuple(map(max, self.room, largest)))

    def met_by(self, found: tuple[Tensor, ...]) -> bool:
        """Whether outputs are these."""
        return len(found) == len(self.outputs) and all(
            a.shape == b.shape and (not b.numel() or float((a - b).abs().max()) <= room)
            for a, b, room in zip(found, self.outputs, self.room, strict=True)
        )


def _share(x: Tensor) -> float:
    """Of the largest output: what may change in one of this type."""
    return max(TOLERANCE, NUDGES * torch.finfo(x.dtype).eps) if x.is_floating_point() else TOLERANCE


def _in_doubles(plain: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    """What a module that rounds activations, or is on a GPU, gives where sums lose nothing; nothing of others, or of
    one that cannot."""
    rounds = any(layer.input is not None for _, layer in quantized_layers(plain))
    if not rounds and not any(x.is_cuda for x in inputs):
        return ()
    try:
        double = copy.deepcopy(plain).double()
        return tensors(double(*(x.double() if x.is_floating_point() else x.clone() for x in inputs)))
    except Exception:  # a forward may ask for floats
        return ()


def _farthest(outputs: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> list[float]:
    """How far each output is from another one at most; 0.0 where there is no other."""
    if [x.shape for x in outputs] != [x.shape for x in others]:
        return [0.0] * len(outputs)
    return [float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(outputs, others, strict=True)]


def _checked(make: Callable[[], nn.Module | None], inputs: Inputs, wanted: Wanted) -> nn.Module | None:
    """A form, if there is one that gives the wanted outputs."""
    try:
        form = make()
        found = () if form is None else tensors(form.eval()(*copies(inputs)))
    except Exception:  # a forward may look into its layers, or ask for a layout
        return None
    return form if wanted.met_by(found) else None
