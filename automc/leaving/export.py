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
from automc.files import check_folder, write_atomic
from automc.leaving.agreement import outputs
from automc.leaving.formats import Format
from automc.leaving.kernels import fastest
from automc.leaving.program import in_short
from automc.registry import FORMATS
from automc.task import Inputs

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
    form: str | None = None
    """In which automc's kernels compute it; None where torch's own do, which need no automc."""


def export(
    module: nn.Module,
    path: str | Path,
    *,
    format: str,
    example_inputs: Tensor | Inputs | None = None,
    kernels: bool = False,
    batch: int = 1,
) -> Exported:
    """Writes what `apply` or `load` returned as a file that other programs run, and checks that it computes the same.

    `format` is "pt2" (torch.export) or "onnx" (needs `automc[onnx]`). `example_inputs` are some samples, batch first,
    that the file is checked on; without them random ones in the shape that the module was made with, zeros where they
    are no floats. With `kernels`, a pt2 file is the module as it runs fastest here, for `batch` samples a pass, as by
    `automc.deploy`: where kernels of automc's win, it holds their plans, suits processors with vectors as wide as
    this one's, and must be loaded after `import automc.kernels.ops`. Raises ArtifactError, and leaves no file, for a
    module automc did not make, one the format cannot hold, kernels in a format without them, and a file that computes
    something else; RegistryError for an unknown format.
    """
    origin = provenance.of(module)
    chosen, target = ready(path, format, kernels=kernels)
    module = copy.deepcopy(module).cpu().eval()
    given = _drawn(origin) if example_inputs is None else example_inputs
    inputs = _usable(module, given if isinstance(given, tuple) else (given,))
    fast, form = fastest(module, inputs, batch) if kernels else (module, None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f"model.{chosen.suffix}"
            if form is None or chosen.write_form is None:
                written = chosen.write(module, inputs, made)
            else:
                written = chosen.write_form(module, fast, inputs, made)
            data = made.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{target} must be made in {tempfile.gettempdir()} first; the system says {error.strerror or error}: free "
            "space there, or name another folder by TMPDIR."
        ) from error
    write_atomic(target, data)
    return Exported(target, len(data), written.any_size, written.checked, form)


def ready(path: str | Path, format: str, *, kernels: bool = False) -> tuple[Format, Path]:
    """The format and the file's path, once both can be used; else ArtifactError or RegistryError."""
    chosen: Format = FORMATS.load(format)
    if kernels and chosen.write_form is None:
        raise ArtifactError(
            f"Kernels of automc's must leave in a format that knows operations of torch; {format} does not: take pt2, "
            "or leave kernels out."
        )
    chosen.need()
    target = Path(path)
    if target.is_dir():
        raise ArtifactError(
            f"An exported model must be a file; {target} is a folder: name one in it, {target / f'model.{format}'}."
        )
    check_folder(target.parent)
    return chosen, target


def _drawn(origin: Provenance) -> Inputs:
    """Random floats, and zeros of all other types, of which nobody knows what they may be."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape, name in origin.inputs:
        kind, size = getattr(torch, name), (SAMPLES, *shape[1:])
        x = torch.randn(size, generator=generator) if kind.is_floating_point else torch.zeros(size)
        found.append(x.to(kind))
    return tuple(found)


def _usable(module: nn.Module, given: Inputs) -> Inputs:
    """Two samples or more of every input; ArtifactError where the module does not take them."""
    inputs = tuple(torch.cat((x, x)) if len(x) == 1 else x for x in (x.detach().cpu() for x in given))
    try:
        outputs(module, inputs)
    except Exception as error:  # whatever a model's own forward raises
        raise ArtifactError(
            f"Example inputs must be what the model takes; with these it raises {in_short(error)}: pass others."
        ) from error
    return inputs
