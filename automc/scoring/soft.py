"""Scores against the dense model's own outputs: no labels, and finer than counting right answers.

* kl: exp(-KL(p || q)) of the dense model's distribution p and the candidate's q over classes, per sample. One where
  both agree, and bounded, so that a few confident samples cannot outweigh all others. Where the classes lie is what
  `class_dimension` says: scores (B, classes), of tokens (B, tokens, classes), or of pixels (B, classes, H, W).
* mse: exp(-||y - d||^2 / e) of outputs of any shape, per sample, e being the mean of ||d||^2 over all samples.

Two candidates with as many right answers still differ in how sure they are of them; on data the model was trained on,
where every answer is right, that is all there is to see.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from automc.class_dimension import class_dimension
from automc.errors import TaskError


class SoftScore(Protocol):
    """From a candidate's and the dense model's outputs of a batch to scores (B,), higher is better, 1 where equal.

    `energy` is the mean of `energies` over all samples, so that scores do not depend on how samples are batched; by
    default that of the batch. `targets` are those of the batch, of which only the shape counts.
    """

    def __call__(
        self, outputs: Tensor, dense: Tensor, energy: float | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Scores by sample (B,)."""
        ...


def kl(outputs: Tensor, dense: Tensor, energy: float | None = None, targets: Tensor | None = None) -> Tensor:
    """exp(-KL) of class scores, the mean over positions in the exponent; `energy` plays no part."""
    dim = class_dimension(dense.shape, () if targets is None else targets.shape)
    if dense.dim() < 2 or dense.shape[dim] < 2:
        raise TaskError(
            f"Scoring by kl needs class scores, (B, classes) or (B, tokens, classes) or (B, classes, H, W); this model "
            f"gives {tuple(dense.shape)}: score by mse."
        )
    p, q = F.log_softmax(dense.double(), dim=dim), F.log_softmax(outputs.double(), dim=dim)
    divergence = (p.exp() * (p - q)).sum(dim=dim)  # (B, ...)
    return torch.exp(-divergence.reshape(len(dense), -1).mean(dim=1).clamp_min(0))


def mse(outputs: Tensor, dense: Tensor, energy: float | None = None, targets: Tensor | None = None) -> Tensor:
    """exp(-squared error / energy) of outputs (B, ...); `targets` play no part."""
    error = (outputs.double() - dense.double()).square().reshape(len(dense), -1).sum(dim=1)
    scale = float(energies(dense).mean()) if energy is None else energy
    return torch.exp(-error / max(scale, 1e-30))


def energies(dense: Tensor) -> Tensor:
    """The squared norm of each sample's outputs (B,), float64."""
    return dense.double().square().reshape(len(dense), -1).sum(dim=1)


SOFT: Mapping[str, SoftScore] = {"kl": kl, "mse": mse}
