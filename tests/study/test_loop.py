"""The loop: what is told, scored, checked and recorded, and what happens when it is stopped or killed."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automc import loop
from automc.evaluation import Evaluation
from automc.executors.inline import Inline
from automc.policy import Policy
from automc.study import Study
from tests.faults.driver import Draws
from tests.study import lab

ROOT = Path(__file__).parents[2]


def run(path: Path, trials: int, seed: int = 0) -> Study:
    study = lab.study(path)
    loop.run(lab.problem(), lab.Draws(seed), lab.lookup, study, trials=trials)
    return study


@pytest.mark.parametrize("stop", [0, 1, 7, 19, 20])
def test_a_search_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole.journal", 20)
    run(tmp_path / "parts.journal", stop)
    assert lab.contents(run(tmp_path / "parts.journal", 20).evaluations) == lab.contents(whole.evaluations)


def test_trials_counts_the_whole_study(tmp_path: Path) -> None:
    run(tmp_path / "lab.journal", 4)
    assert len(run(tmp_path / "lab.journal", 3).evaluations) == 4


def test_a_policy_asked_for_again_is_a_trial_but_is_not_scored_again(tmp_path: Path) -> None:
    class Stubborn(lab.Draws):
        def ask(self) -> Policy:
            self.told, told = self.told // 3, self.told
            policy = super().ask()
            self.told = told
            return policy

        def tell(self, evaluation: Evaluation) -> None:
            self.told += 1

    scored: list[Policy] = []

    def evaluate(policy: Policy) -> Evaluation:
        scored.append(policy)
        return lab.lookup(policy)

    study = lab.study(tmp_path / "lab.journal")
    loop.run(lab.problem(), Stubborn(), evaluate, study, trials=9)
    assert len(study.evaluations) == 9
    assert len(scored) == len(set(scored)) == len({e.policy for e in study.evaluations})
    scores = {e.policy: e.score for e in study.evaluations}
    assert all(e.score == scores[e.policy] for e in study.evaluations)


def test_an_evaluation_over_a_limit_is_infeasible_whatever_it_says(tmp_path: Path) -> None:
    def cheat(policy: Policy) -> Evaluation:
        return replace(lab.lookup(policy), costs=(("macs", 701.0), ("size", 10.0)))

    study = lab.study(tmp_path / "lab.journal")
    loop.run(lab.problem(), lab.Draws(), cheat, study, trials=2)
    assert [e.state for e in study.evaluations] == ["infeasible", "infeasible"]
    assert study.evaluations[0].reason == "macs is 701, the limit 700"
    assert study.pareto() == []


def test_a_failed_candidate_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    def evaluate(policy: Policy) -> Evaluation:
        scored = lab.lookup(policy)
        bad = policy.groups[0][1].criterion == "l1"
        return replace(scored, state="failed", score=None, reason="singular") if bad else scored

    searcher = lab.Draws()
    study = lab.study(tmp_path / "lab.journal")
    loop.run(lab.problem(), searcher, evaluate, study, trials=12)
    assert searcher.told == 12
    assert {e.state for e in study.evaluations} == {"ok", "failed"}


def test_several_candidates_in_flight_come_back_in_order(tmp_path: Path) -> None:
    class Watched(Inline[Policy, Evaluation]):
        most = 0

        def submit(self, policy: Policy) -> None:
            super().submit(policy)
            self.most = max(self.most, len(self._waiting))

    class Counting(lab.Draws):
        def ask(self) -> Policy:
            self.asked = getattr(self, "asked", 0) + 1
            return lab.draw(np.random.default_rng(self.asked))

    executor = Watched(lab.lookup, slots=3)
    study = lab.study(tmp_path / "lab.journal")
    loop.run(lab.problem(), Counting(), executor, study, trials=8)
    expected = [lab.draw(np.random.default_rng(i + 1)) for i in range(8)]
    assert [e.policy for e in study.evaluations] == expected
    assert executor.most == 3


def in_flight(path: Path, trials: int, slots: int, scored: list[Policy] | None = None, stop: int = -1) -> Study:
    """A search with several candidates in flight, interrupted once so many are recorded."""

    def evaluate(policy: Policy) -> Evaluation:
        if scored is not None:
            scored.append(policy)
        return lab.lookup(policy)

    def on_trial(evaluation: Evaluation) -> None:
        if evaluation.number == stop - 1:
            raise KeyboardInterrupt

    study = lab.study(path)
    loop.run(lab.problem(), Draws(), Inline(evaluate, slots), study, trials=trials, on_trial=on_trial)
    return study


@pytest.mark.parametrize("slots", [2, 4, 7])
def test_stopped_after_any_trial_with_several_in_flight_it_goes_on_as_if_it_had_not(tmp_path: Path, slots: int) -> None:
    whole = lab.contents(in_flight(tmp_path / "whole.journal", 16, slots).evaluations)
    assert len({policy for _, policy, *_ in whole}) < len(whole)
    for stop in (1, 2, 4, 7, 13, 16):
        told, cut = tmp_path / f"{stop} told.journal", tmp_path / f"{stop} cut.journal"
        in_flight(told, stop, slots)
        with pytest.raises(KeyboardInterrupt):
            in_flight(cut, 16, slots, stop=stop)
        for path in (told, cut):
            assert len(Study.open(path).evaluations) == stop
            assert lab.contents(in_flight(path, 16, slots).evaluations) == whole


@pytest.mark.parametrize("slots", [2, 4, 7])
def test_a_policy_asked_for_twice_while_in_flight_is_scored_once(tmp_path: Path, slots: int) -> None:
    scored: list[Policy] = []
    study = in_flight(tmp_path / "lab.journal", 30, slots, scored)
    policies = [e.policy for e in study.evaluations]
    assert len(policies) == 30 > len(set(policies)) == len(scored) and set(scored) == set(policies)
    again = [i for i, policy in enumerate(policies) if policy in policies[:i]]
    assert all(study.evaluations[i].score == lab.lookup(policies[i]).score for i in again)


def test_a_policy_recorded_before_the_search_was_stopped_is_not_scored_again(tmp_path: Path) -> None:
    scored: list[Policy] = []
    for trials in (3, 6, 13, 30):
        in_flight(tmp_path / "lab.journal", trials, 4, scored)
    assert len(scored) == len(set(scored)) == len({e.policy for e in Study.open(tmp_path / "lab.journal").evaluations})


def test_what_is_in_flight_when_the_time_is_over_is_recorded_and_nothing_more_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def evaluate(policy: Policy) -> Evaluation:
        nonlocal now
        now += 1.0
        return lab.lookup(policy)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    path = tmp_path / "lab.journal"
    loop.run(lab.problem(), Draws(), Inline(evaluate, 4), lab.study(path), trials=50, seconds=4.5)
    assert len(Study.open(path).evaluations) == 8  # four more than were begun in time and four that were in flight
    now = 0.0
    loop.run(lab.problem(), Draws(), Inline(evaluate, 4), lab.study(path), trials=20, seconds=100.0)
    whole = in_flight(tmp_path / "whole.journal", 20, 4)
    assert lab.contents(Study.open(path).evaluations) == lab.contents(whole.evaluations)


def test_a_policy_stopped_early_and_asked_for_again_is_not_scored_again(tmp_path: Path) -> None:
    class Same(lab.Draws):
        def ask(self) -> Policy:
            return lab.draw(np.random.default_rng(self.told % 3))

    scored: list[Policy] = []

    def evaluate(policy: Policy) -> Evaluation:
        scored.append(policy)
        found = lab.lookup(policy)
        return found if len(scored) == 1 else lab.pruned(found)

    path = tmp_path / "lab.journal"
    loop.run(lab.problem(), Same(), evaluate, lab.study(path), trials=5)
    loop.run(lab.problem(), Same(), evaluate, lab.study(path), trials=9)
    study = Study.open(path)
    assert len(scored) == 3
    assert [e.state for e in study.evaluations] == ["ok", "pruned", "pruned"] * 3
    for first, again in zip(study.evaluations, study.evaluations[3:], strict=False):
        assert replace(again, number=first.number, seconds=first.seconds) == first


def test_an_estimate_over_a_limit_is_infeasible(tmp_path: Path) -> None:
    def cheat(policy: Policy) -> Evaluation:
        return lab.pruned(replace(lab.lookup(policy), costs=(("macs", 701.0), ("size", 10.0))))

    study = lab.study(tmp_path / "lab.journal")
    loop.run(lab.problem(), lab.Draws(), cheat, study, trials=1)
    (found,) = study.evaluations
    assert (found.state, found.score, found.metric, found.stages) == ("infeasible", None, None, ())


def test_what_scores_learns_every_record_before_the_searcher_and_earlier_ones_first(tmp_path: Path) -> None:
    order: list[tuple[str, int]] = []

    class Telling(lab.Draws):
        def tell(self, evaluation: Evaluation) -> None:
            order.append(("searcher", evaluation.number))
            super().tell(evaluation)

    def learn(evaluation: Evaluation) -> None:
        order.append(("scorer", evaluation.number))

    path = tmp_path / "lab.journal"
    run(path, 3)
    loop.run(lab.problem(), Telling(), lab.lookup, lab.study(path), trials=5, learn=learn)
    assert order == [(who, number) for number in range(5) for who in ("scorer", "searcher")]


def test_no_time_left_means_no_further_trial(tmp_path: Path) -> None:
    study = lab.study(tmp_path / "lab.journal")
    loop.run(lab.problem(), lab.Draws(), lab.lookup, study, trials=50, seconds=0.0)
    assert study.evaluations == ()


def test_a_signal_during_the_record_waits_for_it(tmp_path: Path) -> None:
    class Interrupted(Study):
        def record(self, evaluation: Evaluation) -> Evaluation:
            if len(self.evaluations) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().record(evaluation)

    study = Interrupted.create(tmp_path / "lab.journal", "lab", lab.meta(), lab.AXES)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.run(lab.problem(), lab.Draws(), lab.lookup, study, trials=50)
    assert len(Study.open(tmp_path / "lab.journal").evaluations) == 4
    assert signal.getsignal(signal.SIGINT) is handler


def start(path: Path, trials: int, side: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.study.worker", str(path), str(trials), str(side), str(pause)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(240)
def test_kills_lose_and_double_no_finished_trial(tmp_path: Path, kills: int) -> None:
    path, side, trials = tmp_path / "lab.journal", tmp_path / "side.log", 60
    rng = random.Random(0)
    lab.study(path)
    for _ in range(kills):
        goal = len(Study.open(path).evaluations) + 40  # never done before the kill
        process = start(path, goal, side, 0.002)
        time.sleep(rng.uniform(0.0, 0.06))
        process.kill()
        process.wait()
        process.communicate()
        _check_against(side, Study.open(path))
    study = run(path, max(trials, len(Study.open(path).evaluations)))
    assert [e.number for e in study.evaluations] == list(range(len(study.evaluations)))
    undisturbed = run(tmp_path / "other.journal", len(study.evaluations))
    assert lab.contents(study.evaluations) == lab.contents(undisturbed.evaluations)


def _check_against(side: Path, study: Study) -> None:
    """Every record that returned is there, in its place; at most the one in the making is there besides."""
    lines = [line.split() for line in side.read_text().splitlines()] if side.exists() else []
    done = {int(line[2]): line[1] for line in lines if line[0] == "after"}
    begun = {line[1] for line in lines if line[0] == "before"}
    found = {e.number: e.policy.digest for e in study.evaluations}
    assert done.items() <= found.items()
    assert set(found.values()) <= begun


@pytest.mark.parametrize("turns", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_signal_at_a_random_moment_leaves_a_study_that_goes_on(
    tmp_path: Path, number: signal.Signals, status: int, turns: int
) -> None:
    path = tmp_path / "lab.journal"
    rng = random.Random(int(number))
    for turn in range(turns):
        process = start(path, 10_000, tmp_path / "side.log", 0.002)
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (status, -number), turn  # negative: the signal came before the search began
        _check_against(tmp_path / "side.log", Study.open(path))
        assert not (tmp_path / "lab.journal.lock").is_symlink()
    count = len(Study.open(path).evaluations)
    whole = run(path, count + 5)
    assert lab.contents(whole.evaluations) == lab.contents(run(tmp_path / "other.journal", count + 5).evaluations)
