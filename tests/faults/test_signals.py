"""A search with workers that is told to end: it does so soon, keeps what is finished, and goes on as if it had not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import automc
from automc.registry import EXECUTORS
from automc.study import Study
from automc.workers import Workers
from tests.cli.tiny import TASK
from tests.faults.alive import children, gone
from tests.faults.driver import check_records, driver, recorded, reopened, undisturbed, wait_for
from tests.study import lab

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("signals", "status"),
    [((signal.SIGINT,), 130), ((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM,), 143), ((signal.SIGKILL,), -9)],
    ids=["once", "twice", "terminated", "killed"],
)
def test_a_driver_that_is_told_to_end(tmp_path: Path, signals: Sequence[signal.Signals], status: int) -> None:
    path, side = tmp_path / "lab.journal", tmp_path / "side.log"
    with driver(path, side, 10_000, 0.1) as process:
        wait_for(path, 3, process)
        assert process.pid is not None
        workers = children(process.pid)
        for number in signals:  # to the whole group, as a terminal does
            os.killpg(process.pid, number)
            time.sleep(0.01)
        process.join(5.0)
        assert process.exitcode == status
    assert len(workers) == 2 and gone(workers, reaped=False)
    study = reopened(path)
    check_records(side, study)
    kept = len(study.evaluations)
    assert kept >= 3 and (status == -9 or not (tmp_path / "lab.journal.lock").is_symlink())
    whole = undisturbed(tmp_path / "whole.journal", kept + 6)
    assert lab.contents(undisturbed(path, kept + 6).evaluations) == lab.contents(whole.evaluations)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_candidates_that_hang_keep_no_driver_and_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "lab.journal"
    with driver(path, tmp_path / "side.log", 10, 1000.0) as process:
        while not (tmp_path / "begun").exists():
            assert process.is_alive()
            time.sleep(0.01)
        assert process.pid is not None
        workers = children(process.pid)
        os.killpg(process.pid, number)
        process.join(5.0)
        assert process.exitcode in (130, -9)
    assert len(workers) == 2 and gone(workers, reaped=False)
    assert not reopened(path).evaluations


SEARCH = ("search", "my_task.py:slow", "--budget", "macs<=60%", "--searcher", "tpe", "--study", "tiny")
SPREAD = ("--workers", "2", "--in-flight", "3", "--trials", "10")
SLOW = """

def slow():
    import os
    import time

    found = task()

    def metric(outputs, targets):
        time.sleep(float(os.environ.get("PAUSE", 0.0)))
        return (outputs.argmax(1) == targets).float()

    return automc.Task(found.model, calibration=found.calibration, validation=found.validation, metric=metric)
"""


def begun(folder: Path) -> subprocess.Popen[str]:
    """The command line, with a task of which a candidate takes half a second."""
    command = [sys.executable, "-m", "automc", *SEARCH, *SPREAD]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PAUSE": "0.25"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, process_group=0)


def banks(process: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"automc-bank-{process}-*"))


@pytest.mark.slow
def test_a_command_stopped_while_its_workers_begin_or_killed_at_work_goes_on_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_task.py").write_text(TASK + SLOW)
    path = tmp_path / "runs" / "tiny.journal"
    process = begun(tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline() == "study tiny in runs/tiny.journal: 10 trials\n"
    until = time.monotonic() + 60
    while not (workers := children(process.pid)):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert err == "Stopped; 0 trials are kept in runs/tiny.journal: the same command goes on.\n"
    assert gone(workers, reaped=False) and not banks(process.pid)

    process = begun(tmp_path)
    while recorded(path) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    workers, left = children(process.pid), banks(process.pid)
    process.kill()
    process.communicate()
    assert gone(workers, reaped=False)
    assert all(folder.exists() for folder in left)  # nobody could remove it
    kept = len(Study.open(path).evaluations)
    assert 2 <= kept < 10

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXECUTORS.table, "scrambled", "tests.executors.scrambled:scrambled")
    given: dict[str, Any] = {"budget": "macs<=60%", "searcher": "tpe", "study": "tiny", "trials": 10}
    whole, parts = (
        automc.search("my_task.py:slow", storage=storage, workers=Workers(2, executor, 3), **given).evaluations
        for storage, executor in (("whole.journal", "scrambled"), (path, "processes"))
    )
    assert lab.contents(parts) == lab.contents(whole) and len(parts) == 10
    assert not any(folder.exists() for folder in left) and not banks(os.getpid())
