"""Cholesky roots of Gram matrices, which are as singular as the data make them: dead, equal or too few inputs."""

import torch
from torch import Tensor

from automc.errors import GraphError

_GROWTH = 10.0
_TRIES = 8


def damped(gram: Tensor, share: float) -> Tensor:
    """Float64 (n, n), with `share` of the mean diagonal added; inputs that are always zero get the mean itself."""
    system = gram.to(torch.float64).clone()
    diagonal = system.diagonal()
    live = diagonal > 0
    mean = diagonal[live].mean() if bool(live.any()) else torch.ones((), dtype=torch.float64)
    diagonal += torch.where(live, share * mean, mean)
    return system


def ridged(gram: Tensor, share: float) -> Tensor:
    """Float64 (n, n), with `share` of the mean diagonal added everywhere; the unit matrix where there is nothing."""
    system = gram.to(torch.float64)
    mean = float(system.diagonal().clamp_min(0).mean())
    return system + (share * mean if mean > 0 else 1.0) * torch.eye(len(system), dtype=torch.float64)


def root(systems: Tensor) -> Tensor:
    """Lower Cholesky roots of symmetric matrices (..., n, n); what is not positive definite is damped until it is.

    Damping grows tenfold from 1e-8 of the mean diagonal. Values that are not finite raise GraphError.
    """
    if not bool(torch.isfinite(systems.sum())):  # what is not finite stays so in a sum
        raise GraphError("Input statistics must be finite; these hold NaN or infinity: check the calibration data.")
    found: Tensor
    found, info = torch.linalg.cholesky_ex(systems)
    share = 1e-8
    for _ in range(_TRIES):
        bad = info > 0
        if not bool(bad.any()):
            return found
        mean = systems.diagonal(dim1=-2, dim2=-1).abs().mean(dim=-1).clamp_min(1e-30)
        extra = torch.where(bad, share * mean, torch.zeros_like(mean))
        found, info = torch.linalg.cholesky_ex(systems + torch.diag_embed(extra[..., None].expand(systems.shape[:-1])))
        share *= _GROWTH
    raise GraphError(
        "A Gram matrix must have no large negative part; damping does not help this one: report the model."
    )
