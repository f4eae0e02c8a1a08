"""Searches whose candidates are scored by several workers: how many there are, and who is done first, changes nothing.

Most workers here are `scrambled`: in this process, done in any order, and dying now and then.
"""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import automc
from automc import registry
from automc.errors import ExecutorError
from automc.evaluation import Evaluation
from automc.executors.executor import Executor
from automc.executors.inline import Inline
from automc.executors.raced import Raced
from automc.scoring.heat import Job, Outcome, Scorer
from automc.scoring.race import Race
from automc.study import Study
from automc.workers import Workers, spread
from tests.executors import jobs
from tests.scoring import tiny
from tests.searchers import table
from tests.searchers.table import soon_or_slow

SEARCHERS = ("joint", "tpe", "nsga2", "ddpg", "evolution")
RACED: dict[str, Any] = {"stages": (60, 200), "screen": True}
TRIALS, IN_FLIGHT = 20, 4
DRIVER = os.getpid()
Trials = list[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As workers have it: the last digits of scores differ by the number of threads."""
    monkeypatch.setitem(registry.EXECUTORS.table, "scrambled", "tests.executors.scrambled:scrambled")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task() -> automc.Task:
    return tiny.task(600)


@pytest.fixture(scope="module")
def wholes() -> dict[tuple[str, bool], Trials]:
    """By searcher and whether it races, the trials of a search by one worker, once there is one."""
    return {}


def search(
    task: automc.Task, path: Path, searcher: str, raced: bool, workers: int | Workers, trials: int = TRIALS, **more: Any
) -> Study:
    given: dict[str, Any] = {"budget": "macs<=60%", "space": "channels", "study": "s", "seed": 1}
    spreading = Workers(workers, "scrambled", IN_FLIGHT) if isinstance(workers, int) else workers
    options = given | (RACED if raced else {}) | more
    return automc.search(task, storage=path, searcher=searcher, trials=trials, workers=spreading, **options)


def contents(study: Study) -> Trials:
    """All of a study's trials but how long they took."""
    return [
        (e.number, e.policy, e.state, e.score, e.metric, e.share, e.stages, e.costs, e.reason, e.proposer, e.predicted)
        for e in study.evaluations
    ]


def whole(wholes: dict[tuple[str, bool], Trials], task: automc.Task, searcher: str, raced: bool, path: Path) -> Trials:
    if (searcher, raced) not in wholes:
        wholes[searcher, raced] = contents(search(task, path / "whole.journal", searcher, raced, 1))
    return wholes[searcher, raced]


@pytest.mark.parametrize(
    ("searcher", "raced"),
    [("joint", False), ("joint", True), ("tpe", False), ("nsga2", True), ("ddpg", True), ("evolution", False)],
)
def test_one_two_and_four_workers_find_the_same_and_so_does_a_search_stopped_and_resumed(
    tmp_path: Path, task: automc.Task, wholes: dict[tuple[str, bool], Trials], searcher: str, raced: bool
) -> None:
    expected = whole(wholes, task, searcher, raced, tmp_path)
    assert len(expected) == TRIALS == len({policy for _, policy, *_ in expected})
    assert not raced or {"ok", "pruned"} == {entry[2] for entry in expected}
    assert contents(search(task, tmp_path / "four.journal", searcher, raced, 4)) == expected
    rng = random.Random(f"{searcher} {raced}")
    stop(task, tmp_path / "two.journal", searcher, raced, rng.randrange(1, TRIALS), kindly=rng.random() < 0.3)
    assert contents(search(task, tmp_path / "two.journal", searcher, raced, 2)) == expected


def stop(task: automc.Task, path: Path, searcher: str, raced: bool, trials: int, *, kindly: bool) -> None:
    """Searches for so many trials: told beforehand how many, or interrupted while more are in flight."""

    def progress(evaluation: Evaluation) -> None:
        if evaluation.number == trials - 1:
            raise KeyboardInterrupt

    if kindly:
        search(task, path, searcher, raced, 3, trials)
    else:
        with pytest.raises(KeyboardInterrupt):
            search(task, path, searcher, raced, 3, progress=progress)
    assert len(Study.open(path).evaluations) == trials


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("raced", [False, True], ids=["plain", "raced"])
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_stopped_after_any_trial_a_search_goes_on_as_if_it_had_not(
    tmp_path: Path, task: automc.Task, wholes: dict[tuple[str, bool], Trials], searcher: str, raced: bool
) -> None:
    expected = whole(wholes, task, searcher, raced, tmp_path)
    for trials in range(TRIALS):
        for kindly in {True, trials == 0}:
            path = tmp_path / f"{trials} {kindly}.journal"
            if trials:
                stop(task, path, searcher, raced, trials, kindly=kindly)
            assert contents(search(task, path, searcher, raced, 2)) == expected


def test_processes_find_what_workers_in_this_process_find(
    tmp_path: Path, task: automc.Task, wholes: dict[tuple[str, bool], Trials]
) -> None:
    expected = whole(wholes, task, "joint", True, tmp_path)
    found = search(task, tmp_path / "two.journal", "joint", True, Workers(2, in_flight=IN_FLIGHT))
    assert contents(found) == expected
    assert not list(Path("/dev/shm").glob(f"automc-bank-{os.getpid()}-*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("raced", [False, True], ids=["plain", "raced"])
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_any_number_of_processes_finds_the_same(
    tmp_path: Path, task: automc.Task, wholes: dict[tuple[str, bool], Trials], searcher: str, raced: bool
) -> None:
    expected = whole(wholes, task, searcher, raced, tmp_path)
    for count in (1, 2, 4):
        path = tmp_path / f"{count}.journal"
        assert contents(search(task, path, searcher, raced, Workers(count, in_flight=IN_FLIGHT))) == expected


def test_one_in_flight_finds_what_a_search_without_workers_finds(tmp_path: Path, task: automc.Task) -> None:
    found = search(task, tmp_path / "one.journal", "joint", True, Workers(2, "scrambled", 1), 12)
    options: dict[str, Any] = {"budget": "macs<=60%", "space": "channels", "study": "s", "seed": 1, **RACED}
    alone = automc.search(task, storage=tmp_path / "alone.journal", searcher="joint", trials=12, **options)
    assert contents(found) == contents(alone)


def test_more_or_fewer_in_flight_than_when_it_began_goes_on(tmp_path: Path, task: automc.Task) -> None:
    for count, slots, trials in ((4, 8, 7), (1, 1, 9), (2, 4, 14), (1, 3, 20)):
        study = search(task, tmp_path / "x.journal", "joint", True, Workers(count, "scrambled", slots), trials)
        scores = {e.policy: e.score for e in study.evaluations}
        assert len(study.evaluations) == trials and trials - len(scores) <= 3  # not those are told that are asked for
        assert all(e.score == scores[e.policy] for e in study.evaluations)


SOON = ("tpe", "dp", "joint", "ddpg")
LATER = ("gp", "evolution", "random", "global", "knapsack", "nsga3", "cmaes", "amc", "reinforce", "sac")
STOPS = [(stopped, kindly) for stopped in (1, 2, 3, 4, 5, 12, 13, 17, TRIALS - 1) for kindly in (True, False)]


@pytest.mark.parametrize("stops", [STOPS[3::5], pytest.param(STOPS, marks=pytest.mark.slow)], ids=["a few", "many"])
@pytest.mark.parametrize("searcher", [soon_or_slow(name in SOON, name) for name in SOON + LATER])
def test_a_resumed_search_asks_again_only_for_what_was_open(
    tmp_path: Path,
    task: automc.Task,
    monkeypatch: pytest.MonkeyPatch,
    searcher: str,
    stops: list[tuple[int, bool]],
) -> None:
    """Asks of `gp` take seconds."""
    kind: Any = type(registry.SEARCHERS.load(searcher)(table.problem("channels", "macs<=50%"), 0))
    asks: list[str] = []
    ask = kind.ask

    def counting(self: Any) -> Any:
        found = ask(self)
        asks.append(found.digest)
        return found

    monkeypatch.setattr(kind, "ask", counting)
    expected = contents(search(task, tmp_path / "whole.journal", searcher, False, 2))
    in_order = asks.copy()
    for stopped, kindly in stops:
        path = tmp_path / f"{stopped} {kindly}.journal"
        stop(task, path, searcher, False, stopped, kindly=kindly)
        asks.clear()
        assert contents(search(task, path, searcher, False, 2)) == expected
        assert asks == in_order[stopped:]


@pytest.mark.parametrize("raced", [False, True])
def test_a_study_goes_on_with_as_many_in_flight_as_it_had_whoever_scores(
    tmp_path: Path, task: automc.Task, wholes: dict[tuple[str, bool], Trials], caplog: Any, raced: bool
) -> None:
    expected = whole(wholes, task, "joint", raced, tmp_path)
    for workers in (Workers(1, "scrambled"), Workers(3, "scrambled"), None):
        path = tmp_path / f"{workers}.journal"
        search(task, path, "joint", raced, 3, 9)
        assert Study.open(path).meta["in_flight"] == IN_FLIGHT
        more = {} if workers is not None else {"workers": 1}
        given: dict[str, Any] = {"budget": "macs<=60%", "space": "channels", "study": "s", "seed": 1} | more
        options = {"workers": workers} | given | (RACED if raced else {})
        study = automc.search(task, storage=path, searcher="joint", trials=TRIALS, **options)
        assert contents(study) == expected and study.meta["in_flight"] == IN_FLIGHT
    assert not caplog.records


def test_another_number_in_flight_is_said_and_noted(tmp_path: Path, task: automc.Task, caplog: Any) -> None:
    path = tmp_path / "x.journal"
    search(task, path, "random", False, Workers(1, "scrambled", 3), 4)
    search(task, path, "random", False, Workers(1, "scrambled", 5), 8)
    said = "Study 's' had 3 candidates in flight and goes on with 5: its trials are others than with 3."
    assert caplog.messages == [said] and Study.open(path).meta["in_flight"] == 5
    search(task, path, "random", False, Workers(8, "scrambled"), 9)
    few = "Study 's' has 5 candidates in flight, too few for 8 workers: give in_flight to have more."
    assert caplog.messages == [said, few]


def test_a_study_that_had_no_workers_or_says_nothing_of_them_goes_on_with_the_usual_number(
    tmp_path: Path, task: automc.Task, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.journal"
    options: dict[str, Any] = {"budget": "macs<=60%", "space": "channels", "study": "s", "seed": 1}
    automc.search(task, storage=path, searcher="random", trials=2, **options)
    assert Study.open(path).meta["in_flight"] == 1
    search(task, path, "random", False, Workers(2, "scrambled"), 5)
    assert Study.open(path).meta["in_flight"] == 4 and len(caplog.messages) == 1
    old = tmp_path / "old.journal"
    with monkeypatch.context() as before:
        before.setattr(Study, "note", lambda *_: None)  # as an older automc did
        search(task, old, "random", False, Workers(1, "scrambled"), 3)
    assert "in_flight" not in Study.open(old).meta
    assert len(search(task, old, "random", False, Workers(1, "scrambled"), 5).evaluations) == 5
    assert Study.open(old).meta["in_flight"] == 2 and len(caplog.messages) == 1


def test_a_policy_that_kills_every_worker_is_a_failed_trial_and_the_search_goes_on(tmp_path: Path) -> None:
    fatal = replace(tiny.task(120), evaluate=jobs.Deadly(DRIVER))
    study = search(fatal, tmp_path / "x.journal", "blind", False, Workers(1, in_flight=4), 5)
    widths = [jobs.width(automc.apply(fatal, e.policy)) for e in study.evaluations]
    assert widths == [5, 6, 4, 5, 5]
    why = {4: "ValueError: not this one", 6: "It took 3 workers down with it (SIGKILL, as when memory runs out)."}
    for evaluation, channels in zip(study.evaluations, widths, strict=True):
        assert evaluation.state == ("failed" if channels in why else "ok")
        assert evaluation.score == (None if channels in why else channels)
        assert evaluation.reason == why.get(channels, "")


@pytest.fixture(autouse=True)
def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    from automc.registry import SEARCHERS as TABLE

    monkeypatch.setitem(TABLE.table, "blind", "tests.scoring.tiny:Blind")


def test_a_search_of_no_time_scores_nothing_and_one_of_little_ends_what_it_began(
    tmp_path: Path, task: automc.Task
) -> None:
    assert not search(task, tmp_path / "x.journal", "tpe", False, 2, seconds=0.0).evaluations
    seen: list[int] = []

    def progress(evaluation: Evaluation) -> None:
        seen.append(evaluation.number)
        time.sleep(0.02)

    found = search(task, tmp_path / "x.journal", "tpe", False, 2, 500, seconds=0.2, progress=progress)
    assert seen == list(range(len(found.evaluations))) and 1 <= len(seen) < 100
    expected = search(task, tmp_path / "y.journal", "tpe", False, 2, len(seen) + 5)
    assert contents(search(task, tmp_path / "x.journal", "tpe", False, 4, len(seen) + 5)) == contents(expected)


def test_a_number_of_workers_that_cannot_be_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    odd: tuple[Any, ...] = (0, -1, 2.5, "2")
    for number in odd:
        with pytest.raises(ExecutorError, match="Workers' count must be 1 or more"):
            automc.search("digits", budget="macs<=50%", workers=number, storage=tmp_path / "x.journal")
    assert not list(tmp_path.iterdir())
    for given, said in (
        ({"in_flight": 0}, "in_flight must be 1 or more"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"seconds": float("nan")}, "seconds must be positive"),
        ({"memory_bytes": -1}, "memory_bytes must be positive"),
        ({"gpus": 0.5}, "Ray's to give"),
        ({"gpus": -0.5, "executor": "ray"}, "gpus must be 0 or more"),
        ({"executor": "procesess"}, "did you mean 'processes'"),
    ):
        with pytest.raises(automc.errors.AutomcError, match=said):
            Workers(2, **given)


def test_what_cannot_leave_the_driver_is_refused_with_a_sentence(tmp_path: Path, task: automc.Task) -> None:
    import threading

    lock = threading.Lock()

    def metric(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with lock:
            return (outputs.argmax(1) == targets).float()

    def own() -> set[Path]:
        return {path for path in Path("/dev/shm").iterdir() if str(os.getpid()) in path.name}

    before = own()
    with pytest.raises(ExecutorError, match=r"cannot pickle '_thread\.lock' object"):
        search(replace(task, metric=metric), tmp_path / "x.journal", "tpe", False, Workers(2))
    assert own() <= before


def test_banks_of_searches_that_were_killed_are_removed_and_no_others(tmp_path: Path, task: automc.Task) -> None:
    dead = next(number for number in range(2**22, 2, -1) if not Path(f"/proc/{number}").exists())
    folders = [Path(f"/dev/shm/automc-bank-{owner}-test{DRIVER}") for owner in (dead, os.getppid(), "mine")]
    try:
        for folder in folders:
            folder.mkdir()
            (folder / "x").write_text("x")
        setting = tiny.setting(task)
        with spread(Workers(1, "scrambled"), setting.scoring, Race(setting.evaluator, ("macs",))):
            assert [folder.exists() for folder in folders] == [False, True, True]
            assert len(list(Path("/dev/shm").glob(f"automc-bank-{DRIVER}-*"))) == 1
        assert not list(Path("/dev/shm").glob(f"automc-bank-{DRIVER}-*"))
    finally:
        for folder in folders:
            for file in folder.glob("*"):
                file.unlink()
            if folder.is_dir():
                folder.rmdir()


def test_where_nothing_may_be_written_to_shared_memory_workers_do_without_a_bank(
    task: automc.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tiny.setting(task)
    before = set(Path("/dev/shm").iterdir())
    monkeypatch.setattr("tempfile.mkdtemp", refused)
    monkeypatch.setattr("os.memfd_create", refused)
    with spread(Workers(1, "scrambled"), setting.scoring, Race(setting.evaluator, ("macs",))) as executor:
        executor.submit(tiny.policies(setting, 1)[0])
        assert executor.next().ok and set(Path("/dev/shm").iterdir()) == before


def refused(*_: object, **__: object) -> str:
    raise PermissionError(13, "Permission denied")


def test_a_bank_that_is_not_on_this_machine_is_not_made_there(task: automc.Task) -> None:
    """A worker elsewhere has no such folder in its memory, and nobody would remove it."""
    from automc.workers import Blueprint

    away = Path(f"/dev/shm/automc-bank-{DRIVER}-away")
    setting = tiny.setting(task)
    scorer = Blueprint(replace(setting.scoring, cache=away), 0.01)()
    assert scorer(Job(tiny.policies(setting, 1)[0], ())).evaluation.ok
    assert not away.exists()


def test_a_worker_has_what_all_candidates_need_before_the_first_of_them_is_timed(
    task: automc.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a limit of time would end every first candidate, and with it the worker that has to begin anew."""
    from automc.compression.bank import LayerBank
    from automc.compression.compress import Compressor
    from automc.workers import Blueprint, groundwork

    setting = tiny.setting(task)
    scorer = Blueprint(setting.scoring, 0.01, groundwork(setting.evaluator, setting.scoring, 1))()

    def never(*_: object) -> None:
        raise AssertionError("too late")

    for kind, name in ((LayerBank, "_collect"), (LayerBank, "_eliminate"), (Compressor, "_targets")):
        monkeypatch.setattr(kind, name, never)
    assert scorer(Job(tiny.policies(setting, 1)[0], ())).evaluation.ok


class Heard(Executor[Job, Outcome]):
    """Says what it was given."""

    slots = 3

    def __init__(self, work: Scorer) -> None:
        self.given: list[Job] = []
        self._inner = Inline(work, 3)

    def submit(self, job: Job) -> None:
        self.given.append(job)
        self._inner.submit(job)

    def next(self) -> Outcome:
        return self._inner.next()

    def close(self) -> None:
        self._inner.close()


def test_whom_a_candidate_runs_against_is_settled_when_it_is_submitted(task: automc.Task) -> None:
    setting = tiny.setting(task, (60, 200))
    race = Race(setting.evaluator, ("macs",))
    inner = Heard(race.scorer)
    raced = Raced(race, inner)
    first, second, third = tiny.policies(setting, 3)
    raced.submit(first)
    raced.submit(second)
    assert inner.given[0].rival is None and inner.given[1].rival is None
    race.learn(replace(raced.next(), number=0))
    raced.submit(third)
    beside = race.incumbents.rival(dict(setting.evaluator.costs(third)))
    assert (inner.given[2].rival is None) == (beside is None)
    assert np.isfinite([raced.next().score or 0.0, raced.next().score or 0.0]).all()
