"""How much memory a model takes while it runs: the largest sum of all tensors that are alive at once.

Weights, what kernels keep of them, inputs, and what each operation gives until its last reader is done, counted by
storage as torch hands it out.
So the number is that of the model and not of the machine: what kernels take for themselves during one operation, the
interpreter and the allocator's reserve are not in it.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from automc.graph.runs import copies, tensors
from automc.kernels.packed import packed_bytes


@torch.no_grad()
def peak_bytes(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """The bytes that the module, some inputs and one run on them take together at most."""
    module(*copies(inputs))  # what a module keeps of its first run is then its own
    given = copies(inputs)
    held = (*module.parameters(), *module.buffers(), *given)
    with _Alive(held) as alive:
        module(*given)
    return int(alive.most) + packed_bytes(held)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages of all tensors that exist, operation after operation."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[weakref.ref[torch.UntypedStorage], int] = {}
        self.now = self.most = 0
        for x in held:
            self._count(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tensors(found):
            self._count(x)
        return found

    def _count(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = weakref.ref(storage, self._forget)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.most = max(self.most, self.now)

    def _forget(self, key: "weakref.ref[torch.UntypedStorage]") -> None:
        self.now -= self._sizes.pop(key)
