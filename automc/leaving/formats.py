"""What a file format brings: how its files are written and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from automc.leaving.program import Inputs


def _nothing() -> None:
    """A format that needs no package of its own."""


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file a compressed module can leave as; one module each, registered in `automc.registry.FORMATS`."""

    suffix: str
    """Of its files, without the dot."""
    write: Callable[[nn.Module, Inputs, Path], tuple[str, ...]]
    """From a module in eval mode, example inputs and a new file's path to what a user must know of it, as sentences.
    The file is read back and run; ArtifactError where it does not compute what the module does."""
    need: Callable[[], None] = _nothing
    """Called before anything is computed; ArtifactError where a package is missing."""
