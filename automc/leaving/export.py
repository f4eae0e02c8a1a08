"""Exporting a compressed module: inputs to record it on, a place for the file, and nothing left where it fails."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from automc.compression import provenance
from automc.compression.provenance import Provenance
from automc.errors import ArtifactError
from automc.files import check_folder
from automc.leaving.formats import Format
from automc.leaving.program import Inputs
from automc.registry import FORMATS

SAMPLES = 16
"""Samples a module is recorded and checked on where none are given."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written."""

    path: Path
    bytes: int
    any_size: bool
    """Whether it takes batches of any size, or only of the examples'."""
    checked: bool
    """Whether it was run and compared with the module: there may be nothing here to run it."""


def export(
    module: nn.Module, path: str | Path, *, format: str, example_inputs: Tensor | Inputs | None = None
) -> Exported:
    """Writes what `apply` or `load` returned as a file that other programs run, and checks that it computes the same.

    `format` is "pt2" (torch.export) or "onnx" (needs `automc[onnx]`). `example_inputs` are some samples, batch first,
    that the file is checked on; without them random ones in the shape that the module was made with, zeros where they
    are no floats. Raises ArtifactError, and leaves no file, for a module automc did not make, one the format cannot
    hold, and a file that computes something else; RegistryError for an unknown format.
    """
    origin = provenance.of(module)
    chosen, target = ready(path, format)
    inputs = _inputs(origin, example_inputs)
    module = copy.deepcopy(module).cpu().eval()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        made = Path(folder) / f"model.{chosen.suffix}"
        written = chosen.write(module, inputs, made)
        made.replace(target)
    return Exported(target, target.stat().st_size, written.any_size, written.checked)


def ready(path: str | Path, format: str) -> tuple[Format, Path]:
    """The format and the file's path, once both can be used; else ArtifactError or RegistryError."""
    chosen: Format = FORMATS.load(format)
    chosen.need()
    target = Path(path)
    if target.is_dir():
        raise ArtifactError(
            f"An exported model must be a file; {target} is a folder: name one in it, {target / f'model.{format}'}."
        )
    check_folder(target.parent)
    return chosen, target


def _inputs(origin: Provenance, given: Tensor | Inputs | None) -> Inputs:
    """Two samples or more of every input."""
    if given is None:
        return _drawn(origin)
    inputs = given if isinstance(given, tuple) else (given,)
    shapes = [tuple(x.shape[1:]) for x in inputs]
    wanted = [shape[1:] for shape, _ in origin.inputs]
    if shapes != wanted:
        raise ArtifactError(
            f"Example inputs must have the shapes the module was made with, {wanted} a sample; they have {shapes}: "
            "pass others, or none."
        )
    if any(len(x) == 1 for x in inputs):
        inputs = tuple(torch.cat((x, x)) for x in inputs)
    return tuple(x.detach().cpu() for x in inputs)


def _drawn(origin: Provenance) -> Inputs:
    """Random floats, and zeros of all other types, of which nobody knows what they may be."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape, name in origin.inputs:
        kind = getattr(torch, name)
        x = torch.zeros((SAMPLES, *shape[1:]) if shape else ())
        found.append((torch.randn(x.shape, generator=generator) if kind.is_floating_point else x).to(kind))
    return tuple(found)
