"""Least squares of a layer's outputs on its inputs, from sums over sampled rows, and the intercept that goes with it.

With X, Y the sampled rows minus their means: W = Y^T X (X^T X + lambda I)^-1, lambda = ridge * mean(diag(X^T X)), and
the intercept is mean(y) - W mean(x), taken after rounding, so rounding never shifts a mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from automc.compression.calibration import Moments
from automc.compression.chains import FactoredLayer
from automc.compression.sweep import refit_masked
from automc.compression.tensor_train import TensorTrain
from automc.criteria.roots import damped, root

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, eq=False, slots=True)
class Regression:
    """Sampled rows of one layer as sums: what a least-squares fit with intercept needs, per conv-group."""

    gram: Tensor
    """Centred X^T X / rows (groups, n, n), float64."""
    cross: Tensor
    """Centred X^T Y / rows (groups, n, out / groups), float64."""
    mean_x: Tensor
    """(groups, n)"""
    mean_y: Tensor
    """(groups, out / groups)"""

    @classmethod
    def of(cls, x: Tensor, y: Tensor, *, intercept: bool) -> "Regression":
        """From input rows x (groups, rows, n) and target rows y (rows, out)."""
        groups, rows, _ = x.shape
        y = y.reshape(rows, groups, -1).transpose(0, 1)  # (groups, rows, out / groups)
        mean_x, mean_y = x.mean(dim=1), y.mean(dim=1)
        if not intercept:
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        x, y = x - mean_x[:, None], y - mean_y[:, None]  # before squares, which would round
        gram, cross = ((x.transpose(1, 2) @ z).to(torch.float64) / rows for z in (x, y))
        return cls(gram, cross, mean_x.to(torch.float64), mean_y.to(torch.float64))

    @classmethod
    def of_moments(cls, weight: Tensor, known: Moments, columns: Tensor | None = None) -> "Regression":
        """For dense rows (out, n) that read only some columns of each conv-group from now on, or all as before."""
        groups, n = known.mean.shape
        columns = torch.arange(n) if columns is None else columns
        rows = weight.to(torch.float64).reshape(groups, -1, n).transpose(1, 2)  # (groups, n, out / groups)
        mean_y = (known.mean[:, None] @ rows)[:, 0]
        covariance = known.centred
        cross = covariance[:, columns] @ rows
        return cls(covariance[:, columns][:, :, columns], cross, known.mean[:, columns], mean_y)

    @property
    def finite(self) -> bool:
        """Whether all sums are finite; no entry of a Gram matrix exceeds its diagonal's."""
        return all(bool(torch.isfinite(x).all()) for x in (self.gram.diagonal(dim1=1, dim2=2), self.cross))

    @property
    def second_moment(self) -> Tensor:
        """X^T X / rows (groups, n, n), not centred."""
        return self.gram + self.mean_x[:, :, None] * self.mean_x[:, None, :]

    def solve(self, ridge: float, mask: Tensor | None = None) -> Tensor:
        """Rows of the fitted weight (out, n), zero where a mask (out, n) is."""
        n = self.gram.shape[1]
        if mask is not None:
            parts = zip(self.gram, self.cross, mask.reshape(len(self.gram), -1, n), strict=True)
            return torch.cat([refit_masked(gram, cross, kept, ridge) for gram, cross, kept in parts])
        system = torch.stack([damped(gram, ridge) for gram in self.gram])
        fitted = torch.cholesky_solve(self.cross, root(system))  # (groups, n, out / groups)
        return fitted.transpose(1, 2).reshape(-1, n)

    def towards(self, rows: Tensor) -> "Regression":
        """The same inputs, but to give what weight rows (out, n) make of them; one conv-group.

        Rows of n / width entries read one column of a kernel (in, height, width) at a time: sums are means over these.
        """
        columns = rows.shape[1]
        width = self.gram.shape[1] // columns
        gram = self.gram.reshape(1, columns, width, columns, width).diagonal(dim1=2, dim2=4).mean(dim=3)
        mean_x = self.mean_x.reshape(1, columns, width).mean(dim=2)
        wanted = rows.to(torch.float64).T[None]  # (1, columns, out)
        return Regression(gram, gram @ wanted, mean_x, (mean_x[:, None] @ wanted)[:, 0])

    def behind(self, rows: Tensor) -> "Regression":
        """For a layer that reads what weight rows (r, n) make of the inputs, to give the same; one conv-group."""
        a = self._grouped(rows)  # (1, r, n)
        return Regression(a @ self.gram @ a.transpose(1, 2), a @ self.cross, self._mean(a)[None], self.mean_y)

    def output(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (out,) of the output of weight rows (out, n), before any intercept."""
        grouped = self._grouped(rows)
        variance = ((grouped @ self.gram) * grouped).sum(dim=2).flatten()
        return self._mean(grouped), variance.clamp_min(0)

    def shift(self, rows: Tensor) -> Tensor:
        """By how much the mean of the target exceeds that of the output of weight rows (out, n)."""
        return self.mean_y.flatten() - self._mean(self._grouped(rows))

    def _grouped(self, rows: Tensor) -> Tensor:
        """Weight rows (groups, out / groups, n), float64."""
        groups, n = self.mean_x.shape
        return rows.to(torch.float64).reshape(groups, -1, n)

    def _mean(self, grouped: Tensor) -> Tensor:
        return (grouped @ self.mean_x[:, :, None]).flatten()


def rows_of(layer: nn.Module) -> Tensor:
    """The weight rows (out, n) of a layer, or those its factors stand for."""
    if isinstance(layer, (FactoredLayer, TensorTrain)):
        return layer.rows()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.flatten(1)


@torch.no_grad()
def set_intercept(layer: nn.Module, norm: nn.Module | None, fit: Regression) -> None:
    """Makes the layer's output mean the target's; a batch norm behind it gets the true statistics of the fitted layer.

    The norm is then the identity plus the intercept, in eval mode and, on the calibration data, in training mode alike.
    """
    bias = layer.bias
    mean, variance = fit.output(rows_of(layer))
    target = fit.mean_y.flatten()
    if norm is None:
        if isinstance(bias, Tensor):
            bias.copy_(target - mean)
        return
    if isinstance(bias, Tensor):
        bias.zero_()
    assert isinstance(norm, NORMS) and norm.running_mean is not None and norm.running_var is not None
    if norm.affine:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(target)
    else:
        norm.running_mean.copy_(mean - target)
        norm.running_var.fill_(1.0 - norm.eps)


@torch.no_grad()
def shift_intercept(layer: nn.Module, norm: nn.Module | None, shift: Tensor) -> None:
    """Hands the shift of the output's mean to the layer's bias, or to the batch norm behind it; neither: it stays."""
    bias = layer.bias
    if isinstance(bias, Tensor):
        bias += shift.to(bias.dtype)
    elif norm is not None and absorbs(norm):
        norm.running_mean -= shift  # type: ignore[operator]


def absorbs(norm: nn.Module) -> bool:
    """Whether a norm can take an intercept: a batch norm with running statistics."""
    return isinstance(norm, NORMS) and norm.running_mean is not None
