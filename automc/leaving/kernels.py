"""The fastest form of a module here, for files that run where automc is installed.

Its kernels are operations of torch, which a process knows once `automc.kernels.ops` is imported; their plans, with all
weights, are tensors of the file.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from automc.deployment.deploy import deploy
from automc.deployment.forms import BY_TORCH
from automc.task import Inputs

OPERATIONS = "automc.kernels.ops"
"""What must be imported before such a file is loaded."""


def fastest(module: nn.Module, inputs: Inputs, batch: int) -> tuple[nn.Module, str | None]:
    """The form in which so many samples take least time here, and its name; the module itself, and None, where that is
    one of torch's own."""
    found = deploy(module, tuple(_of_size(x, batch) for x in inputs))
    return (module, None) if found.form in BY_TORCH else (found.module, found.form)


def loading(path: Path) -> str:
    """The line of Python that loads such a file."""
    return f"import torch, {OPERATIONS}; module = torch.export.load({str(path)!r}).module()"


def _of_size(x: Tensor, batch: int) -> Tensor:
    """The first samples, again and again where there are too few."""
    return torch.cat([x] * max(1, -(-batch // max(1, len(x)))))[: max(0, batch)]
