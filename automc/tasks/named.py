"""Code that the user has named: task files and modules that later commands may run without being told again.

A study and a saved model say which task they are of. Where that is code, what stands there must not have it run: a file
may be anybody's. It runs if a search, or --task, has named it on this machine before. The note of that is an empty file
in the cache folder, called by the digest of the reference, which says nothing else.
"""

import contextlib
from pathlib import Path

from automc.errors import TaskError
from automc.files import sha256
from automc.registry import TASKS
from automc.tasks.trained import cache_folder
from automc.visible import brief


def portable(reference: str) -> str:
    """A reference that means the same from another directory."""
    path, _, attribute = reference.rpartition(":")
    return f"{Path(path).resolve()}:{attribute}" if path.endswith(".py") else reference


def note(reference: str) -> None:
    """Remembers that the user named this task; where nothing can be kept, he will have to again."""
    if reference in TASKS:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody's home
        path = _noted(reference)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch()


def check(reference: str, where: str) -> None:
    """TaskError for code that is named nowhere but in a file: at `where`."""
    with contextlib.suppress(OSError, RuntimeError):
        if reference in TASKS or _noted(reference).is_file():
            return
    raise TaskError(
        f"A task's code must be named by whoever runs it; {brief(reference)} of {where} was never named here: if you "
        "trust it, give it by --task, in Python by task=."
    )


def _noted(reference: str) -> Path:
    return cache_folder() / "named" / sha256(portable(reference).encode(errors="surrogatepass"))
