"""The form of a module that is fastest here."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from automc.deployment.forms import forms
from automc.deployment.timing import seconds_of
from automc.errors import TaskError
from automc.graph.runs import batch_size, copies


@dataclass(frozen=True, eq=False, slots=True)
class Deployed:
    """A module as it runs fastest, and what was compared."""

    module: nn.Module
    form: str
    seconds: dict[str, float]
    """Of one pass over the inputs, by form."""


@torch.no_grad()
def deploy(module: nn.Module, inputs: tuple[Tensor, ...], *, bf16: bool = False) -> Deployed:
    """The fastest form of a module for inputs like these, with this machine's processor and torch's threads, or GPU.

    `module` of the result computes what the given one computes in eval mode, to 1e-4 of the largest output, or a few
    roundings of half precision; where no kernel is faster it is the module itself. Plans hold for the size of the given
    images; the number of samples may change. Nothing of it can be trained. With `bf16` linear layers and convolutions
    may compute in bfloat16, where that is faster: outputs then may be 2^-5 of the largest off, and `form` says so. What
    is on a GPU is timed there. TaskError for inputs without a sample.
    """
    if not inputs or not batch_size(inputs):
        raise TaskError("Inputs to deploy for must hold at least one sample; there is none: pass an example batch.")
    found = forms(module, inputs, bf16=bf16)
    ways = [partial(form, *copies(inputs)) for form in found.values()]  # one may change them
    seconds = dict(zip(found, seconds_of(ways), strict=True))
    best = min(seconds, key=seconds.__getitem__)
    return Deployed(found[best], best, seconds)
