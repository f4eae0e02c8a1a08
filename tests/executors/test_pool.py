"""Several workers as one executor, whatever becomes of each of them; the workers and the clock are on paper."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.errors import ExecutorError
from automc.executors.executor import Executor
from automc.executors.pool import START, Pool
from tests.executors.fleet import Attempt, Fleet, Job, Start, expected, lost

LIMIT = 5.0
SECONDS = st.integers(1, 640).filter(lambda n: n != LIMIT * 64).map(lambda n: n / 64)
"""Sums of them are exact, so that the clock stops where it was set to."""
ENDS = st.sampled_from(("done", "done", "done", "raised", "died", "hangs"))
ATTEMPTS = st.lists(st.builds(Attempt, ENDS, SECONDS), min_size=1, max_size=4).map(tuple)
STARTS = st.lists(
    st.lists(st.builds(Start, st.sampled_from(("ready", "died")), SECONDS), max_size=2)  # never three deaths in a row
    .map(lambda first: [*first, Start()]),
    max_size=4,
)  # fmt: skip
IDLE = st.lists(st.lists(SECONDS, max_size=3), max_size=4)


def pool_of(fleet: Fleet, slots: int | None = None, seconds: float | None = None) -> Pool[Job, Any]:
    return Pool(fleet, lost, slots=slots, seconds=seconds, clock=fleet.clock)


def served(pool: Pool[Job, Any], jobs: Sequence[Job], rng: random.Random) -> list[Any]:
    """All results, submitted and taken in any order that a loop may choose."""
    left, flying, found = list(jobs), 0, []
    while left or flying:
        if left and flying < pool.slots and (not flying or rng.random() < 0.6):
            pool.submit(left.pop(0))
            flying += 1
        else:
            found.append(pool.next())
            flying -= 1
    return found


def check(job: Job, result: Any, limit: float | None) -> None:
    """A job's result is what its attempts make of it; nobody else's fate plays a part."""
    end, tries = expected(job, limit)
    assert len(job.tried) == tries
    tried = [job.attempts[min(i, len(job.attempts) - 1)] for i in range(tries)]
    spent = sum(a.seconds for a in tried[:-1]) + (limit if end == "late" and limit else tried[-1].seconds)
    if end == "done":
        assert result == f"done {job.name}"
        return
    kind, name, reason, seconds = result
    assert (kind, name) == ("lost", job.name)
    assert seconds == pytest.approx(spent)
    words = {"raised": f"raised {job.name}", "late": "It took longer than 5 s and was stopped."}
    assert reason == words.get(end, f"It took 3 workers down with it (died {job.name}).")


@settings(max_examples=300)
@given(
    plans=st.lists(ATTEMPTS, max_size=12),
    workers=st.integers(1, 4),
    slots=st.one_of(st.none(), st.integers(1, 9)),
    starts=STARTS,
    idle=IDLE,
    seed=st.integers(0, 99),
)
def test_every_job_has_its_one_result_in_its_turn_whatever_becomes_of_workers(
    plans: list[tuple[Attempt, ...]],
    workers: int,
    slots: int | None,
    starts: list[list[Start]],
    idle: list[list[float]],
    seed: int,
) -> None:
    fleet = Fleet(workers, starts, idle)
    pool = pool_of(fleet, slots, LIMIT)
    assert isinstance(pool, Executor) and pool.slots == (slots or 2 * workers)
    jobs = [Job(number, plan) for number, plan in enumerate(plans)]
    results = served(pool, jobs, random.Random(seed))
    assert len(results) == len(jobs)
    for job, result in zip(jobs, results, strict=True):
        check(job, result, LIMIT)
    assert len(fleet.lives) <= min(workers, pool.slots)
    pool.close()
    assert fleet.closed


@given(plans=st.lists(ATTEMPTS, min_size=1, max_size=10), workers=st.integers(1, 4), seed=st.integers(0, 99))
def test_without_a_limit_a_job_takes_as_long_as_it_takes(
    plans: list[tuple[Attempt, ...]], workers: int, seed: int
) -> None:
    endless = [tuple(Attempt("done", 1e6) if a.end == "hangs" else a for a in plan) for plan in plans]
    jobs, fleet = [Job(number, plan) for number, plan in enumerate(endless)], Fleet(workers)
    for job, result in zip(jobs, served(pool_of(fleet), jobs, random.Random(seed)), strict=True):
        check(job, result, None)


@given(jobs=st.integers(1, 20), workers=st.integers(1, 5), seconds=st.lists(SECONDS, min_size=1, max_size=5))
def test_nobody_is_idle_while_a_job_waits(jobs: int, workers: int, seconds: list[float]) -> None:
    """With all jobs submitted at once the time is that of a list schedule: each job to who is free first."""
    fleet = Fleet(workers)
    pool = pool_of(fleet, slots=jobs)
    free = [0.0] * min(workers, jobs)
    for number in range(jobs):
        lasts = seconds[number % len(seconds)]
        free[free.index(min(free))] += lasts
        pool.submit(Job(number, (Attempt("done", lasts),)))
    assert [pool.next() for _ in range(jobs)] == [f"done {number}" for number in range(jobs)]
    assert fleet.now <= max(free) + 1e-9


def test_a_driver_that_was_away_takes_what_came_meanwhile() -> None:
    """The searcher may think for longer than a candidate may take: what was done in time is not late."""
    fleet = Fleet(1)
    pool = pool_of(fleet, slots=2, seconds=LIMIT)
    pool.submit(Job(0, (Attempt("done", 4.0),)))
    fleet.now += 3 * START
    pool.submit(Job(1, (Attempt("hangs"),)))
    assert pool.next() == "done 0"
    assert pool.next()[2] == "It took longer than 5 s and was stopped."


def test_no_more_workers_are_started_than_may_be_busy() -> None:
    assert pool_of(Fleet(8), slots=3)._workers.begun == [1, 1, 1, 0, 0, 0, 0, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_that_die_at_their_start_end_the_search_with_a_sentence(workers: int) -> None:
    fleet = Fleet(workers, [[Start("died")] * 50] * workers)
    pool = pool_of(fleet)
    pool.submit(Job(0))
    with pytest.raises(ExecutorError, match=r"tried 3 times \(at its start\): give them more memory, or start fewer"):
        pool.next()
    assert fleet.begun == [3] * workers and not fleet.handed


def test_a_worker_that_never_begins_leaves_the_work_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(3, [[Start("died", 0.125)] * 50, [Start("broken", 0.25)] * 50, [Start("ready", 0.0)]])
    pool = pool_of(fleet)
    jobs = [Job(number, (Attempt("done", 1.0),)) for number in range(20)]
    assert served(pool, jobs, random.Random(0)) == [f"done {number}" for number in range(20)]
    assert fleet.begun == [3, 3, 1]
    assert caplog.text.count("the others go on") == 2
    deadly = Job(20, (Attempt("died"),) * 3)
    pool.submit(deadly)
    assert pool.next()[2] == "It took 3 workers down with it (died 20)."
    assert deadly.tried == [2, 2, 2]


def test_a_worker_that_was_ready_once_begins_to_count_anew() -> None:
    twice = [Start("died"), Start("died"), Start()]
    fleet = Fleet(1, [twice * 4])
    pool = pool_of(fleet)
    for number in range(3):
        pool.submit(Job(number, (Attempt("died"), Attempt("done"))))
        assert pool.next() == f"done {number}"
    assert fleet.begun == [12]


def test_what_cannot_be_made_at_all_is_said_at_once() -> None:
    fleet = Fleet(2, [[Start("broken")], [Start("hangs")]])
    pool = pool_of(fleet)
    pool.submit(Job(0))
    with pytest.raises(ExecutorError, match="Workers must be able to begin; one says at its start"):
        pool.next()


def test_what_cannot_be_made_any_more_leaves_the_work_to_the_others() -> None:
    fleet = Fleet(2, [[Start(), *[Start("broken")] * 9], [Start()]])
    pool = pool_of(fleet)
    jobs = [Job(0, (Attempt("died"), Attempt("done"))), *(Job(number) for number in range(1, 9))]
    assert served(pool, jobs, random.Random(1)) == [f"done {number}" for number in range(9)]


@pytest.mark.parametrize("workers", [1, 3])
def test_nobody_waits_for_ever_for_workers_that_are_never_ready(workers: int) -> None:
    fleet = Fleet(workers, [[Start("hangs")] * 9] * workers)
    pool = pool_of(fleet)
    pool.submit(Job(0))
    with pytest.raises(ExecutorError, match="Workers must be ready within 1800 s; none is"):
        pool.next()
    assert fleet.now == START


def test_workers_that_are_ready_just_in_time_and_one_that_is_not_are_enough() -> None:
    fleet = Fleet(2, [[Start("ready", START - 1.0)], [Start("hangs")]])
    pool = pool_of(fleet)
    for number in range(4):
        pool.submit(Job(number, (Attempt("done", START * 2),)))
    assert [pool.next() for _ in range(4)] == [f"done {number}" for number in range(4)]


def test_a_worker_given_up_as_late_has_as_long_to_begin_again() -> None:
    fleet = Fleet(1, [[Start(), Start("ready", START - 1.0)]])
    pool = pool_of(fleet, seconds=START * 2)
    pool.submit(Job(0, (Attempt("hangs"),)))
    pool.submit(Job(1))
    assert pool.next()[2] == "It took longer than 3600 s and was stopped."
    assert pool.next() == "done 1"


def test_nothing_is_left_of_workers_that_could_not_all_be_started() -> None:
    class Crowded(Fleet):
        def start(self, worker: int) -> None:
            if worker == 2:
                raise ExecutorError("A worker process must start; the system says no.")
            super().start(worker)

    fleet = Crowded(4)
    with pytest.raises(ExecutorError, match="the system says no"):
        pool_of(fleet)
    assert fleet.closed


def test_a_pool_that_gave_one_worker_two_jobs_would_be_found_out() -> None:
    fleet = Fleet(1)
    pool = pool_of(fleet)
    pool.submit(Job(0, (Attempt("hangs"),)))
    with pytest.raises(AssertionError, match="two jobs at once"):
        fleet.send(0, Job(1))
