"""Kronecker-factored criteria against the Fisher quadratic written out."""

import pytest
import torch
from torch import Tensor

from automc.criteria.criterion import LayerView
from automc.criteria.kron import eigendamage, kron_obs_update
from automc.registry import CRITERIA


def spd(n: int, seed: int) -> Tensor:
    x = torch.randn(3 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / (3 * n)


def weight() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def quadratic(change: Tensor, a: Tensor, s: Tensor) -> float:
    """vec(D)^T (S kron A) vec(D) / 2 with the Kronecker product formed."""
    flat = change.reshape(-1)
    return float(flat @ torch.kron(s, a) @ flat) / 2


def scores(name: str, a: Tensor, s: Tensor) -> Tensor:
    view = LayerView(weight(), gram=a[None], output_gram=s[None])
    return CRITERIA.load(name).score(view).sum(dim=1)


def test_kron_obd_is_the_loss_of_zeroing_a_channel() -> None:
    a, s = spd(6, 1), spd(4, 2)
    for i, score in enumerate(scores("kron_obd", a, s)):
        change = torch.zeros(4, 6, dtype=torch.float64)
        change[i] = -weight()[i]
        assert float(score) == pytest.approx(quadratic(change, a, s))


def test_kron_obs_is_the_loss_after_the_update_and_the_update_is_the_best() -> None:
    a, s = spd(6, 1), spd(4, 2)
    for i, score in enumerate(scores("kron_obs", a, s)):
        updated = kron_obs_update(weight(), s, i)
        assert float(updated[i].abs().max()) < 1e-6
        loss = quadratic(updated - weight(), a, s)
        assert float(score) == pytest.approx(loss, rel=1e-3)
        assert loss <= float(scores("kron_obd", a, s)[i]) * (1 + 1e-6)
        generator = torch.Generator().manual_seed(i)
        for _ in range(20):  # no other change that removes the channel costs less
            other = updated + 0.05 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
            other[i] = 0
            assert quadratic(other - weight(), a, s) >= loss - 1e-6


def test_eigendamage_predicts_its_own_loss_and_keeps_all_without_any() -> None:
    a, s = spd(6, 1), spd(4, 2)
    whole = eigendamage(weight(), a, s, 4, 6)
    torch.testing.assert_close(whole.left @ whole.core @ whole.right, weight())
    assert whole.loss == pytest.approx(0.0, abs=1e-12)
    for rows, columns in ((3, 6), (4, 4), (2, 3)):
        found = eigendamage(weight(), a, s, rows, columns)
        rebuilt = found.left @ found.core @ found.right
        assert found.loss == pytest.approx(quadratic(rebuilt - weight(), a, s), rel=1e-9)
        assert [tuple(x.shape) for x in (found.left, found.core, found.right)] == [
            (4, rows),
            (rows, columns),
            (columns, 6),
        ]


def test_in_the_eigenbasis_less_is_lost_than_among_channels() -> None:
    a, s = spd(6, 1), spd(4, 2)
    channels = scores("kron_obd", a, s)
    assert eigendamage(weight(), a, s, 3, 6).loss <= float(channels.min())
