"""Patterns: every mask has the shape its name promises, and chooses what brute force chooses."""

import itertools
from math import floor, prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from automc.compression.patterns import layout, mask_by_score, mask_by_trace
from automc.compression.prune import eliminations
from automc.errors import PolicyError
from automc.pattern import parse

SHAPES = [((6, 8), 1), ((6, 8, 3, 3), 1), ((5, 7, 3, 1), 1), ((6, 5, 3), 2), ((4, 1, 3, 3), 4)]
NAMES = ["element", "2:4", "1:4", "1x4", "4x1", "2x3", "1x5"]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grams(groups: int, n: int) -> Tensor:
    x = rand(groups, 5 * n, n, seed=3).double() @ rand(groups, n, n, seed=4).double()
    return x.transpose(1, 2) @ x / (5 * n)


def channel_major(mask: Tensor, groups: int) -> Tensor:
    """(conv-groups, out / groups, kernel positions, in / groups): the order blocks are consecutive in."""
    if mask.dim() == 2:
        return mask[None, :, None]
    return mask.reshape(groups, -1, *mask.shape[1:]).flatten(3).transpose(2, 3)


def assert_shape(mask: Tensor, name: str, groups: int) -> None:
    pattern = parse(name)
    cells = channel_major(mask, groups)
    if pattern.keep is not None:
        n, m = pattern.keep
        for start in range(0, cells.shape[3], m):
            run = cells[..., start : start + m]
            assert bool((run.sum(dim=3) <= n).all())
            if run.shape[3] == m:
                assert bool((run.sum(dim=3) == n).all())
        return
    for top in range(0, cells.shape[1], pattern.rows):
        for left in range(0, cells.shape[3], pattern.columns):
            block = cells[:, top : top + pattern.rows, :, left : left + pattern.columns]
            whole = block.sum(dim=(1, 3))
            assert bool(((whole == 0) | (whole == block.shape[1] * block.shape[3])).all())


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_layout_comes_back(shape: tuple[int, ...], groups: int, name: str) -> None:
    values = rand(*shape)
    where = layout(shape, groups, parse(name))
    laid = where.lay(values)
    assert torch.equal(where.restore(laid), values)
    assert int(where.present.sum()) == prod(shape)
    assert float(laid.abs().sum()) == pytest.approx(float(values.abs().sum()), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("way", ["score", "trace"])
def test_masks_have_the_patterns_shape_and_enough_zeros(
    shape: tuple[int, ...], groups: int, name: str, way: str
) -> None:
    pattern = parse(name)
    where, weight = layout(shape, groups, pattern), rand(*shape)
    for sparsity in (0.3, 0.5, 0.75) if pattern.share is None else (pattern.share,):
        if way == "score":
            mask = mask_by_score(weight.abs(), sparsity, pattern, where)
        else:
            traces = eliminations(weight, grams(groups, prod(shape[1:])), pattern, where)
            mask = mask_by_trace(traces, sparsity, pattern, where)
        assert mask.shape == weight.shape and mask.dtype == torch.bool
        assert_shape(mask, name, groups)
        zeros, asked = int((~mask).sum()), floor(prod(shape) * sparsity)
        slack = 0 if name == "element" else pattern.rows * pattern.columns - 1
        assert zeros >= asked
        assert pattern.keep is not None or zeros <= asked + slack


@settings(max_examples=40)
@given(st.integers(1, 60), st.floats(0, 0.99))
def test_single_weights_leave_by_score(count: int, sparsity: float) -> None:
    score = rand(1, count).abs()
    element = parse("element")
    mask = mask_by_score(score, sparsity, element, layout((1, count), 1, element))
    assert int((~mask).sum()) == floor(count * sparsity)
    if bool(mask.any()) and not bool(mask.all()):
        assert float(score[~mask].max()) <= float(score[mask].min())


def test_n_of_m_keeps_the_best_of_each_group() -> None:
    score = rand(3, 8).abs()
    pattern = parse("2:4")
    mask = mask_by_score(score, 0.5, pattern, layout((3, 8), 1, pattern))
    for row, start in itertools.product(range(3), (0, 4)):
        run = score[row, start : start + 4]
        best = max(itertools.combinations(range(4), 2), key=lambda pair: float(run[list(pair)].sum()))
        assert sorted(mask[row, start : start + 4].nonzero().flatten().tolist()) == sorted(best)


def test_blocks_run_along_channels_at_one_kernel_position() -> None:
    score = torch.ones(2, 4, 3, 3)
    score[1, :, 2, 0] = 0.1  # the weakest 1x4 block: four channels, one position
    pattern = parse("1x4")
    mask = mask_by_score(score, 4 / 72, pattern, layout((2, 4, 3, 3), 1, pattern))
    assert int((~mask).sum()) == 4
    assert not mask[1, :, 2, 0].any()


def test_row_sets_compete_by_running_maxima() -> None:
    """The greedy merge of all rows' orders, done one weight at a time with a queue of heads."""
    shape, element = (4, 6), parse("element")
    where, weight = layout(shape, 1, element), rand(*shape)
    traces = eliminations(weight, grams(1, 6), element, where)
    heads = [0] * 4
    for removed in range(24):
        mask = mask_by_trace(traces, (removed + 1e-9) / 24, element, where)
        gone = torch.zeros(shape, dtype=torch.bool)
        for row, count in enumerate(heads):
            gone[row, traces.order[row, :count]] = True
        assert torch.equal(~mask, gone)
        open_rows = [r for r in range(4) if heads[r] < 6]
        heads[min(open_rows, key=lambda r: float(traces.loss[r, heads[r]]))] += 1


@pytest.mark.parametrize("name", ["", "4:2", "2:2", "0:4", "x4", "4x", "1x0", "-1x4", "2:4x1", "channel", "1X4"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="pattern"):
        parse(name)
