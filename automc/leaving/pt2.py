"""PyTorch's own format: an exported program in a .pt2 file, for `torch.export.load` where there is no automc.

Loading such a file runs what is in it. automc never loads one into its own process: the check after writing is done by
a fresh one, which imports torch alone and, for a form that computes by automc's kernels, their operations.
"""

import errno
import io
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automc.compression.quantize import ActivationQuantizer, dequantize
from automc.deployment.forms import Wanted
from automc.errors import ArtifactError
from automc.leaving.agreement import Sample, check, sampled, within
from automc.leaving.formats import Format, Written
from automc.leaving.kernels import OPERATIONS
from automc.leaving.portable import Operations, portable
from automc.leaving.program import quietly, recorded
from automc.task import Inputs

_SAME = 1e-5
"""Share of the largest output: the same operations, but another process may lay its tensors out otherwise."""
_WITH_KERNELS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import {OPERATIONS}
"""
"""The automc that wrote the file, however this process came by it."""
_CHILD = """
import sys
import numpy
import torch
from torch.utils import _pytree

torch.set_num_threads(int(sys.argv[3]))
module = torch.export.load(sys.argv[1]).module()
given = numpy.load(sys.argv[2] + "/inputs.npz")
batches = {}
for name in given.files:
    batch, number = name.split()
    batches.setdefault(batch, {})[int(number)] = torch.from_numpy(given[name])
found = {}
with torch.no_grad():
    for batch, inputs in batches.items():
        leaves = _pytree.tree_leaves(module(*(inputs[number] for number in sorted(inputs))))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        found |= {f"{batch} {number}": x.double().numpy() for number, x in enumerate(tensors)}
numpy.savez(sys.argv[2] + "/outputs.npz", **found)
"""


def write(module: nn.Module, inputs: Inputs, path: Path) -> Written:
    """Writes and checks the file."""
    any_size = _saved(module, inputs, path)
    samples = sampled(module, inputs, any_size=any_size)
    for sample, found in zip(samples, _elsewhere(path, samples, _CHILD), strict=True):
        check(sample.outputs, found, _SAME)
    return Written(any_size, checked=True)


def write_form(module: nn.Module, form: nn.Module, inputs: Inputs, path: Path) -> Written:
    """Writes a form of a module that computes by automc's kernels, and checks the file against the module, as closely
    as forms are checked."""
    any_size = _saved(form, inputs, path)
    samples = sampled(module, inputs, any_size=any_size)
    for sample, found in zip(samples, _elsewhere(path, samples, _WITH_KERNELS + _CHILD), strict=True):
        within(sample.outputs, found, Wanted.of(module, sample.inputs).room)
    return Written(any_size, checked=True)


def _saved(module: nn.Module, inputs: Inputs, path: Path) -> bool:
    """Whether the program that is now in the file takes batches of any size."""
    program, any_size = recorded(portable(module, _TORCH), inputs)
    program.example_inputs = None  # samples of the user's data, which would lie in the file
    made = io.BytesIO()  # written to a disk that is full, torch ends the process
    with quietly():
        torch.export.save(program, made)
    path.write_bytes(made.getbuffer())
    return any_size


def _elsewhere(path: Path, samples: Sequence[Sample], code: str) -> list[list[Tensor]]:
    """What the program gives for each sample in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        arrays: dict[str, Any] = {
            f"{b} {n}": x.numpy() for b, sample in enumerate(samples) for n, x in enumerate(sample.inputs)
        }
        np.savez(f"{folder}/inputs.npz", **arrays)
        command = [sys.executable, "-c", code, str(path.resolve()), folder, str(torch.get_num_threads())]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:200]
            if said.startswith("OSError"):
                raise OSError(errno.EIO, said, folder)
            raise ArtifactError(
                f"An exported model must run in a process of its own; there torch says {said}: keep the file automc "
                "saved, and report the model."
            )
        found = np.load(f"{folder}/outputs.npz")
        results: list[list[Tensor]] = [[] for _ in samples]
        for name in found.files:
            results[int(name.split()[0])].append(torch.from_numpy(found[name]))
    return results


def _even(codes: Tensor, scale: Tensor) -> Tensor:
    return dequantize(codes.to(scale.dtype), scale)


def _shared(codes: Tensor, centroids: Tensor) -> Tensor:
    return centroids[codes.to(torch.int64)]


class _Rounding(nn.Module):
    """What an activation quantizer does, its levels worked out once."""

    def __init__(self, quantizer: ActivationQuantizer, path: str) -> None:
        super().__init__()
        step, zero, top = quantizer.levels()
        self.low, self.high = -zero, top - zero
        self.register_buffer("step", torch.tensor(step))

    step: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.step).round().clamp(self.low, self.high) * self.step


_TORCH = Operations(_even, _shared, _Rounding)
PT2 = Format("pt2", write, write_form=write_form)
