"""A search without a model whose candidates are scored by worker processes, in a process of its own, for killing."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np

from automc import loop
from automc.errors import StudyError
from automc.evaluation import Evaluation
from automc.executors.inline import Inline
from automc.executors.pool import Pool
from automc.executors.processes import processes
from automc.policy import Policy
from automc.study import Study
from tests.faults.alive import children
from tests.study import lab
from tests.study.worker import Watched

IN_FLIGHT = 4


@dataclass(frozen=True)
class Lookup:
    """Takes a moment, that of some policies longer than that of others."""

    pause: float
    mark: Path | None = None
    """Made when the first candidate is begun."""

    def __call__(self) -> Callable[[Policy], Evaluation]:
        return self.scored

    def scored(self, policy: Policy) -> Evaluation:
        if self.mark is not None:
            self.mark.touch()
        time.sleep(self.pause * (0.5 + int(policy.digest[:2], 16) / 255))
        return lab.lookup(policy)


class Draws(lab.Draws):
    """Draws that depend on what is in flight, too; every seventh is the one before it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.open = 0

    def ask(self) -> Policy:
        turn = self.told + self.open
        self.open += 1
        pair = turn % 7 >= 5
        return lab.draw(np.random.default_rng([self.seed, turn - (turn % 7 == 6), 0 if pair else int(1e6 * self.best)]))

    def tell(self, evaluation: Evaluation) -> None:
        super().tell(evaluation)
        self.open = max(self.open - 1, 0)


def failed(policy: Policy, reason: str, seconds: float) -> Evaluation:
    return replace(lab.lookup(policy), state="failed", score=None, reason=reason, seconds=seconds)


def pool(pause: float, mark: Path | None = None) -> Pool[Policy, Evaluation]:
    return processes(Lookup(pause, mark), failed, workers=2, slots=IN_FLIGHT)


def search(path: Path, side: Path, trials: int, pause: float) -> None:
    """What a driver does; ends as the command line does."""
    study = Watched.create(path, "lab", lab.meta(), lab.AXES)
    assert isinstance(study, Watched)
    study.log = os.open(side, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        with contextlib.closing(pool(pause, side.with_name("begun"))) as executor:
            loop.run(lab.problem(), Draws(), executor, study, trials=trials)
    except KeyboardInterrupt:
        os._exit(130)


def undisturbed(path: Path, trials: int) -> Study:
    """The same search in this process, of which nobody is killed."""
    study = lab.study(path)
    loop.run(lab.problem(), Draws(), Inline(lab.lookup, IN_FLIGHT), study, trials=trials)
    return study


@contextlib.contextmanager
def driver(path: Path, side: Path, trials: int, pause: float) -> Iterator[ForkProcess]:
    """A search in a process forked from this one, which has all imported that takes long to import."""
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(path, side, trials, pause))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _alone(path: Path, side: Path, trials: int, pause: float) -> None:
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)
    search(path, side, trials, pause)


def reopened(path: Path) -> Study:
    """The study of a driver that was killed; what it was just starting may hold its lock for another moment."""
    until = time.monotonic() + 10.0
    while True:
        try:
            return lab.study(path)
        except StudyError as error:
            assert "is doing so" in str(error) and time.monotonic() < until
            time.sleep(0.01)


def recorded(path: Path) -> int:
    """How many trials a journal holds."""
    return path.read_bytes().count(b'"op_code":4') if path.exists() else 0


def wait_for(path: Path, trials: int, process: ForkProcess, within: float = 60.0) -> None:
    """Until so many trials are recorded."""
    until = time.monotonic() + within
    while recorded(path) < trials:
        assert process.is_alive(), f"the driver ended with {process.exitcode}"
        assert time.monotonic() < until, "the driver records nothing"
        time.sleep(0.005)


def kill_worker(process: ForkProcess, rng: random.Random) -> bool:
    """Kills one of a driver's workers, where there is one."""
    assert process.pid is not None
    workers = children(process.pid)
    if workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
    return bool(workers)


def check_records(side: Path, study: Study) -> None:
    """Every record that returned is there, in its place and once; at most the one in the making is there besides."""
    lines = [line.split() for line in side.read_text().splitlines()] if side.exists() else []
    done = [(int(line[2]), line[1]) for line in lines if line[0] == "after"]
    begun = {line[1] for line in lines if line[0] == "before"}
    found = {e.number: e.policy.digest for e in study.evaluations}
    assert len(done) == len({number for number, _ in done}), "a trial was recorded twice"
    assert dict(done).items() <= found.items(), "a finished trial is lost"
    assert set(found.values()) <= begun
    assert list(found) == list(range(len(found)))
