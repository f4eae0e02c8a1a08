"""Low-rank factorisation of one layer, fitted to the layer's outputs.

A layer with weight W (out, n) becomes a chain of smaller layers that stands for W', and the values minimise the output
error ||(W - W') G^(1/2)||_F^2, G (n, n) the second moment of the layer's inputs; so what the data never excite costs
nothing. With a centred G the error is that after the best intercept, (W - W') mean, which the caller adds to the bias.

svd      k x k to r channels, 1 x 1 back (Denil et al. 2013), or two linear layers. The optimum is W' = U U^T W, U the
         leading eigenvectors of W G W^T (Zhang et al. 2016, section 3.1): exact.
spatial  kh x 1 to r channels, then 1 x kw (Jaderberg et al. 2014, scheme 2), from the SVD of the kernel read as
         (in kh) x (out kw).
tucker2  1 x 1, k x k, 1 x 1 (Kim et al. 2016), from the leading singular vectors of both channel sides (HOSVD) and
         three rounds of higher-order orthogonal iteration.
cp       1 x 1, depthwise kh x 1, depthwise 1 x kw, 1 x 1 (Lebedev et al. 2015).
eigendamage  r linear forms of the inputs, mixed to s, then s to all outputs (Wang et al. 2019, section 4.2): the rows
         and columns of the weight in its Kronecker-factored eigenbasis that the loss needs (`criteria.kron`).
tt       a tensor train, for linear layers (tensor_train.py).

All but svd and eigendamage start from a decomposition of the weight whose input channels are whitened, W_c S^(1/2) with
S the channels' second moment over all taps, and go on by alternating least squares on the outputs (alternating.py).
Deviations: cp starts from the r largest terms of an exact decomposition into kh kw min(out, in) orthogonal ones (the
SVDs of the slices in the kernel's own singular bases) where Lebedev et al. start at random, so nothing here is random;
ranks come from a share, not from a variational estimate (Kim et al.); tt is not whitened; eigendamage's last factor is
refitted to the outputs.
"""

from typing import TypeAlias

import torch
from torch import Tensor, nn

from automc.compression.alternating import DAMPING, alternate, leading, output_error
from automc.compression.chains import CHAINS, FactoredLayer, Layer
from automc.compression.quantize import bare
from automc.compression.tensor_train import TensorTrain
from automc.criteria.kron import eigendamage
from automc.criteria.roots import ridged, root
from automc.errors import GraphError, PolicyError
from automc.graph.holders import as_layer
from automc.graph.ranks import Shape, find

SWEEPS = 10
STEPS = 4
"""Conjugate-gradient steps per factor and sweep."""
WORK = 2e10
"""Multiplications that alternating may take per layer; larger layers get fewer sweeps, or only their last factor."""

Factored: TypeAlias = FactoredLayer | TensorTrain


def build(module: nn.Module, method: str, ranks: tuple[int, ...]) -> Factored:
    """A factored layer in the place of `module`: its geometry, type and bias; the factors are zero until `fit_`."""
    layer = as_layer(module)
    if not isinstance(layer, Layer):
        raise GraphError(
            "Only plain linear and 1-d or 2-d convolution layers can be factored; "
            f"got {type(module).__name__}: keep it dense."
        )
    _check(layer, method, ranks)
    made: Factored
    if method == "tt":
        assert isinstance(layer, nn.Linear)
        made = TensorTrain(layer, ranks)
    else:
        made = FactoredLayer(method, CHAINS[method].parts(layer, ranks))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.requires_grad_(layer.weight.requires_grad)
            parameter.zero_()
        if layer.bias is not None and made.bias is not None:
            made.bias.copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
    return made.train(layer.training)


@torch.no_grad()
def fit_(
    factored: Factored, weight: Tensor, gram: Tensor, output_gram: Tensor | None = None, *, sweeps: int = SWEEPS
) -> float:
    """Sets the factors so that the outputs are nearest those of `weight` (out, n); returns their relative error.

    `gram` (n, n) is the second moment of the inputs that the factored layer will see, in the weight's column order.
    `output_gram` (out, out), that of the loss's gradient at the outputs, is used by eigendamage; without it all outputs
    count alike. The error is ||(W - W') X||^2 / ||W X||^2 of the values as stored; the bias is left alone.
    """
    weight = weight.to(torch.float64)
    gram = gram.to(weight)
    _check_values(factored, weight, gram)
    if factored.method == "svd":
        found = _reduced_rank(weight, gram, factored.tensors()[0].shape[0])
    elif factored.method == "eigendamage":
        found = _eigenbasis(weight, gram, output_gram, factored.tensors()[1].shape)
    else:
        found = _fit(factored, weight, gram, sweeps)
    for part, value in zip(factored.parts, found, strict=True):
        own = bare(part).weight
        assert isinstance(own, Tensor)
        own.copy_(value.reshape(own.shape))
    return output_error(weight, factored.rows().to(weight.device), gram)


def _fit(factored: Factored, weight: Tensor, gram: Tensor, sweeps: int) -> list[Tensor]:
    product = factored.product()
    per_sweep = 2 * STEPS * len(product.terms) * weight.numel() * weight.shape[1]
    sweeps = min(sweeps, int(WORK / per_sweep))
    if isinstance(factored, TensorTrain):
        return alternate(product, factored.start(weight), weight, gram, sweeps=sweeps, steps=STEPS)
    channels = factored.tensors()[0].shape[1]
    lower = _channel_root(gram, channels)  # (in, in)
    white = (weight.reshape(len(weight), channels, -1).transpose(1, 2) @ lower).transpose(1, 2).flatten(1)
    inverse = torch.linalg.inv(lower)
    white_gram = _both_sides(gram, inverse)
    found = alternate(product, factored.start(white), white, white_gram, sweeps=sweeps, steps=STEPS)
    found[0] = torch.einsum("ri...,ij->rj...", found[0], inverse)
    return found


def _channel_root(gram: Tensor, channels: int) -> Tensor:
    """Lower R with R R^T the second moment of the input channels, averaged over the kernel's taps."""
    taps = gram.shape[0] // channels
    moment = gram.reshape(channels, taps, channels, taps).diagonal(dim1=1, dim2=3).mean(dim=2)
    return root(ridged(moment, DAMPING))


def _both_sides(gram: Tensor, inverse: Tensor) -> Tensor:
    """(R^-1 x I) G (R^-1 x I)^T for inputs in the order (channel, tap)."""
    n, channels = len(gram), len(inverse)
    half = (inverse @ gram.reshape(channels, -1)).reshape(n, n)
    return (inverse @ half.T.reshape(channels, -1)).reshape(n, n)


def _reduced_rank(weight: Tensor, gram: Tensor, rank: int) -> list[Tensor]:
    """The optimum of ||(W - B A) G^(1/2)|| over B (out, r) and A (r, n), from the smaller side's eigenvectors.

    B = U, A = U^T W with U of W G W^T (out, out); or, with G = L L^T and V of L^T W^T W L (n, n), B = W L V and
    A = V^T L^-1.
    """
    if weight.shape[0] <= weight.shape[1]:
        # With a ridge, so that inputs without data break ties.
        basis = leading(weight @ ridged(gram, DAMPING) @ weight.T, rank)
        return [basis.T @ weight, basis]
    lower = root(ridged(gram, DAMPING))
    half = weight @ lower
    basis = leading(half.T @ half, rank)
    return [torch.linalg.solve_triangular(lower, basis.T, upper=False, left=False), half @ basis]


def _eigenbasis(weight: Tensor, gram: Tensor, output_gram: Tensor | None, kept: tuple[int, ...]) -> list[Tensor]:
    """The kept columns and rows of the rotated weight; the way back to the outputs is least squares on them."""
    moment = torch.eye(len(weight)) if output_gram is None else output_gram
    found = eigendamage(weight, gram, moment, *kept)
    inner = found.core @ found.right  # (rows, n)
    system = inner @ ridged(gram, DAMPING)
    lower = root(ridged(system @ inner.T, DAMPING))
    return [found.right, found.core, torch.cholesky_solve(system @ weight.T, lower).T]


def _check(layer: Layer, method: str, ranks: tuple[int, ...]) -> None:
    linear = isinstance(layer, nn.Linear)
    out, fan_in = layer.weight.shape[:2]
    kernel = tuple(layer.weight.shape[2:])
    whole = isinstance(layer, nn.Linear) or layer.groups == 1
    shape = Shape(type(layer).__name__, "linear" if linear else "conv", fan_in, out, kernel, whole, 1, 1, 1)
    known = find(method)
    if not (whole and known.fits(shape)):
        raise PolicyError(
            f"A factorisation must fit its layer; {method!r} does not fit {layer}: choose another or keep it dense."
        )
    most = known.ranks(shape, known.top(shape))
    if len(ranks) != len(most) or any(not 1 <= r <= top for r, top in zip(ranks, most, strict=True)):
        raise PolicyError(
            f"Ranks of {method!r} must lie between {(1,) * len(most)} and {most} for {layer}; got {ranks}: change them."
        )


def _check_values(factored: Factored, weight: Tensor, gram: Tensor) -> None:
    product = factored.product()
    n = product.fan_in
    if weight.shape != (product.out, n) or gram.shape != (n, n):
        raise GraphError(
            f"A fit must have a weight {(product.out, n)} and a Gram matrix {(n, n)}; "
            f"got {tuple(weight.shape)} and {tuple(gram.shape)}: pass those of the layer that was factored."
        )
    if not bool(torch.isfinite(weight).all() and torch.isfinite(gram).all()):
        raise GraphError("A fit must have finite weights and moments; got NaN or infinity: check model and data.")
