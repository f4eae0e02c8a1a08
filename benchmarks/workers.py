"""What workers are worth: two against one, what a trial costs beside its scoring, and a cluster by a virtual clock.

    python benchmarks/workers.py                  all of it, on ResNet-20 (needs AUTOMC_DATA, see README.md)
    python benchmarks/workers.py --task digits --only cluster
    python benchmarks/workers.py --task cifar10-resnet56 --only starts

`starts`: how long it takes until two workers have scored two candidates, what each has computed until then, and memory
that is its own.
`pairs`: trials a second of one and of two worker processes, each with one thread, taking turns, the same candidates in
flight; what comes before the first few trials, such as tracing the model, is left out. `slots`: jobs that sleep 0 or
1 s, through two workers, as processes and by Ray: what a trial takes beyond its sleep. `cluster`: the real loop,
searcher, projection and record, on workers that only exist in a clock, which goes on by what the driver really takes
and by scoring times of 0.3 s: which share of the workers' time is scoring, and from how many on the driver is late.
"""

import argparse
import contextlib
import heapq
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from results import write

import automc
from automc import loop
from automc.budget import Budget
from automc.evaluation import Evaluation
from automc.executors.pool import Event, Pool
from automc.policy import Policy
from automc.registry import EXECUTORS, SEARCHERS
from automc.scoring.race import Race
from automc.setting import Setting, described, prepare
from automc.study import Study
from automc.workers import Workers, spread

SECONDS = 0.3
"""Of scoring one candidate, in the simulated cluster."""
TRIALS = 40
"""Of each worker there: enough that beginning and end hardly count."""
SPREAD = 0.3
"""Standard deviation of the logarithm of scoring times, as in studies of ResNet-20."""


def pairs(task: str, trials: int, rounds: int) -> dict[str, Any]:
    """Trials a second of one worker and of two."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for turn, count in itertools.product(range(rounds), (1, 2)):
        times: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            automc.search(
                task,
                budget="macs<=50%",
                searcher="random",
                trials=trials,
                seed=turn,
                storage=Path(folder) / "study.journal",
                workers=automc.Workers(count, in_flight=4),
                progress=lambda _: times.append(time.perf_counter()),  # noqa: B023
            )
        skipped = 4  # those in flight at first wait for workers to begin
        found[count].append((len(times) - 1 - skipped) / (times[-1] - times[skipped]))
        print(f"{count} workers: {found[count][-1]:.2f} trials/s", flush=True)
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    print(f"two workers give {statistics.median(ratios):.2f} x one ({min(ratios):.2f} to {max(ratios):.2f})")
    return {"trials_a_second": found, "ratios": ratios, "median": statistics.median(ratios), "asked": 1.85}


def starts(task: str, count: int = 2) -> dict[str, Any]:
    """By executor, seconds until workers have scored a candidate each, seconds they computed, and their own memory."""
    found: dict[str, Any] = {}
    for name in EXECUTORS:
        setting = prepare(task, Budget.parse("macs<=50%"), "auto")
        setting.evaluator.evaluate(SEARCHERS.load("uniform")(setting.problem, 0).ask())  # as every search begins
        start = time.perf_counter()
        with spread(Workers(count, name, count), setting.scoring, Race(setting.evaluator, ("macs",))) as executor:
            for seed in range(count):
                executor.submit(SEARCHERS.load("random")(setting.problem, seed).ask())
            for _ in range(count):
                executor.next()
            found[name] = {"seconds": time.perf_counter() - start} | _of_workers()
        print(f"{name}: {found[name]}", flush=True)
    return found


def _of_workers() -> dict[str, list[float]]:
    """What processes of workers have computed, in seconds, and memory that is theirs alone, in megabytes."""
    found: dict[str, list[float]] = {"cpu_s": [], "private_mb": []}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if "automc.executors.worker" in (said := (entry / "cmdline").read_text()) or "_Actor" in said:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                lines = (entry / "smaps_rollup").read_text().splitlines()[1:]
                memory = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
                found["cpu_s"].append(sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK"))
                found["private_mb"].append(memory["Private_Clean"] + memory["Private_Dirty"])
    return found


def asleep() -> Callable[[float], float]:
    """What a worker does with a job: sleeps."""

    def work(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    return work


def slots(jobs: int = 60) -> dict[str, Any]:
    """Milliseconds a trial takes beyond its own, by executor and length of a job."""
    found: dict[str, Any] = {}
    for name, seconds in itertools.product(EXECUTORS, (0.0, 1.0)):
        count = jobs if not seconds else 12
        executor = EXECUTORS.load(name)(asleep, lambda *lost: lost, workers=2)
        try:
            for _ in range(executor.slots):
                executor.submit(0.0)
            for _ in range(executor.slots):
                executor.next()  # now both have begun
            start = time.perf_counter()
            for _ in range(executor.slots):
                executor.submit(seconds)
            for turn in range(count):
                executor.next()
                if turn + executor.slots < count:
                    executor.submit(seconds)
            took = time.perf_counter() - start
        finally:
            executor.close()
        beyond = 2 * took / count - seconds  # two work at a time
        found[f"{name} {seconds:g} s"] = {"ms_beyond": 1e3 * beyond, "share": beyond / seconds if seconds else None}
        print(f"{name}, jobs of {seconds:g} s: {1e3 * beyond:.1f} ms a trial beyond its own", flush=True)
    return found


@dataclass
class Cluster:
    """Workers of a clock that goes on by what is really computed here, and by what they pretend to take."""

    count: int
    rng: np.random.Generator
    score: Callable[[Policy], Evaluation]
    now: float = 0.0
    busy: float = 0.0
    """Seconds of all workers together."""
    _last: float = field(default_factory=time.perf_counter)
    _queue: list[tuple[float, int, Any]] = field(default_factory=list)
    _begun: list[Event] = field(default_factory=list)

    def clock(self) -> float:
        """The time there."""
        here = time.perf_counter()
        self.now += here - self._last
        self._last = here
        return self.now

    def start(self, worker: int) -> None:
        """A worker is there at once."""
        self._begun.append(Event(worker, "ready"))

    def send(self, worker: int, job: Any) -> None:
        """The job will be done after a while."""
        self.clock()
        result = self.score(job)
        self._last = time.perf_counter()  # a score looked up is no work of the driver's
        takes = SECONDS * float(np.exp(SPREAD * self.rng.standard_normal() - SPREAD**2 / 2))
        self.busy += takes
        heapq.heappush(self._queue, (self.clock() + takes, worker, result))

    def events(self, seconds: float | None) -> Sequence[Event]:
        """What is done by now; where nothing is, the clock goes on to what is done first."""
        found, self._begun = self._begun, []
        if not found and seconds != 0.0 and self._queue:
            self.clock()
            self.now = max(self.now, self._queue[0][0])
        now = self.clock()
        while self._queue and self._queue[0][0] <= now:
            _, worker, result = heapq.heappop(self._queue)
            found.append(Event(worker, "done", result))
        return found

    def close(self) -> None:
        """Nobody is there."""


def cluster(setting: Setting, searcher: str, workers: int, trials: int) -> dict[str, float]:
    """The share of so many workers' time that is scoring."""
    costing, rng = setting.problem.projector.costing, np.random.default_rng(0)

    def score(policy: Policy) -> Evaluation:
        made = float(np.random.default_rng(int(policy.digest[:12], 16)).uniform(0.5, 0.9))
        return Evaluation(policy, "ok", made, tuple(costing.of_policy(policy).items()), seconds=SECONDS)

    there = Cluster(workers, rng, score)
    pool: Pool[Policy, Evaluation] = Pool(there, lambda *_: None, clock=there.clock)  # type: ignore[arg-type,return-value]
    meta = described(setting, Budget.parse("macs<=50%"), "criteria", searcher, 0) | {"score": "metric"}
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(Path(folder) / "study.journal", "cluster", meta, setting.problem.space.axes)
        loop.run(setting.problem, SEARCHERS.load(searcher)(setting.problem, 0), pool, study, trials=trials)
    took = there.clock()
    return {"efficiency": there.busy / (workers * took), "trials_a_second": trials / took, "seconds": took}


def clusters(task: str, searchers: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    """By searcher and number of workers."""
    setting = prepare(task, Budget.parse("macs<=50%"), "criteria")
    setting.problem.errors and setting.problem.errors()  # known before the first trial, as in a search that goes on
    found: dict[str, Any] = {}
    for searcher in searchers:
        found[searcher] = {n: cluster(setting, searcher, n, max(200, TRIALS * n)) for n in counts}
        line = ", ".join(f"{n}: {100 * r['efficiency']:.0f} %" for n, r in found[searcher].items())
        fastest = max(r["trials_a_second"] for r in found[searcher].values())
        print(f"{searcher}: share of workers' time that is scoring, {line}; at most {fastest:.0f} trials/s", flush=True)
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--searchers", nargs="+", default=["random", "knapsack", "evolution", "ddpg", "joint"])
    parser.add_argument("--counts", nargs="+", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--only", choices=("pairs", "starts", "slots", "cluster"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.only in (None, "pairs"):
        found["pairs"] = pairs(arguments.task, arguments.trials, arguments.rounds)
    if arguments.only in (None, "starts"):
        found["starts"] = starts(arguments.task)
    if arguments.only in (None, "slots"):
        found["slots"] = slots()
    if arguments.only in (None, "cluster"):
        found["cluster"] = clusters(arguments.task, arguments.searchers, arguments.counts)
    write("workers" if arguments.only is None else f"workers_{arguments.only}", found, seeds=range(arguments.rounds))


if __name__ == "__main__":
    main()
