"""Whole runs of Ray Tune: what stands in the study is what a search of automc's own would have found."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

import automc
from automc.evaluation import Evaluation
from automc.study import Study
from automc.tuning.ledger import POLICY
from automc.tuning.recording import Recording
from tests.scoring import tiny
from tests.tune.cluster import SETTING, STAGES, Faulty, fit, slow, tuned

pytestmark = pytest.mark.usefixtures("local_ray")


def timeless(evaluations: tuple[Evaluation, ...]) -> list[Evaluation]:
    return [replace(e, seconds=0.0) for e in evaluations]


def check_budget(study: Study) -> None:
    limit = study.meta["limits"]["macs"]
    assert study.evaluations and all(e.cost("macs") <= limit for e in study.evaluations)


@pytest.mark.slow
def test_a_run_and_its_resume_make_the_trials_of_a_search_whatever_became_of_tunes_own_files(tmp_path):
    """One at a time, joint search and all; Tune's files are cut in half between the two runs."""
    own = automc.search(tiny.task(), trials=9, storage=tmp_path / "own.journal", study="own", **SETTING)
    first = tuned(tmp_path, tiny.task(), trials=5)
    results = fit(tmp_path, first, alone=True)
    assert timeless(first.study.evaluations) == timeless(own.evaluations[:5])
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert {"tuner.pkl"} <= {p.name for p in files}
    assert not [p.name for p in files if p.name.startswith("searcher-state")]
    check_pickle(tmp_path / "run" / "tuner.pkl")
    for path in files:
        os.truncate(path, path.stat().st_size // 2)
    again = tuned(tmp_path, tiny.task(), trials=9)
    more = fit(tmp_path, again, alone=True)
    assert (len(results), len(more)) == (5, 4)
    assert timeless(again.study.evaluations) == timeless(own.evaluations)
    check_budget(again.study)
    assert more.get_dataframe()["pid"].nunique() == 1, "one actor, from trial to trial"
    assert fit(tmp_path, tuned(tmp_path, tiny.task(), trials=9)).num_errors == 0
    assert len(Study.open(tmp_path / "tuned.journal").evaluations) == 9


def check_pickle(path: Path) -> None:
    """Of the searcher there is a name and nothing more."""
    words = path.read_bytes()
    assert b"_Copy" in words and b"fingerprint" not in words and b"TuneSearcher" not in words


def test_a_scheduler_stops_some_trials_and_they_are_pruned_with_what_was_seen(tmp_path):
    asha = ASHAScheduler(time_attr="samples", max_t=tiny.SAMPLES, grace_period=64, reduction_factor=2)
    search = tuned(tmp_path, tiny.task(), trials=14, searcher="random", stages=STAGES)
    results = fit(tmp_path, search, scheduler=asha)
    study = search.study
    by_state = {state: [e for e in study.evaluations if e.state == state] for state in ("ok", "pruned")}
    assert len(study.evaluations) == len(results) == 14 == sum(map(len, by_state.values()))
    assert by_state["ok"] and by_state["pruned"]
    check_budget(study)
    shares = [n / tiny.SAMPLES for n in STAGES]
    for evaluation in by_state["pruned"]:
        assert evaluation.share in shares and evaluation.stages[-1][0] == round(evaluation.share * tiny.SAMPLES)
        assert evaluation.score == evaluation.stages[-1][1]
        assert re.match(r"Stopped by Ray Tune after (64|256|1024) samples, [\d.]+% of all\.", evaluation.reason)
    for evaluation in by_state["ok"]:
        whole = search.ledger.setting.evaluator.evaluate(evaluation.policy)
        assert (evaluation.score, evaluation.metric, evaluation.costs) == (whole.score, whole.metric, whole.costs)
        assert [n for n, _ in evaluation.stages] == [*STAGES, tiny.SAMPLES]
    assert {t.state.name for t in study.optuna.get_trials()} == {"COMPLETE", "PRUNED"}
    best = results.get_best_result().metrics
    assert best is not None and best["config"]["policy"] and best["state"] == "ok"


@pytest.mark.slow
def test_trials_that_raise_and_trials_that_take_their_actor_with_them_are_failed_and_the_run_goes_on(tmp_path):
    search = tuned(tmp_path, tiny.task(evaluate=Faulty()), trials=6, searcher="random", score="metric")
    results = fit(tmp_path, search, alone=True)
    ended = "Ray Tune ended the trial with an error; error.txt in the trial's folder says which."
    found = [(e.state, e.reason) for e in search.study.evaluations]
    raised = ("failed", "ArithmeticError: not this one")
    assert found == [("ok", ""), raised, ("ok", ""), ("failed", ended), ("ok", ""), raised]
    assert results.num_errors == 1
    check_budget(search.study)


def test_a_storage_that_cannot_be_written_to_ends_the_run_with_its_sentence(tmp_path, monkeypatch):
    search = tuned(tmp_path, tiny.task(), trials=4, searcher="random")

    def full(self, evaluation):
        raise automc.errors.StudyError("A study must be writable; the disk is full: free space.")

    with monkeypatch.context() as patch:
        patch.setattr(Study, "append", full)
        with pytest.raises(Exception, match="the disk is full: free space"):
            fit(tmp_path, search, alone=True)
    again = tuned(tmp_path, tiny.task(), trials=1, searcher="random")
    assert again.study.evaluations == ()


@pytest.mark.slow
def test_tunes_own_restore_is_refused_with_what_to_do_instead(tmp_path):
    search = tuned(tmp_path, tiny.task(), trials=1, searcher="random")
    fit(tmp_path, search)
    restored = tune.Tuner.restore(str(tmp_path / "run"), trainable=automc.trainable(search))
    with pytest.raises(Exception, match=r"make a new Tuner, with .* of the same study"):
        restored.fit()


class Pausing(FIFOScheduler):
    """Pauses each trial after its first stage, as HyperBand does, and stops every third while it is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.paused: list[Any] = []

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial in self.paused:
            return self.CONTINUE
        if len(self.paused) % 3 == 2 and self.paused[-1].status == trial.PAUSED:
            tune_controller.stop_trial(self.paused[-1])
        self.paused.append(trial)
        return self.PAUSE


@pytest.mark.slow
def test_trials_that_are_paused_go_on_from_their_scores_or_are_pruned_where_they_were(tmp_path):
    search = tuned(tmp_path, tiny.task(), trials=9, searcher="random", stages=STAGES)
    results = fit(tmp_path, search, scheduler=Pausing())
    found = search.study.evaluations
    assert len(found) == len(results) == 9
    check_budget(search.study)
    stopped = [e for e in found if not e.ok]
    assert stopped and {(e.state, e.share, len(e.stages)) for e in stopped} == {("pruned", 64 / tiny.SAMPLES, 1)}
    for evaluation in (e for e in found if e.ok):
        whole = search.ledger.setting.evaluator.evaluate(evaluation.policy)
        assert (evaluation.score, evaluation.metric) == (whole.score, whole.metric)
        assert [n for n, _ in evaluation.stages] == [*STAGES, tiny.SAMPLES]
    ended = results.get_dataframe().query("state == 'ok'")
    assert (ended["training_iteration"] == 4).all() and (ended["iterations_since_restore"] == 3).all()


@pytest.mark.slow
def test_a_population_based_scheduler_changes_policies_and_each_is_recorded_once(tmp_path):
    search = tuned(tmp_path, tiny.task(metric=slow), trials=100, searcher="random", score="metric", stages=STAGES)
    population = PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=1, hyperparam_mutations={POLICY: search.draw},
        resample_probability=1.0, quantile_fraction=0.5,
    )  # fmt: skip
    run = tune.RunConfig(storage_path=str(tmp_path), name="run", verbose=0, callbacks=[Recording(search)])
    results = fit(tmp_path, search, run, scheduler=population, search_alg=None, num_samples=6)
    found = search.study.evaluations
    check_budget(search.study)
    assert len({e.policy.digest for e in found}) == len(found) > len(results) == 6, "some gave way to others"
    assert {e.state for e in found} == {"ok", "pruned"} and {e.proposer for e in found} == {"random"}
    for evaluation in (e for e in found if e.ok):
        whole = search.ledger.setting.evaluator.evaluate(evaluation.policy)
        assert (evaluation.score, evaluation.metric) == (whole.score, whole.metric)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_killed_loses_nothing_and_a_new_tuner_adds_what_remains(number, tmp_path):
    command = [sys.executable, "-m", "tests.tune.cluster", str(tmp_path), "30"]
    driver = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    journal = tmp_path / "tuned.journal"
    while not (tmp_path / "ready").exists() or len(recorded(journal)) < 4:
        assert driver.poll() is None
        time.sleep(0.2)
    driver.send_signal(number)
    driver.wait(120)
    before = recorded(journal)
    assert 4 <= len(before) < 30
    again = tuned(tmp_path, tiny.task(metric=slow), trials=len(before) + 6, score="metric")
    results = fit(tmp_path, again)
    found = again.study.evaluations
    assert len(results) == 6 and timeless(found[: len(before)]) == timeless(before)
    assert [e.number for e in found] == list(range(len(before) + 6))
    assert len({e.policy.digest for e in found}) == len(found)
    check_budget(again.study)


def recorded(journal: Path) -> tuple[Evaluation, ...]:
    return Study.open(journal).evaluations


@pytest.mark.slow
def test_several_actors_at_once_record_each_trial_once(tmp_path):
    search = tuned(tmp_path, tiny.task(metric=slow), trials=20, score="metric")
    results = fit(tmp_path, search, max_concurrent_trials=2)
    found = search.study.evaluations
    assert len(found) == 20 and len({e.policy.digest for e in found}) == len(results)
    assert results.get_dataframe()["pid"].nunique() == 2
    check_budget(search.study)
