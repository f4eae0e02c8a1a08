"""How a search is spread over workers: what each is given, and how all of them come to one bank of layers."""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import cloudpickle
import torch
from torch import Tensor

from automc.errors import ExecutorError
from automc.evaluation import Evaluation
from automc.executors.executor import Executor
from automc.executors.inline import Inline
from automc.executors.raced import Raced
from automc.policy import Policy
from automc.registry import EXECUTORS
from automc.scoring.evaluator import Evaluator
from automc.scoring.groundwork import Groundwork
from automc.scoring.heat import Job, Scorer
from automc.scoring.race import Race
from automc.setting import Scoring
from automc.study import Study
from automc.tasks import FILE_MODULE

_log = logging.getLogger("automc")
ROOM = 2**30
"""Bytes that must be free where the layers' bank is shared in memory."""
_SHARED = "automc-bank-"


@dataclass(frozen=True, slots=True)
class Workers:
    """How many candidates are scored at once, and where; ExecutorError for numbers that cannot be."""

    count: int = 2
    executor: str = "processes"
    """`processes` of this machine, or `ray`."""
    in_flight: int | None = None
    """Candidates asked for before the first of them is told; by default two a worker, and where a study goes on as many
    as it had. What a search does depends on this number, and not on how many workers share the work."""
    seconds: float | None = None
    """After which a candidate is given up, and its worker replaced."""
    memory_bytes: int | None = None
    """How much a candidate may take beyond what its worker has taken when the candidate begins; on Linux alone."""
    threads: int = 1
    """Of torch, in each worker; scores differ in their last digits by this number."""
    gpus: float = 0.0
    """Share of a GPU that each worker owns, by Ray's leave."""

    def __post_init__(self) -> None:
        EXECUTORS.check(self.executor)
        for what, number in (("count", self.count), ("threads", self.threads), ("in_flight", self.in_flight)):
            if number is not None and not (isinstance(number, int) and number >= 1):
                raise ExecutorError(f"Workers' {what} must be 1 or more; it is {number!r}: give a number from 1 up.")
        if not self.gpus >= 0:
            raise ExecutorError(f"Workers' gpus must be 0 or more; they are {self.gpus}: give a share, such as 0.5.")
        if self.gpus and self.executor != "ray":
            raise ExecutorError(f"Shares of GPUs are Ray's to give; workers are {self.executor}: take executor='ray'.")
        for what, amount in (("seconds", self.seconds), ("memory_bytes", self.memory_bytes)):
            if amount is not None and not amount > 0:
                raise ExecutorError(f"Workers' {what} must be positive; it is {amount}: give more, or leave it out.")


@dataclass(frozen=True, eq=False, slots=True)
class Blueprint:
    """What a worker makes its scorer from."""

    scoring: Scoring
    risk: float
    groundwork: Groundwork | None = None
    """What all candidates need; None where it could not be computed, which candidates will say."""

    @property
    def unwritten(self) -> Iterator[Tensor]:
        """What no scorer writes to, and nobody else comes by."""
        return iter(()) if self.groundwork is None else self.groundwork.tensors()

    def __call__(self) -> Scorer:
        """The scorer; a worker on another machine does without a bank that is shared in the memory of this one."""
        cache = self.scoring.cache
        missing = cache is not None and cache.name.startswith(_SHARED) and not cache.is_dir()
        evaluator = replace(self.scoring, cache=None if missing else cache).evaluator(self.groundwork)
        with contextlib.suppress(Exception):  # candidates will say what is wrong
            evaluator.compressor.bank(self.scoring.space.recipe)
        return Scorer(evaluator, self.risk)


def groundwork(evaluator: Evaluator, scoring: Scoring, threads: int) -> Groundwork | None:
    """All that a worker's first candidate would have to compute for those that follow, as a worker would compute it.

    The evaluator's own, with what it does not know yet, where it runs on so many threads, too: by another number the
    last digits would be others.
    """
    smallest, before = scoring.space.decode(scoring.space.smallest), torch.get_num_threads()
    if before != threads:
        evaluator = scoring.evaluator_like(evaluator)
    try:
        torch.set_num_threads(threads)
        with contextlib.suppress(Exception):  # candidates will say what is wrong
            evaluator.compressor.compress(smallest)
        with contextlib.suppress(Exception):
            return evaluator.groundwork(smallest.recipe)
        return None
    finally:
        torch.set_num_threads(before)


def settled(workers: Workers | None, study: Study) -> Workers | int:
    """Workers with the number of candidates in flight that a study goes on with; the number alone without workers.

    What a search does depends on it. So it is what was asked for, else what the study has noted, however many workers
    there are now, and noted for the next time. That a search had one candidate in flight, as without workers, binds
    nobody who now has workers, and searches that share a study each have a number of their own.
    """
    usual = 1 if workers is None else 2 * workers.count
    asked = None if workers is None else workers.in_flight
    known: int | None = None if study.shared else study.meta.get("in_flight")
    number = asked or (usual if known is None or (known == 1 and workers is not None) else known)
    if known not in (None, number):
        words = "Study %r had %d candidates in flight and goes on with %d: its trials are others than with %d."
        _log.warning(words, study.name, known, number, known)
    if workers is not None and asked is None and number < workers.count:
        words = "Study %r has %d candidates in flight, too few for %d workers: give in_flight to have more."
        _log.warning(words, study.name, number, workers.count)
    if known != number and not study.shared:
        study.note("in_flight", number)
    return number if workers is None else replace(workers, in_flight=number)


def here(race: Race, in_flight: int) -> Callable[[Policy], Evaluation] | Executor[Policy, Evaluation]:
    """Scores a race's policies in this process, one after the other, as if so many were in flight."""
    return race.evaluate if in_flight == 1 else Raced(race, Inline(race.scorer, in_flight))


@contextlib.contextmanager
def spread(workers: Workers, scoring: Scoring, race: Race) -> Iterator[Executor[Policy, Evaluation]]:
    """An executor that scores a race's policies by workers; they are gone when the block is left, however it is."""
    with _bank(scoring.cache) as folder, travelling():
        known = groundwork(race.evaluator, scoring, workers.threads)
        blueprint = Blueprint(replace(lean(scoring), cache=folder), race.scorer.risk, known)
        own = {"gpus": workers.gpus} if workers.gpus else {}
        pool = EXECUTORS.load(workers.executor)(
            blueprint,
            Job.lost,
            workers=workers.count,
            slots=workers.in_flight,
            seconds=workers.seconds,
            threads=workers.threads,
            memory_bytes=workers.memory_bytes,
            **own,
        )
        del blueprint, known  # they have left
        executor = Raced(race, pool)
        try:
            yield executor
        finally:
            executor.close()


@contextlib.contextmanager
def _bank(cache: Path | None) -> Iterator[Path | None]:
    """A folder that all workers of this machine keep the layers' bank in: in memory, unless the user named one.

    None where there is no room for one; each worker then has its own.
    """
    memory = Path("/dev/shm")
    if cache is not None or not memory.is_dir() or shutil.disk_usage(memory).free < ROOM:
        yield None if cache is None else cache.absolute()  # workers may run elsewhere
        return
    _remove_left(memory)
    with contextlib.ExitStack() as stack:
        folder = None
        with contextlib.suppress(OSError):  # not everybody may write there
            made = tempfile.TemporaryDirectory(  # an actor of Ray that was told to end may write for another moment
                prefix=f"{_SHARED}{os.getpid()}-", dir=memory, ignore_cleanup_errors=True
            )
            folder = Path(stack.enter_context(made))
        yield folder


def _remove_left(memory: Path) -> None:
    """Removes what searches that were killed have left."""
    for folder in memory.glob(f"{_SHARED}*"):
        number = folder.name.removeprefix(_SHARED).partition("-")[0]
        if number.isdigit() and not Path("/proc", number).exists():
            shutil.rmtree(folder, ignore_errors=True)


def lean(scoring: Scoring) -> Scoring:
    """Without what no scorer needs."""
    return replace(scoring, task=replace(scoring.task, train=None, test=None, augment=None, factory=None))


@contextlib.contextmanager
def travelling() -> Iterator[None]:
    """While task files and what they import from beside them are sent whole: nobody else could find it.

    What their functions import when they are called is not sent, but looked for where it lies.
    """
    known = {name: module for name, module in list(sys.modules.items()) if getattr(module, "__name__", "") == name}
    files = [module for name, module in known.items() if name.startswith(FILE_MODULE)]
    folders = {folder for module in files for folder in _folders(module)}
    beside = [m for name, m in known.items() if "." not in name and name != "automc" and _folders(m) & folders]
    sent, new = {*files, *beside}, sorted(folders - set(sys.path))
    for module in sent:
        cloudpickle.register_pickle_by_value(module)
    sys.path += new
    try:
        yield
    finally:
        sys.path[:] = [folder for folder in sys.path if folder not in new]
        for module in sent:
            cloudpickle.unregister_pickle_by_value(module)


def _folders(module: ModuleType) -> set[str]:
    """The folders in which a module, or a package with all that it holds, was found."""
    own = vars(module) if isinstance(module, ModuleType) else {}
    places = own.get("__path__", [own.get("__file__")])
    return {str(Path(place).parent) for place in places if isinstance(place, str)}
