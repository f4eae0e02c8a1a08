"""Drivers and workers killed at random moments: no finished trial is lost, none is doubled, and the end is the same."""

import random
import time
from pathlib import Path

import pytest

from tests.faults.alive import children, gone
from tests.faults.driver import check_records, driver, kill_worker, recorded, reopened, undisturbed, wait_for
from tests.study import lab


def lives(tmp_path: Path, kills: int, seed: int) -> None:
    """Lives of drivers, each of which loses workers before it is killed itself."""
    path, side, rng = tmp_path / "lab.journal", tmp_path / "side.log", random.Random(seed)
    lab.study(path)
    done = 0
    while done < kills:
        before = recorded(path)
        with driver(path, side, before + 10_000, 0.02) as process:
            if rng.random() < 0.8:  # otherwise it may be killed before its workers begin
                wait_for(path, before + 1, process)
            for _ in range(rng.randrange(4)):
                time.sleep(rng.uniform(0.0, 0.3))
                done += kill_worker(process, rng)
            time.sleep(rng.uniform(0.0, 0.3))
            workers = children(process.pid)
            process.kill()
            process.join()
            done += 1
        check_records(side, reopened(path))
        assert gone(workers, reaped=False)
    study = reopened(path)
    trials = len(study.evaluations)
    assert trials and all(e.ok for e in study.evaluations)
    whole = undisturbed(tmp_path / "whole.journal", trials + 10)
    assert lab.contents(study.evaluations) == lab.contents(whole.evaluations[:trials])
    ended = undisturbed(path, trials + 10)
    assert lab.contents(ended.evaluations) == lab.contents(whole.evaluations)
    assert ended.best.number == whole.best.number


def test_ten_kills_of_drivers_and_workers(tmp_path: Path) -> None:
    lives(tmp_path, 10, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_of_drivers_and_workers(tmp_path: Path) -> None:
    lives(tmp_path, 200, seed=1)
