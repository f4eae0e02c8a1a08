"""Stages of the validation samples: every sample once, at random, as the batches had it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automc.errors import TaskError
from automc.scoring.racing import LEAST
from automc.scoring.stages import check_stages, staged
from automc.task import Batch


def batches(sizes: list[int], width: int = 2) -> list[Batch]:
    """Inputs and targets that tell which sample they are."""
    count = sum(sizes)
    x, y = torch.arange(count * width).reshape(count, width), torch.arange(count)
    return [((a, a * 2), b) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sets(st.integers(30, 500), max_size=3), st.integers(0, 99)
)
def test_every_sample_is_in_one_stage_with_its_own_target(sizes: list[int], ends: set[int], seed: int) -> None:
    count = sum(sizes)
    found = staged(batches(sizes), sorted(ends), seed)
    lengths = np.cumsum([len(s.rows) for s in found]).tolist()
    assert lengths == [*(n for n in sorted(ends) if n < count), count]
    assert sorted(torch.cat([s.rows for s in found]).tolist()) == list(range(count))
    for stage in found:
        assert torch.equal(torch.cat(stage.samples.targets), stage.rows)
        inputs = stage.samples.chunks
        assert torch.equal(torch.cat([x[:, 0] for x, _ in inputs]), 2 * stage.rows)
        assert torch.equal(torch.cat([x[:, 1] for _, x in inputs]), 2 * (2 * stage.rows + 1))


def test_the_order_is_that_of_the_seed_and_nothing_else() -> None:
    torch.manual_seed(5)
    first, again, other = (staged(batches([300, 300]), (100,), seed)[0].rows for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_each_stage_is_a_random_subset_not_a_piece_of_the_data() -> None:
    drawn = np.array([staged(batches([1000]), (200,), seed)[0].rows.double().mean() for seed in range(60)])
    error = np.sqrt(1000**2 / 12 / 200 * 0.8)
    assert np.abs(drawn - 499.5).max() < 4.5 * error and drawn.std() == pytest.approx(error, rel=0.35)


def test_earlier_stages_are_the_same_whatever_comes_later() -> None:
    short, long = staged(batches([900]), (100,), 0), staged(batches([900]), (100, 400), 0)
    assert torch.equal(short[0].rows, long[0].rows)


def test_batches_of_several_shapes_stay_apart_and_of_one_are_joined() -> None:
    mixed = [*batches([20] * 5), *batches([20] * 5, width=3)]
    first = staged(mixed, (60,), 0)[0]
    assert len(first.samples._batches) == 2
    assert len(staged(batches([10] * 20), (60,), 0)[0].samples._batches) == 1


def test_without_stages_the_batches_are_what_is_scored() -> None:
    given = batches([20, 30])
    for ends in ((), (50,), (50, 900)):
        (only,) = staged(given, ends, 0)
        assert only.samples._batches is given


def test_inputs_longer_than_targets_cannot_be_staged() -> None:
    odd: list[Batch] = [((torch.zeros(80, 2),), torch.zeros(40))]
    with pytest.raises(TaskError, match=r"of one length; a batch has \[80, 40\]"):
        staged(odd, (30,), 0)


@pytest.mark.parametrize(
    "stages", [(1024, 256), (256, 256), (0, 256), (LEAST - 1,), (-5,), (256.0,), ("256",), (True,)]
)
def test_stages_that_are_none_are_refused(stages: Any) -> None:
    with pytest.raises(TaskError, match="rising numbers of samples, 30 or more"):
        check_stages(stages)
