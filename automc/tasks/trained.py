"""Networks trained on first use and kept: safetensors under $XDG_CACHE_HOME/automc (~/.cache/automc).

A digest lies inside each file: one that is broken or was changed is trained anew.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from automc.errors import ArtifactError
from automc.files import write_atomic

State = dict[str, Tensor]


def cached(name: str, train: Callable[[], State]) -> State:
    """The state dict kept under `name`, or the one `train` gives now."""
    path = cache_folder() / f"{name}.safetensors"
    state = _read(path)
    if state is None:
        state = train()
        _write(state, path)
    return state


def cache_folder() -> Path:
    """Where trained networks are kept."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "automc"


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read(path: Path) -> State | None:
    """The cached weights; None where there are none, or none that can be trusted."""
    if not path.is_file():  # to open a pipe would be to wait for it
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest = (file.metadata() or {}).get("sha256")
        return state if digest == _digest(state) else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, SafetensorError):
        return None


def _write(state: State, path: Path) -> None:
    try:
        write_atomic(path, save(state, metadata={"sha256": _digest(state)}))
    except ArtifactError as error:
        warnings.warn(f"The trained network is not cached: {error}", stacklevel=2)


def _digest(state: State) -> str:
    """SHA-256 of names, shapes and values."""
    result = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.numpy().tobytes())
    return result.hexdigest()
