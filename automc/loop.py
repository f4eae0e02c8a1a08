"""The one loop of every search: ask, score, check the limits, record, tell.

What a searcher is told on resume is what it was told the first time, so an interrupted search goes on as an
uninterrupted one; where several candidates are in flight at once, it is asked between the recorded trials as it was the
first time, so that it knows as much of what is in flight; where a searcher can note open asks (`Reopens`), only between
those that were still open at the end. A policy is scored once; asked for again, it becomes a trial
with the recorded score.
"""

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import FrameType

from automc.claims import Claims
from automc.evaluation import Evaluation
from automc.executors.executor import Executor
from automc.executors.inline import Inline
from automc.policy import Policy
from automc.projection import within
from automc.searcher import Problem, Reopens, Searcher
from automc.study import Study

OnTrial = Callable[[Evaluation], None]
PAUSE = 0.2
"""Seconds before a search with nothing to do asks again whether the others have left something."""
FRUITLESS = 20
"""Proposals in a row that others had before, after which a search scores what it has, or waits for news."""


def run(
    problem: Problem,
    searcher: Searcher,
    evaluate: Callable[[Policy], Evaluation] | Executor[Policy, Evaluation],
    study: Study,
    *,
    trials: int,
    seconds: float | None = None,
    on_trial: OnTrial | None = None,
    learn: OnTrial | None = None,
) -> None:
    """Searches until the study holds `trials` evaluations or `seconds` have passed; what it holds already counts.

    `learn` belongs to what scores: it is told every evaluation before the searcher is, those recorded earlier too.
    `on_trial` is told each one that is recorded meanwhile, also by others that share the study.

    Ctrl-C raises KeyboardInterrupt and SIGTERM raises SystemExit(143), both after the trial being recorded is on disk;
    the candidate being scored is given up. A second Ctrl-C waits for nothing.
    """
    executor: Executor[Policy, Evaluation] = evaluate if isinstance(evaluate, Executor) else Inline(evaluate)
    kind = _Loop if study.claims is None else _SharedLoop
    with study.searching(), _Signals() as signals:
        kind(problem, searcher, executor, study, signals, on_trial, learn).run(trials, seconds)


def checked(evaluation: Evaluation, limits: Mapping[str, float]) -> Evaluation:
    """The evaluation, infeasible if it breaks a limit whatever its proposer thought."""
    costs = dict(evaluation.costs)
    if not evaluation.scored or within(costs, limits):
        return evaluation
    broken = "; ".join(f"{n} is {costs[n]:g}, the limit {b:g}" for n, b in limits.items() if not costs[n] <= b)
    return replace(evaluation, state="infeasible", score=None, metric=None, stages=(), reason=broken)


class _Loop:
    """The state of one run."""

    def __init__(
        self,
        problem: Problem,
        searcher: Searcher,
        executor: Executor[Policy, Evaluation],
        study: Study,
        signals: "_Signals",
        on_trial: OnTrial | None,
        learn: OnTrial | None,
    ) -> None:
        self.problem, self.searcher, self.executor, self.study = problem, searcher, executor, study
        self.signals, self.on_trial, self.learn = signals, on_trial, learn
        self.known: dict[str, Evaluation] = {}
        self.asked: deque[tuple[Policy, str]] = deque()
        """Policies in flight, oldest first, each with its proposer."""

    def run(self, trials: int, seconds: float | None) -> None:
        start = time.monotonic()
        recorded = self.study.evaluations
        first = self._first_replayed(len(recorded))
        for done, evaluation in enumerate(recorded):
            if done == first:
                self._reopen(recorded[first:])
            if done >= first:
                self._fill(done, trials, recorded)
                if self.asked:
                    self.asked.popleft()
            self._learn(evaluation)
        for done in range(len(recorded), trials):
            if seconds is None or time.monotonic() - start < seconds:
                self._fill(done, trials, recorded)
            if not self.asked:
                return
            self._finish()

    def _first_replayed(self, recorded: int) -> int:
        """How many trials were told when the first policy was asked for that is not recorded.

        All others recorded were open then; asks before that need not be made again for a searcher that is told so.
        """
        slots = self.executor.slots
        if slots == 1:  # alone in flight, a candidate is asked for when all before it are told
            return recorded
        return max(recorded - slots + 1, 0) if isinstance(self.searcher, Reopens) else 0

    def _reopen(self, evaluations: Sequence[Evaluation]) -> None:
        """Has what was recorded last be in flight again, where the searcher can be told so."""
        if isinstance(self.searcher, Reopens):
            for evaluation in evaluations:
                self.searcher.reopen(evaluation.policy, evaluation.proposer)
                self.asked.append((evaluation.policy, evaluation.proposer))

    def _fill(self, done: int, trials: int, recorded: Sequence[Evaluation]) -> None:
        """Asks for as many as may be in flight after so many trials; in the place of what is recorded stands that."""
        while len(self.asked) < min(self.executor.slots, trials - done):
            policy, number = self.searcher.ask(), done + len(self.asked)
            if number < len(recorded):
                self.asked.append((recorded[number].policy, recorded[number].proposer))
            else:
                self._submit(policy)

    def _submit(self, policy: Policy) -> None:
        proposer = str(getattr(self.searcher, "proposer", self.study.meta.get("searcher", "")))
        if policy.digest not in self.known and all(policy != p for p, _ in self.asked):
            self.executor.submit(policy)
        self.asked.append((policy, proposer))

    def _finish(self) -> None:
        """Takes the oldest candidate back; from its score to its record nothing may interrupt."""
        policy, proposer = self.asked[0]
        before = self.known.get(policy.digest)
        scored = self.executor.next() if before is None else replace(before, number=-1, seconds=0.0)
        self.asked.popleft()
        with self.signals.deferred():
            self._record(checked(replace(scored, proposer=proposer), self.problem.projector.limits))

    def _record(self, evaluation: Evaluation) -> None:
        """Records and tells an evaluation, and whatever has become known besides."""
        self._tell(self.study.record(evaluation))

    def _tell(self, evaluation: Evaluation) -> None:
        """Tells all of an evaluation that was just recorded."""
        self._learn(evaluation)
        if self.on_trial is not None:
            self.on_trial(evaluation)

    def _learn(self, evaluation: Evaluation) -> None:
        self.known.setdefault(evaluation.policy.digest, evaluation)
        if self.learn is not None:
            self.learn(evaluation)
        self.searcher.tell(evaluation)


class _SharedLoop(_Loop):
    """One of several searches of a study: a policy is scored by whoever claims it first, and told to all.

    What is told, and when, depends on how fast the others are, so that trials are no function of the seed.
    """

    def run(self, trials: int, seconds: float | None) -> None:
        start = time.monotonic()
        for evaluation in self.study.evaluations:
            self._learn(evaluation)
        while len(self.study.evaluations) < trials:
            late = seconds is not None and time.monotonic() - start >= seconds
            wanted = not late and self._claim_some(trials)
            if self.asked:
                self._finish()
            elif late or not self._others():
                return
            elif not wanted:
                time.sleep(PAUSE)
                self._hear()

    def _claim_some(self, trials: int) -> bool:
        """Asks and claims until as many as may be are in flight; whether there is anything left to claim."""
        fruitless = 0
        while len(self.asked) < self.executor.slots and fruitless < FRUITLESS:
            policy = self.searcher.ask()
            verdict = self._claims.take(policy.digest, trials, self._heard)
            if verdict == "enough":
                return False
            if verdict == "won":
                self._submit(policy)
            fruitless = 0 if verdict == "won" else fruitless + 1
        return fruitless < FRUITLESS

    def _record(self, evaluation: Evaluation) -> None:
        self.study.append(evaluation)
        self._claims.done(evaluation.policy.digest)
        self._hear()

    def _hear(self) -> None:
        """Tells what was recorded meanwhile, by whomever."""
        for evaluation in self.study.news():
            self._tell(evaluation)

    def _heard(self) -> Sequence[Evaluation]:
        """All that is recorded by now, told."""
        self._hear()
        return self.study.evaluations

    @property
    def _claims(self) -> Claims:
        assert self.study.claims is not None  # it is shared
        return self.study.claims

    def _others(self) -> bool:
        return self._claims.others()


class _Signals(contextlib.AbstractContextManager["_Signals"]):
    """Turns SIGINT and SIGTERM into exceptions, but not while a trial is being recorded.

    Outside the main thread Python delivers no signals, and this does nothing.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._pending: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Holds a signal back until the block is done."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._pending is not None:
            _stop(self._pending)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        first = self._pending is None
        self._pending = number
        if not (self._deferring and first):
            _stop(number)


def _stop(number: int) -> None:
    if number == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    raise KeyboardInterrupt
