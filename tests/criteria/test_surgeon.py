"""Elimination with compensation against brute force: every step is the best one, every loss the true one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from automc.criteria import surgeon
from automc.criteria.curvature import damped_inverse
from automc.criteria.surgeon import Reader, Surgeon, eliminate, trace

TINY = 1e-10


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram_of(n: int, seed: int = 1) -> Tensor:
    x = rand(6 * n, n, seed=seed) @ rand(n, n, seed=seed + 1)
    return x.T @ x / len(x)


def least_error(weight: Tensor, gram: Tensor, gone: list[int]) -> float:
    """Output error of rows (r, n) when columns are gone and the rest is least squares, by a direct solve."""
    stay = [j for j in range(len(gram)) if j not in gone]
    fitted = torch.zeros_like(weight)
    if stay:
        fitted[:, stay] = torch.linalg.solve(gram[stay][:, stay], (weight @ gram[:, stay]).T).T
    gap = fitted - weight
    return float(((gap @ gram) * gap).sum())


def columns(blocks: list[int], width: int) -> list[int]:
    return [b * width + i for b in blocks for i in range(width)]


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(0, 99))
def test_each_step_removes_the_block_that_costs_least_and_says_what_it_costs(
    sets: int, rows: int, units: int, width: int, seed: int
) -> None:
    n = units * width
    gram, weight = gram_of(n, seed), rand(sets, rows, n, seed=seed + 7)
    found = trace(weight, damped_inverse(gram, TINY)[None], width)
    for s in range(sets):
        order = found.order[s].tolist()
        assert sorted(order) == list(range(units))
        for step in range(units):
            before = least_error(weight[s], gram, columns(order[:step], width))
            rest = [u for u in range(units) if u not in order[:step]]
            costs = {u: least_error(weight[s], gram, columns([*order[:step], u], width)) - before for u in rest}
            scale = max(abs(before), *costs.values())
            assert costs[order[step]] == pytest.approx(min(costs.values()), abs=1e-5 * scale)
            assert float(found.loss[s, step]) == pytest.approx(costs[order[step]], abs=1e-5 * scale)


def test_waiting_updates_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inverse = rand(4, 1, 40), damped_inverse(gram_of(40))[None]
    waiting = trace(weight, inverse)
    monkeypatch.setattr(surgeon, "PENDING", 1)
    monkeypatch.setattr(surgeon, "CHUNK_BYTES", 1)  # and one row set at a time
    at_once = trace(weight, inverse)
    assert torch.equal(waiting.order, at_once.order)
    torch.testing.assert_close(waiting.loss, at_once.loss, rtol=1e-6, atol=1e-9)


def test_row_sets_may_have_gram_matrices_of_their_own() -> None:
    grams = [gram_of(6, seed) for seed in (1, 5)]
    weight = rand(2, 1, 6)
    both = trace(weight, torch.stack([damped_inverse(g) for g in grams]))
    for s, gram in enumerate(grams):
        alone = trace(weight[s : s + 1], damped_inverse(gram)[None])
        assert torch.equal(both.order[s], alone.order[0])


def test_a_quota_is_kept_in_every_run_of_neighbours() -> None:
    quota = torch.tensor([2, 2, 1])
    found = trace(rand(5, 1, 12), damped_inverse(gram_of(12))[None], quota=quota)
    assert found.order.shape == (5, 5)
    for row in found.order:
        assert torch.equal(torch.bincount(row // 4, minlength=3), quota)


def test_the_weights_left_are_the_least_squares_ones() -> None:
    gram, weight = gram_of(8), rand(1, 3, 8)
    machine = Surgeon(weight, damped_inverse(gram, TINY)[None], 2)
    for unit in (2, 0):
        machine.remove(torch.tensor([unit]))
    stay = [2, 3, 6, 7]
    direct = torch.linalg.solve(gram[stay][:, stay], (weight[0] @ gram[:, stay]).T).T
    torch.testing.assert_close(machine.weight[0][:, stay], direct, rtol=1e-5, atol=1e-6)
    assert float(machine.weight[0][:, [0, 1, 4, 5]].abs().max()) < 1e-12


def test_dead_inputs_leave_first_and_cost_nothing() -> None:
    gram, weight = gram_of(6), rand(2, 1, 6)
    gram[[1, 4]] = 0
    gram[:, [1, 4]] = 0
    weight[:, :, [1, 4]] = 0
    found = trace(weight, damped_inverse(gram)[None])
    assert all(set(row[:2].tolist()) == {1, 4} for row in found.order)
    assert float(found.loss[:, :2].abs().max()) < 1e-12
    assert bool(torch.isfinite(found.loss).all())


def test_readers_share_a_unit_and_its_cost_is_the_sum_of_relative_errors() -> None:
    grams = [gram_of(4, 1), gram_of(8, 2)]
    readers = [
        Reader(rand(3, 4), grams[0], torch.arange(4)[:, None]),
        Reader(rand(5, 8, seed=3), grams[1], torch.arange(8).reshape(2, 4).T),  # units with scattered columns
    ]
    energies = [float(((r.weight @ r.gram) * r.weight).sum()) for r in readers]

    def error(gone: tuple[int, ...]) -> float:
        each = [
            least_error(r.weight, r.gram, [int(c) for u in gone for c in r.columns[u]]) / e
            for r, e in zip(readers, energies, strict=True)
        ]
        return sum(each)

    found = eliminate(readers)
    first = min(itertools.combinations(range(4), 1), key=error)
    assert int(found.order[0]) == first[0]
    for k in range(5):
        assert float(found.error[k]) == pytest.approx(
            error(tuple(found.order[:k].tolist())), rel=2e-2, abs=1e-6
        )  # damped
    given_order = eliminate(readers, [3, 1, 0, 2])
    assert given_order.order.tolist() == [3, 1, 0, 2]
    assert float(given_order.error[2]) == pytest.approx(error((3, 1)), rel=2e-2)
