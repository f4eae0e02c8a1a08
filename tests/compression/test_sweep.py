"""Masked least squares, GPTQ and SparseGPT against direct solves, brute force and the published loops."""

import itertools

import pytest
import torch
from torch import Tensor

from automc.compression import sweep as module
from automc.compression.sweep import inverse_root, mask_by_sweep, refit_masked, round_rows, sweep
from automc.pattern import parse


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram_of(n: int, seed: int = 1) -> Tensor:
    x = rand(8 * n, n, seed=seed) @ rand(n, n, seed=seed + 1)
    return x.T @ x / len(x)


def error(rows: Tensor, target: Tensor, gram: Tensor) -> float:
    gap = rows - target
    return float(((gap @ gram) * gap).sum())


def nearest(rows: Tensor, scale: Tensor, top: int) -> Tensor:
    return (rows / scale[:, None]).round().clamp(-top, top)


def test_masked_refit_is_the_direct_solve_of_each_row() -> None:
    gram, target = gram_of(7), rand(5, 7)
    mask = rand(5, 7, seed=4) > -0.3
    mask[2] = False  # a row with nothing left
    fitted = refit_masked(gram, gram @ target.T, mask, 1e-12)
    for row in range(5):
        stay = mask[row].nonzero().flatten()
        direct = torch.zeros(7, dtype=torch.float64)
        direct[stay] = torch.linalg.solve(gram[stay][:, stay], gram[stay] @ target[row])
        torch.testing.assert_close(fitted[row], direct, rtol=1e-6, atol=1e-8)
    assert not fitted[~mask].any()


def test_beyond_the_work_limit_errors_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gram, target, mask = gram_of(24), rand(6, 24), rand(6, 24, seed=4) > 0
    exact = refit_masked(gram, gram @ target.T, mask, 1e-9)
    monkeypatch.setattr(module, "EXACT_WORK", 0)
    swept = refit_masked(gram, gram @ target.T, mask, 1e-9)
    assert not swept[~mask].any()
    masked = error(target * mask, target, gram)
    assert error(exact, target, gram) <= error(swept, target, gram) < masked


def test_the_root_is_that_of_the_inverse() -> None:
    gram = gram_of(6)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    root = inverse_root(gram, 1e-9, order)[0]
    assert torch.equal(root, root.triu())
    torch.testing.assert_close(root.T @ root, torch.linalg.inv(gram[order][:, order]), rtol=1e-4, atol=1e-6)


def obq_sequential(row: Tensor, gram: Tensor, scale: float, top: int, order: list[int]) -> Tensor:
    """Rounds one row in a given order; after each column the open ones are solved for anew: what GPTQ computes."""
    target, values = row.clone(), row.clone()
    for i, column in enumerate(order):
        values[column] = (values[column] / scale).round().clamp(-top, top) * scale
        left, done = order[i + 1 :], order[: i + 1]
        if left:
            shift = gram[left][:, done] @ (values[done] - target[done])
            values[left] = target[left] - torch.linalg.solve(gram[left][:, left], shift)
    return (values / scale).round()


@pytest.mark.parametrize("block", [2, 128])
def test_gptq_is_rounding_with_the_open_columns_solved_for_after_each(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DAMPING", 1e-10)
    monkeypatch.setattr(sweep, "__defaults__", (None, block))
    gram, rows = gram_of(7), rand(4, 7)
    scale = rows.abs().amax(dim=1) / 3
    order = gram.diagonal().argsort(descending=True).tolist()
    codes = round_rows(rows, gram, scale, 3)
    for row in range(4):
        direct = obq_sequential(rows[row], gram, float(scale[row]), 3, order)
        torch.testing.assert_close(codes[row], direct)


def test_gptq_with_a_mask_is_gptq_of_each_row_on_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DAMPING", 1e-10)
    gram, mask = gram_of(9), rand(6, 9, seed=4) > -0.4
    mask[1], mask[3] = False, True
    rows = rand(6, 9) * mask
    scale = rows.abs().amax(dim=1).clamp_min(0.1) / 3
    order = gram.diagonal().argsort(descending=True).tolist()
    codes = round_rows(rows, gram, scale, 3, mask)
    for row in range(6):
        stay = mask[row].nonzero().flatten().tolist()
        own = [stay.index(column) for column in order if column in stay]
        direct = torch.zeros(9, dtype=torch.float64)
        direct[stay] = obq_sequential(rows[row, stay], gram[stay][:, stay], float(scale[row]), 3, own)
        torch.testing.assert_close(codes[row], direct)


def test_gptq_with_a_mask_keeps_zeros_and_beats_nearest() -> None:
    total = {"gptq": 0.0, "nearest": 0.0}
    for seed in range(5):
        gram, target = gram_of(32, seed), rand(8, 32, seed=seed)
        mask = rand(8, 32, seed=seed + 50) > 0
        rows = refit_masked(gram, gram @ target.T, mask, 1e-6)
        scale = rows.abs().amax(dim=1) / 7
        codes = round_rows(rows, gram, scale, 7, mask)
        assert not codes[~mask].any()
        assert float(codes.abs().max()) <= 7
        total["gptq"] += error(codes * scale[:, None], rows, gram)
        total["nearest"] += error(nearest(rows, scale, 7) * scale[:, None], rows, gram)
    assert total["gptq"] < 0.7 * total["nearest"]


def test_gptq_lies_between_nearest_and_the_optimum() -> None:
    sums = torch.zeros(3, dtype=torch.float64)
    for seed in range(10):
        gram, rows = gram_of(5, seed), rand(1, 5, seed=seed + 9)
        scale = rows.abs().amax(dim=1)
        grid = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=5)), dtype=torch.float64) * scale
        best = min(error(point[None], rows, gram) for point in grid)
        found = error(round_rows(rows, gram, scale, 1) * scale[:, None], rows, gram)
        sums += torch.tensor([best, found, error(nearest(rows, scale, 1) * scale[:, None], rows, gram)])
        assert best <= found + 1e-9
    assert sums[1] < sums[2]


def test_sparsegpt_follows_its_published_loop() -> None:
    """Algorithm 1 of the paper with the explicit inverse, one column after another."""
    gram, rows = gram_of(8), rand(3, 8)
    system = gram + module.DAMPING * gram.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    values, gone = rows.clone(), torch.zeros(3, 8, dtype=torch.bool)
    for i in range(8):
        inverse = torch.linalg.inv(system[i:][:, i:])
        if i % 4 == 0:  # the mask of the next four, as open columns stand now
            roots = torch.linalg.cholesky(inverse, upper=True).diagonal()[:4]
            saliency = (values[:, i : i + 4] / roots).square()
            gone[:, i : i + 4] = saliency.argsort(dim=1).argsort(dim=1) < 2
        lost = values[:, i] * gone[:, i]
        values[:, i:] -= (lost / inverse[0, 0])[:, None] * inverse[0]
    mask = mask_by_sweep(rows, gram, 0.5, parse("2:4"))
    assert torch.equal(mask, ~gone)


def test_dead_and_equal_inputs_give_finite_weights() -> None:
    gram = gram_of(6)
    gram[[1]] = 0
    gram[:, [1]] = 0
    gram[3], gram[:, 3] = gram[4], gram[:, 4]
    gram[3, 3] = gram[4, 4]  # two equal inputs: a singular matrix
    rows, mask = rand(4, 6), rand(4, 6, seed=2) > -0.5
    fitted = refit_masked(gram, gram @ rows.T, mask, 1e-6)
    codes = round_rows(fitted, gram, torch.ones(4, dtype=torch.float64), 7, mask)
    assert bool(torch.isfinite(fitted).all()) and bool(torch.isfinite(codes).all())
