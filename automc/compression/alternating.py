"""Alternating least squares: factors of a weight fitted to a layer's outputs, one factor at a time.

The weight W' (out, n) is a product of factors and linear in each of them, so with the others fixed the output error
||(W - W') G^(1/2)||_F^2, G the second moment of the layer's inputs, is quadratic in one factor. The last factor has a
closed form. The others take a few steps of conjugate gradients, which need products with G and no system of all the
factor's entries; every step lowers the error, so stopping early is safe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from automc.criteria.roots import ridged, root

DAMPING = 1e-10


@dataclass(frozen=True, slots=True)
class Product:
    """An einsum that makes a dense weight of its factors."""

    terms: tuple[str, ...]
    """Indices of each factor, first to last."""
    target: str
    """Indices of the weight, outputs before inputs."""
    out: int
    """Rows of the weight; indices may run further, over rows that do not exist."""
    fan_in: int
    """Columns, likewise."""
    outputs: int = 1
    """How many indices of the target are outputs."""

    def rows(self, factors: Sequence[Tensor]) -> Tensor:
        """The weight (out, n)."""
        return self._matrix(factors)[: self.out, : self.fan_in]

    def pull(self, factors: Sequence[Tensor], k: int, rows: Tensor) -> Tensor:
        """The adjoint of `rows` in factor k: from a gradient (out, n) of the weight to that of the factor."""
        sizes = {c: s for term, f in zip(self.terms, factors, strict=True) for c, s in zip(term, f.shape, strict=True)}
        full = [sizes[c] for c in self.target]
        split = prod(full[: self.outputs]), prod(full[self.outputs :])
        padded = F.pad(rows, (0, split[1] - rows.shape[1], 0, split[0] - rows.shape[0])).reshape(full)
        others = [i for i in reversed(range(len(factors))) if i != k]  # the output side first: it shrinks most
        equation = ",".join((self.target, *(self.terms[i] for i in others))) + "->" + self.terms[k]
        return torch.einsum(equation, padded, *(factors[i] for i in others))

    def basis(self, factors: Sequence[Tensor]) -> Tensor:
        """What the last factor (out, q) is multiplied with (q, n)."""
        last = factors[-1]
        q = prod(last.shape[1:])
        unit = torch.eye(q, dtype=last.dtype, device=last.device).reshape(q, *last.shape[1:])
        return self._matrix([*factors[:-1], unit])

    def _matrix(self, factors: Sequence[Tensor]) -> Tensor:
        weight = torch.einsum(f"{','.join(self.terms)}->{self.target}", *factors)
        return weight.reshape(prod(weight.shape[: self.outputs]), -1)


def output_error(weight: Tensor, fitted: Tensor, gram: Tensor) -> float:
    """||(W - W') X||^2 / ||W X||^2 from the inputs' second moment; 0 where both are 0."""
    gap = weight - fitted
    lost, energy = ((gap @ gram) * gap).sum(), ((weight @ gram) * weight).sum()
    return float(lost.clamp_min(0) / energy.clamp_min(1e-30))


def alternate(
    product: Product, factors: Sequence[Tensor], weight: Tensor, gram: Tensor, *, sweeps: int, steps: int
) -> list[Tensor]:
    """Factors with a lower output error than the given ones: `sweeps` times over all of them.

    Stops early when a sweep gains less than a thousandth of the error. Without sweeps only the last factor is fitted.
    """
    found = list(factors)
    found[-1] = _last(product, found, weight, gram, steps)
    before = output_error(weight, product.rows(found), gram)
    for _ in range(sweeps):
        for k in range(len(found) - 1):
            found[k] = _descend(product, found, k, weight, gram, steps)
        found[-1] = _last(product, found, weight, gram, steps)
        after = output_error(weight, product.rows(found), gram)
        if after >= before * (1 - 1e-3):
            break
        before = after
    return found


def leading(matrix: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the `rank` largest eigenvalues of a symmetric matrix, largest first."""
    vectors: Tensor = torch.linalg.eigh(matrix).eigenvectors
    return vectors[:, -rank:].flip(1)


def _last(product: Product, factors: Sequence[Tensor], weight: Tensor, gram: Tensor, steps: int) -> Tensor:
    """C + (W - C P) G P^T (P G P^T + lambda I)^-1: the least-squares C, written so that damping cannot do harm."""
    if product.outputs > 1:  # a core of a tensor train meets its outputs through the cores before it
        return _descend(product, factors, len(factors) - 1, weight, gram, steps)
    basis, last = product.basis(factors), factors[-1]
    seen = gram @ basis.T  # (n, q)
    core = root(ridged(basis @ seen, DAMPING))
    gap = weight - product.rows(factors)
    return last + torch.cholesky_solve((gap @ seen).T, core).T.reshape(last.shape)


def _descend(product: Product, factors: Sequence[Tensor], k: int, weight: Tensor, gram: Tensor, steps: int) -> Tensor:
    """Conjugate gradients on factor k."""
    moved = list(factors)
    residual = product.pull(factors, k, (weight - product.rows(factors)) @ gram)
    direction, square = residual, residual.square().sum()
    found, enough = factors[k], 1e-20 * square
    for _ in range(steps):
        moved[k] = direction
        applied = product.pull(factors, k, product.rows(moved) @ gram)
        curvature = (direction * applied).sum()
        if not (square > enough and curvature > 0):
            break
        length = square / curvature
        found, residual = found + length * direction, residual - length * applied
        square, previous = residual.square().sum(), square
        direction = residual + square / previous * direction
    return found
