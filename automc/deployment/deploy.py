"""The module that computes the same and is fastest here: as one plan, layer by layer, or as torch runs it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from automc.compression.compress import channels_last, in_channels_last
from automc.deployment.layers import layerwise
from automc.deployment.network import network_of
from automc.deployment.timing import seconds_of
from automc.errors import TaskError
from automc.graph.runs import copies, tensors
from automc.scoring.folding import folded

TOLERANCE = 1e-4
"""Of the largest output: so much may another order of sums change."""


@dataclass(frozen=True, eq=False, slots=True)
class Deployed:
    """The fastest form of a module, and what was compared."""

    module: nn.Module
    form: str
    seconds: dict[str, float]
    """Of one pass over the inputs, by form."""


class _ChannelsLast(nn.Module):
    """A module whose images come channels last, wherever they come from."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> object:
        """As the module."""
        return self.module(*map(channels_last, inputs))


@torch.no_grad()
def deploy(module: nn.Module, inputs: tuple[Tensor, ...]) -> Deployed:
    """The fastest form of a module in eval mode for inputs like these; the module itself is left alone.

    Forms: as it is; folded (batch norms into convolutions), in both layouts of images; layers with zeros by sparse
    kernels; the whole model as one plan. A form counts only if its outputs are those of the module, to 1e-4 of the
    largest.
    """
    if not inputs or not len(inputs[0]):
        raise TaskError("Inputs to deploy for must hold at least one sample; there is none: pass an example batch.")
    plain = copy.deepcopy(module).eval()
    wanted = tensors(plain(*copies(inputs)))
    makers: dict[str, Callable[[], nn.Module | None]] = {
        "as it is": lambda: plain,
        "folded": lambda: folded(plain),
        "channels last": lambda: _ChannelsLast(in_channels_last(folded(plain))),
        "sparse layers": lambda: layerwise(folded(plain), inputs),
        "one plan": lambda: network_of(plain, inputs),
    }
    forms = {name: form for name, make in makers.items() if (form := _checked(make, inputs, wanted)) is not None}
    seconds = seconds_of([partial(form, *inputs) for form in forms.values()])
    timed = dict(zip(forms, seconds, strict=True))
    best = min(timed, key=timed.__getitem__)
    return Deployed(forms[best], best, timed)


def _checked(
    make: Callable[[], nn.Module | None], inputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]
) -> nn.Module | None:
    """A form, if there is one that gives the wanted outputs."""
    try:
        form = make()
        found = () if form is None else tensors(form.eval()(*copies(inputs)))
    except Exception:  # a forward may look into its layers, or ask for a layout
        return None
    same = len(found) == len(wanted) and all(
        a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * max(1e-6, float(b.abs().max()))
        for a, b in zip(found, wanted, strict=True)
        if b.numel()
    )
    return form if same else None
