"""Many candidates: no module or tensor of one outlives it, and the process does not grow."""

import gc
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import automc
from automc.evaluation import Evaluation
from tests.faults.files.readers import Net, small, task

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def alive() -> Counter[str]:
    """Modules and tensors that something still refers to."""
    gc.collect()
    kinds = (type(x) for x in gc.get_objects())
    return Counter(k.__name__ for k in kinds if issubclass(k, (nn.Module, torch.Tensor)))


class Meter:
    """Told of each trial, takes stock at some of them."""

    def __init__(self, *at: int) -> None:
        self.at, self.seen = at, 0
        self.counts: list[int] = []
        self.bytes: list[int] = []

    def __call__(self, evaluation: Evaluation) -> None:
        self.seen += 1
        if self.seen in self.at:
            self.counts.append(sum(alive().values()))
            self.bytes.append(resident())


def searched(folder: Path, trials: int, meter: Meter) -> None:
    """A search of the small net, with hardly any room for what candidates share."""
    where = folder / "x.journal"
    automc.search(
        task(), budget="macs<=60%", searcher="random", trials=trials, storage=where, progress=meter, memory_bytes=2**20
    )


def test_what_candidates_leave_in_memory_is_bounded(tmp_path: Path) -> None:
    meter = Meter(20, 40, 60)
    searched(tmp_path, 60, meter)
    assert meter.seen == 60
    grown = [b - a for a, b in zip(meter.counts, meter.counts[1:], strict=False)]
    assert min(grown) <= 5, meter.counts  # a candidate that stayed would add some ten each


def test_nothing_of_a_search_is_alive_when_it_is_over(tmp_path: Path) -> None:
    searched(tmp_path / "first", 2, Meter())
    before = alive()
    for number in range(3):
        searched(tmp_path / str(number), 3, Meter())
    left = alive() - before
    assert sum(left.values()) == 0, left


def test_models_that_are_saved_and_loaded_again_and_again_leave_nothing(tmp_path: Path) -> None:
    automc.save(small(), tmp_path)
    automc.load(tmp_path, Net)
    before = alive()
    for _ in range(10):
        automc.load(tmp_path, Net)
        automc.save(small(), tmp_path)
    assert not alive() - before


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["random", "joint"])
def test_five_hundred_candidates_of_digits_take_no_more_memory_than_a_hundred(searcher: str, tmp_path: Path) -> None:
    meter = Meter(100, 200, 300, 400, 500)
    automc.search(
        "digits",
        budget="macs<=50%",
        searcher=searcher,
        trials=500,
        storage=tmp_path / "x.journal",
        progress=meter,
        memory_bytes=2**24,
    )
    assert meter.seen == 500
    assert meter.bytes[-1] < 1.05 * meter.bytes[0], meter.bytes
    assert meter.counts[-1] < 1.05 * meter.counts[0], meter.counts
