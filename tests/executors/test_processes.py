"""Worker processes under everything that may happen to a process."""

import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from automc.errors import ExecutorError
from automc.executors.pool import Pool
from automc.executors.processes import processes
from tests.executors import jobs
from tests.faults.alive import alive, children, gone

ROOT = Path(__file__).parents[2]

Served = Pool[Any, Any]


def lost(job: Any, reason: str, seconds: float) -> tuple[str, str]:
    return ("lost", reason)


def started(make: Callable[[], Any] = jobs.make, **options: Any) -> Served:
    return processes(make, lost, **{"workers": 1, "slots": 64} | options)


@pytest.fixture(scope="module")
def pool() -> Iterator[Served]:
    """Two workers that most of these tests share."""
    with closing(started(workers=2)) as found:
        yield found
        last = everyone(found)
    assert len(last) == 2 and gone(last)


def served(pool: Served, *asked: tuple[Any, ...]) -> list[Any]:
    for job in asked:
        pool.submit(job)
    return [pool.next() for _ in asked]


def everyone(pool: Served) -> set[int]:
    """The processes of both workers, once both are there."""
    found: set[int] = set()
    while len(found) < 2:
        found |= {process for _, process in served(pool, *[("echo", 0, 0.02)] * 4)}
    return found


def test_results_come_in_order_and_from_other_processes(pool: Served) -> None:
    rng = random.Random(0)
    found = served(pool, *(("echo", number, rng.choice((0.0, 0.02))) for number in range(40)))
    assert [value for value, _ in found] == list(range(40))
    workers = everyone(pool)
    assert {process for _, process in found} <= workers and os.getpid() not in workers
    told = served(pool, ("environment",))[0]
    assert told["threads"] == 1 and told["group"] in workers and told["parent"] == os.getpid()


def test_a_job_that_raises_is_lost_with_its_reason_and_its_worker_is_not(pool: Served) -> None:
    before = everyone(pool)
    said = {
        "value": "ValueError: two lines",
        "exit": "SystemExit: 3",
        "interrupt": "KeyboardInterrupt",
        "mute": "MuteError",
        "aside": "Aside: neither",
        "deep": "RecursionError: too deep",
        "memory": "MemoryError",
    }
    assert served(pool, *(("fail", how) for how in said)) == [("lost", reason) for reason in said.values()]
    ((_, reason),) = served(pool, ("fail", "allocator"))
    assert reason.startswith("RuntimeError") and "allocate" in reason
    assert everyone(pool) == before


def test_a_result_that_cannot_be_brought_home_is_lost_with_its_reason_and_its_worker_is_not(pool: Served) -> None:
    before = everyone(pool)
    for what, why in (("generator", "generator"), ("lock", "lock"), ("sticky", "RuntimeError: stays here")):
        ((kind, reason),) = served(pool, ("give", what))
        assert kind == "lost" and reason.startswith("What it gave cannot leave its process: ") and why in reason
    ((kind, reason),) = served(pool, ("give", "foreign"))
    assert (kind, reason) == ("lost", "What it gave cannot be read here: LookupError: made elsewhere")
    tensor, function, large, nothing = served(
        pool, *(("give", what) for what in ("tensor", "function", "large", "nothing"))
    )
    assert torch.equal(tensor, torch.arange(3.0)) and function(1) == 2 and len(large) == 50_000_000 and nothing is None
    assert everyone(pool) == before


def test_a_worker_may_print_as_much_as_it_likes(pool: Served, capfd: pytest.CaptureFixture[str]) -> None:
    found = served(pool, ("flood", 50_000), ("echo", 1), ("flood", 50_000))
    assert [found[0], found[1][0], found[2]] == [50_000, 1, 50_000]


def test_every_death_costs_a_worker_and_no_job_but_the_third_of_one(pool: Served, tmp_path: Path) -> None:
    ways = ("deaf", "mute")
    asked: list[tuple[Any, ...]] = [("echo", 0), ("die_in_turn", ("exit", "segfault", "kill"), str(tmp_path / "turns"))]
    for way in ways:
        asked += [("die_first", way, str(tmp_path / way)), ("echo", way)]
    found = served(pool, *asked)
    child = int((tmp_path / "deaf.child").read_text())
    assert alive([child]), "the end of its worker was heard when the child's was"
    os.kill(child, signal.SIGKILL)
    assert found[0][0] == 0
    why = "exit status 9; SIGSEGV; SIGKILL, as when memory runs out"
    assert found[1] == ("lost", f"It took 3 workers down with it ({why}).")
    assert found[2::2] == [2] * len(ways)
    assert [value for value, _ in found[3::2]] == list(ways)


def test_a_worker_killed_while_it_had_nothing_to_do_is_replaced(pool: Served) -> None:
    ((_, first),) = served(pool, ("echo", 0))
    os.kill(first, signal.SIGKILL)
    assert gone([first], reaped=False)
    found = served(pool, *(("echo", number, 0.05) for number in range(8)))
    assert [value for value, _ in found] == list(range(8))
    assert first not in {process for _, process in found}


def test_a_job_past_its_limit_is_lost_once_with_all_that_its_worker_started(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with closing(started(seconds=1.5)) as pool:
        first, late, after = served(pool, ("echo", 1), ("hang", str(marks)), ("echo", 2))
    assert (first[0], late, after[0]) == (1, ("lost", "It took longer than 1.5 s and was stopped."), 2)
    assert first[1] != after[1]
    assert gone([int(word) for word in marks.read_text().split()], reaped=False)
    assert gone([after[1]])


def test_a_candidate_may_take_so_much_memory_and_what_is_kept_counts_no_more() -> None:
    with closing(started(memory_bytes=300 * 2**20)) as pool:
        found = served(pool, ("take", 100), ("take", 2000), *[("take", 100, True)] * 5, ("take", 400), ("echo", 1))
    assert found[0] == 100 * 2**18 and found[2:7] == [100 * 2**18] * 5
    for kind, reason in (found[1], found[7]):
        assert kind == "lost" and reason.startswith("RuntimeError") and "can't allocate memory" in reason
    assert found[8][0] == 1


def test_a_worker_finds_what_its_driver_finds_and_no_file_of_the_folder_it_runs_in_before_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("types", "select", "queue", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    with closing(started()) as pool:
        (told,) = served(pool, ("environment",))
    assert told["folder"] == told["path"][-1] == str(tmp_path)
    assert told["path"].count(str(tmp_path)) == 1 and told["path"].index(str(ROOT)) == 0
    assert told["descriptors"] <= 6, "more than three streams, the socket, the mapped memory, and what lists them"


def test_a_thousand_jobs_leave_nothing_behind(pool: Served) -> None:
    def descriptors() -> tuple[int, set[int]]:
        everyone(pool)
        return len(os.listdir("/proc/self/fd")), {told["descriptors"] for told in served(pool, *[("environment",)] * 8)}

    def work() -> None:
        served(pool, *[("echo", list(range(1000)))] * 100)

    work()  # in a process that has done much else, the first round leaves its memory to those that follow
    served(pool, ("give", "large"))
    gc.collect()  # seldom by itself where much is alive
    before, resident = descriptors(), jobs.resident()
    for _ in range(10):
        work()
    served(pool, ("give", "large"))
    assert descriptors() == before
    gc.collect()
    assert jobs.resident() - resident < 20 * 2**20


def test_what_cannot_be_made_ends_it_with_a_sentence() -> None:
    makes = {
        jobs.broken: "ValueError: no such model",
        jobs.leaving: "SystemExit: I leave",
        jobs.dying: r"tried 3 times \(exit status 7\)",
    }
    pools = [started(make) for make in makes]  # all at once: each takes its time to begin
    for pool, said in zip(pools, makes.values(), strict=True):
        with closing(pool), pytest.raises(ExecutorError, match=said):
            served(pool, ("echo", 1))


def test_a_system_without_room_for_a_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before, descriptors = children(), len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ExecutorError, match="A worker process must start; the system says No such file"):
        started()
    assert children() == before and len(os.listdir("/proc/self/fd")) == descriptors


def test_nothing_is_left_whenever_it_is_closed_and_no_more_is_started_than_may_be_busy() -> None:
    before, descriptors = set(children()), len(os.listdir("/proc/self/fd"))
    for pause in (0.0, 0.3):
        pool = started(workers=5, slots=2)
        time.sleep(pause)
        begun = set(children()) - before
        pool.close()
        assert len(begun) == 2 and gone(begun)
        pool.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
