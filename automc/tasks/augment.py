"""Changes that leave what a picture shows as it was; what a task may offer for training."""

import torch
from torch import Tensor
from torch.nn import functional as F


def shifts(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) moved by up to an eighth of their size, zeros moved in."""
    height, width = x.shape[2:]
    reach = max(1, height // 8), max(1, width // 8)
    padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]))
    down = torch.randint(0, 2 * reach[0] + 1, (len(x),), generator=generator)
    right = torch.randint(0, 2 * reach[1] + 1, (len(x),), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    samples, channels = torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None]
    return padded[samples, channels, rows, columns]


def flips_and_shifts(x: Tensor, generator: torch.Generator) -> Tensor:
    """The same, half of the images mirrored before."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    return shifts(torch.where(mirrored[:, None, None, None], x.flip(3), x), generator)
