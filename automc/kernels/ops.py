"""Planned kernels as operations of torch, so that `torch.export` and `torch.compile` see them.

automc::images(x, plan, shape)           a network on images, each result of one shape
automc::tokens(x, plan, outputs, other)  a linear layer, its number of outputs, and what is added

To import this module is all that a file needs which was exported with kernels: those of layers of 8 bits, and of blocks
on a GPU, stand beside their kernels, and are registered with them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from automc.errors import TaskError
from automc.kernels import blocks, dense8_conv, images, sparse8_conv, tokens  # noqa: F401  (some only register theirs)

LIBRARY = torch.library.Library("automc", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define("images(Tensor x, Tensor plan, int[] shape) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.define("tokens(Tensor x, Tensor plan, SymInt outputs, Tensor? other=None) -> Tensor")  # type: ignore[no-untyped-call]


@torch.library.impl(LIBRARY, "images", "CPU")
def _images(x: Tensor, plan: Tensor, shape: Sequence[int]) -> Tensor:
    return images.run(x.float(), plan, shape)


@torch.library.register_fake("automc::images", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_images(x: Tensor, plan: Tensor, shape: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], *shape, dtype=torch.float32)


@torch.library.impl(LIBRARY, "tokens", "CPU")
def _tokens(x: Tensor, plan: Tensor, outputs: int, other: Tensor | None = None) -> Tensor:
    found = tokens.run(x.float(), plan, None if other is None else other.float())
    if found.shape[-1] != outputs:
        raise TaskError(f"This plan has {found.shape[-1]} outputs; asked for are {outputs}: ask for its own.")
    return found


@torch.library.register_fake("automc::tokens", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_tokens(x: Tensor, plan: Tensor, outputs: int, other: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs, dtype=torch.float32)
