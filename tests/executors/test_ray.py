"""Workers as Ray actors: what they do and how they end is as with processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import automc
from automc.errors import ExecutorError
from automc.executors.pool import Pool
from automc.executors.ray import RayWorkers, _begin, on_ray
from automc.registry import EXECUTORS
from automc.study import Study
from automc.workers import Workers
from tests.executors import jobs
from tests.faults.alive import children, gone
from tests.faults.driver import recorded
from tests.scoring import tiny
from tests.study import lab

ray: Any = pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
Served = Pool[Any, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of this machine's that all of these tests share, with room for four workers."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def lost(job: Any, reason: str, seconds: float) -> tuple[str, str]:
    return ("lost", reason)


def started(make: Callable[[], Any] = jobs.make, **options: Any) -> Served:
    return on_ray(make, lost, **{"workers": 2, "slots": 64} | options)


def served(pool: Served, *asked: tuple[Any, ...]) -> list[Any]:
    for job in asked:
        pool.submit(job)
    return [pool.next() for _ in asked]


@pytest.mark.usefixtures("cluster")
def test_results_come_in_order_and_whatever_an_actor_dies_of_costs_no_other_job(tmp_path: Path) -> None:
    raising = {
        "value": "ValueError: two lines",
        "exit": "SystemExit: 3",
        "mute": "MuteError",
        "aside": "Aside: neither",
    }
    with closing(started(seconds=5.0)) as pool:
        echoes = served(pool, *(("echo", number, 0.01) for number in range(12)))
        told, *failures = served(pool, ("environment",), *(("fail", how) for how in raising))
        generator, tensor, killed, ended, hung, last = served(
            pool,
            ("give", "generator"),
            ("give", "tensor"),
            ("die_first", "kill", str(tmp_path / "kill")),
            ("die_first", "term", str(tmp_path / "term")),
            ("hang", str(tmp_path / "marks")),
            ("echo", 99),
        )
    assert [value for value, _ in echoes] == list(range(12))
    assert told["threads"] == 1 and os.getpid() not in {process for _, process in echoes}
    assert failures == [("lost", reason) for reason in raising.values()]
    assert generator[0] == "lost" and generator[1].startswith("What it gave cannot leave its process: TypeError")
    assert torch.equal(tensor, torch.arange(3.0))
    assert killed == ended == 2 and last[0] == 99
    assert hung == ("lost", "It took longer than 5 s and was stopped.")
    assert gone([int((tmp_path / "marks").read_text().split()[0])], reaped=False)
    assert ray.is_initialized()  # it was not begun here


@pytest.mark.usefixtures("cluster")
def test_actors_find_what_workers_in_this_process_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXECUTORS.table, "scrambled", "tests.executors.scrambled:scrambled")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given: dict[str, Any] = {
        "budget": "macs<=60%",
        "space": "channels",
        "searcher": "joint",
        "study": "s",
        "trials": 20,
    }
    found = [
        automc.search(
            tiny.task(600), storage=tmp_path / name, workers=Workers(2, name, 4), stages=(60, 200), screen=True, **given
        )
        for name in ("scrambled", "ray")
    ]
    torch.set_num_threads(threads)
    first, second = ([(*lab.contents((e,)), e.stages, e.reason) for e in study.evaluations] for study in found)
    assert first == second and {"ok", "pruned"} == {e.state for e in found[0].evaluations}
    assert not list(Path("/dev/shm").glob(f"automc-bank-{os.getpid()}-*"))


class Placed:
    """Says where the tensors of a worker lie, and writes to one of them."""

    def __init__(self) -> None:
        self.fixed, self.free = torch.ones(10**6), torch.ones(10**6)

    @property
    def unwritten(self) -> Iterator[torch.Tensor]:
        yield self.fixed

    def __call__(self) -> Callable[[tuple[Any, ...]], tuple[str, ...]]:
        def work(job: tuple[Any, ...]) -> tuple[str, ...]:
            assert self.free.all() and self.fixed.all() and not self.fixed.data_ptr() % 64
            time.sleep(0.1)  # both have one
            self.free[:] = 0.0
            found = tuple(_mapping(x) for x in (self.fixed, self.free))
            self.free[:] = 1.0
            return found

        return work


def _mapping(tensor: torch.Tensor) -> str:
    """What of this process's memory a tensor lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line
    raise LookupError(tensor.data_ptr())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel does not tell")
@pytest.mark.usefixtures("cluster")
def test_what_nobody_writes_to_lies_in_the_object_store_and_all_else_in_each_actor() -> None:
    with closing(started(Placed())) as pool:
        for fixed, free in served(pool, *[("job",)] * 8):
            assert "plasma" in fixed and "plasma" not in free


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_made_and_what_kills_every_actor_is_said_in_a_sentence() -> None:
    said = "It took 3 workers down with it (its process died)."
    with closing(started(workers=1)) as pool:
        assert served(pool, ("die", "exit"), ("echo", 1))[0] == ("lost", said)
    said = "one says ValueError: no such model"
    with closing(started(jobs.broken)) as pool, pytest.raises(ExecutorError, match=said):
        served(pool, ("echo", 1))


@pytest.mark.usefixtures("cluster")
def test_a_cluster_that_is_too_small_is_no_surprise(caplog: pytest.LogCaptureFixture) -> None:
    RayWorkers(jobs.make, 3, threads=2)
    assert "Workers need 6 CPUs of Ray, which has 4: some wait until there are more." in caplog.text
    lock = threading.Lock()
    with pytest.raises(ExecutorError, match="must be able to leave this process"):
        RayWorkers(lambda: lambda job: lock, 1)


@pytest.mark.parametrize("cluster_there", [False, True])
def test_ray_is_joined_where_it_was_begun_for_all_and_never_where_another_search_began_it(cluster_there: bool) -> None:
    """By address="auto" Ray joins any that runs on the machine, and ends with whoever began that one."""
    asked: list[dict[str, Any]] = []

    class Ray:
        @staticmethod
        def init(**options: Any) -> None:
            asked.append(options)
            if cluster_there and "num_cpus" in options:  # as Ray does
                raise ValueError("When connecting to an existing cluster, num_cpus and num_gpus must not be provided.")

    _begin(Ray, 3)
    assert asked[0]["num_cpus"] == 3 and len(asked) == 1 + cluster_there
    assert not any("address" in options for options in asked)


DRIVER = """
import os
import sys
import time

import automc
from automc.workers import Workers
from tests.scoring import tiny


def metric(outputs, targets):
    time.sleep(float(os.environ["PAUSE"]) / 2)
    return (outputs.argmax(1) == targets).float()


automc.search(
    tiny.task(600, metric=metric, batch=300), budget="macs<=60%", space="channels", searcher="tpe", study="s",
    storage=sys.argv[1], workers=Workers(2, sys.argv[2], 3), trials=8,
)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_driver_that_began_ray_and_is_killed_leaves_nothing_and_its_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(DRIVER)
    path = tmp_path / "s.journal"

    def begun(storage: Path, pause: float, executor: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "script.py", str(storage), executor]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PAUSE": str(pause)}
        return subprocess.Popen(command, cwd=tmp_path, env=environment)

    process = begun(path, 0.5, "ray")
    while recorded(path) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    begun_by_it = children(process.pid)
    workers = [worker for raylet in begun_by_it for worker in children(raylet) if "_Actor" in _name(worker)]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone([*begun_by_it, *workers], reaped=False)
    kept = lab.contents(Study.open(path).evaluations)
    assert all(entry[2] == "ok" for entry in kept)
    assert 2 <= len(kept) < 8
    assert begun(path, 0.0, "ray").wait(120) == 0
    assert begun(tmp_path / "whole.journal", 0.0, "processes").wait(120) == 0
    parts, whole = (lab.contents(Study.open(p).evaluations) for p in (path, tmp_path / "whole.journal"))
    assert parts == whole and parts[: len(kept)] == kept


def _name(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text()
