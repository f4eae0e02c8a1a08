"""A compressed model where it is used: loaded, and counted. Needs no searcher, no study and none of their packages."""

import copy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from automc import artifact
from automc.graph.counting import forward_macs
from automc.task import Task
from automc.tasks import load_task


def load(directory: str | Path, factory: Callable[[], nn.Module] | Task | str) -> nn.Module:
    """Reads what `save` wrote; `factory` builds the uncompressed model (its weights do not matter), or is the task."""
    if isinstance(factory, (Task, str)):
        task = load_task(factory) if isinstance(factory, str) else factory
        factory = task.factory or (lambda: copy.deepcopy(task.model))
    return artifact.load(directory, factory)


def cost(module: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> dict[str, float]:
    """Costs counted on the module itself: macs of one sample, params, and size, the bytes it takes on disk.

    macs are half the operations `torch.utils.flop_counter` counts in one forward pass, attention included.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    return {
        "macs": forward_macs(module, inputs),
        "params": float(sum(p.numel() for p in module.parameters())),
        "size": float(len(artifact.serialized(module))),
    }
