"""What a file format brings: how its files are written and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from automc.task import Inputs


def _nothing() -> None:
    """A format that needs no package of its own."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is known of a file once it is written."""

    any_size: bool
    """Whether it takes batches of any size, or only of the examples'."""
    checked: bool
    """Whether it was run and compared with the module, or could not be run here."""


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file a compressed module can leave as; one module each, registered in `automc.registry.FORMATS`."""

    suffix: str
    """Of its files, without the dot."""
    write: Callable[[nn.Module, Inputs, Path], Written]
    """Writes a module in eval mode to a new file, by example inputs, and reads it back; ArtifactError where the file
    does not compute what the module does."""
    need: Callable[[], None] = _nothing
    """Called before anything is computed; ArtifactError where a package is missing."""
    write_form: Callable[[nn.Module, nn.Module, Inputs, Path], Written] | None = None
    """The same for a form of the module that computes by automc's kernels, given behind it; None where the format has
    no place for these."""
