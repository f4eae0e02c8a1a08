"""Weights in the order in which a library of torch's reads them, made at first use and kept as long as the weight.

Such a tensor has no storage of its own: it can be neither saved nor exported, and most cannot be copied. So modules
hold the weight itself, with which all that works, and ask here for the other one whenever they run.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True, eq=False, slots=True)
class Packed:
    """What is kept of a weight."""

    weights: tuple[Tensor, ...]
    """Those of each group; none where the library is not to be trusted with them."""


P = TypeVar("P", bound=Packed)
_kept: Any = WeakTensorKeyDictionary()


def packed(weight: Tensor, library: str, make: Callable[[], P], *others: Tensor) -> P:
    """What `make` gives for a weight, made anew once the weight, or one of the others, has been changed in place."""
    versions = tuple(0 if x.is_inference() else x._version for x in (weight, *others))
    own = _kept.get(weight)
    if own is None:
        own = _kept[weight] = {}
    found = own.get(library)
    if found is None or found[0] != versions:
        found = own[library] = (versions, make())
    return found[1]  # type: ignore[no-any-return]


def packed_bytes(weights: Iterable[Tensor]) -> int:
    """The bytes that what is kept of some weights takes besides these."""
    kept = (found for weight in weights for _, found in _kept.get(weight, {}).values())
    return sum(_bytes(x) for found in kept for x in found.weights)


def _bytes(x: Any) -> int:
    if is_traceable_wrapper_subclass(x):  # as tensors in 2:4 are
        names, _ = x.__tensor_flatten__()
        return sum(int(getattr(x, name).nbytes) for name in names)
    return int(torch.ops.mkldnn._nbytes(x))
