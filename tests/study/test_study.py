"""What a study keeps, and what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automc.errors import StudyError
from automc.evaluation import Evaluation
from automc.study import Study
from tests.study import lab


def filled(path: Path | str, count: int, seed: int = 1) -> Study:
    rng = np.random.default_rng(seed)
    study = lab.study(path)
    for _ in range(count):
        study.record(lab.lookup(lab.draw(rng)))
    return study


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_reading_back_gives_the_same_evaluations_and_facts(tmp_path: Path, kind: str) -> None:
    where = str(tmp_path / "lab.journal") if kind == "journal" else f"sqlite:///{tmp_path}/lab.db"
    study = filled(where, 5)
    study.record(replace(lab.lookup(lab.draw(np.random.default_rng(9))), state="failed", score=None, reason="singular"))
    again = Study.open(where)
    assert again.evaluations == study.evaluations
    assert [e.number for e in again.evaluations] == list(range(6))
    assert again.meta == study.meta
    assert again.axes == study.axes
    assert again.best == study.best
    assert again.pareto() == study.pareto()


def test_optuna_sees_readable_parameters_named_objectives_and_constraints(tmp_path: Path) -> None:
    study = lab.study(tmp_path / "lab.journal")
    good = lab.lookup(lab.draw(np.random.default_rng(0)))
    broken = replace(good, state="infeasible", score=None, costs=(("macs", 800.0), ("size", 100.0)), reason="macs")
    failed = replace(good, state="failed", score=None, reason="singular")
    for evaluation in (good, broken, failed):
        study.record(evaluation)
    found = optuna.load_study(study_name="lab", storage=study.optuna._storage)
    assert found.metric_names == ["score", "macs", "size"]
    assert [d.name for d in found.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    first, second, third = found.trials
    assert first.values == [good.score, *dict(good.costs).values()]
    assert first.params["group:stem:keep"] == good.policy.group("stem").keep
    assert first.params["layer:body.1:weight_bits"] == good.policy.layer("body.1").weight_bits
    assert set(first.params) == {a.key for a in lab.AXES}
    assert all(v <= 0 for v in first.constraints.values())
    assert second.constraints["macs"] > 0
    assert second.system_attrs["constraints"][0] > 0  # where the dashboard looks
    assert third.state == optuna.trial.TrialState.FAIL
    assert third.user_attrs["reason"] == "singular"


def test_only_feasible_evaluations_are_best_or_in_the_front(tmp_path: Path) -> None:
    study = filled(tmp_path / "lab.journal", 4)
    top = replace(lab.lookup(lab.draw(np.random.default_rng(5))), state="infeasible", score=None, reason="macs")
    study.record(top)
    assert study.best.score == max(e.score for e in study.evaluations if e.score is not None)
    assert all(e.ok for e in study.pareto())
    assert {e.number for e in study.pareto(("macs",))} <= {e.number for e in study.evaluations}


def test_a_study_without_a_feasible_trial_has_no_best_and_says_why(tmp_path: Path) -> None:
    study = lab.study(tmp_path / "lab.journal")
    with pytest.raises(StudyError, match=r"none of 0 in 'lab' is: search some trials first"):
        _ = study.best
    study.record(replace(lab.lookup(lab.draw(np.random.default_rng(0))), state="failed", score=None, reason="singular"))
    with pytest.raises(StudyError, match=r"none of 1 in 'lab' is: the last one failed with: singular"):
        _ = study.best


def test_an_evaluation_cannot_be_recorded_twice(tmp_path: Path) -> None:
    study = lab.study(tmp_path / "lab.journal")
    recorded = study.record(lab.lookup(lab.draw(np.random.default_rng(0))))
    with pytest.raises(StudyError, match="this one is trial 0 already"):
        study.record(recorded)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "a" * 64}, "the model it began with.*has ffffffffffff, given aaaaaaaaaaaa"),
        ({"budget": "macs<=10%", "limits": {"macs": 100.0, "size": 3000.0}}, "the budget it began.*given macs<=10%"),
        ({"limits": {"macs": 700.0, "size": 3000.5}}, "the budget it began with.*3000.0}, given .*3000.5}"),
        ({"limits": {"size": 3000.0, "macs": 700.0}}, "the budget it began with"),
        ({"recipe": {"seed": 1}}, "the recipe it began with"),
        ({"metric": "f1"}, "the metric it began with.*has accuracy, given f1"),
        ({"dense": {"score": 0.9897}}, "metric and validation data.* score was 0.99 .* and is 0.9897 now"),
        ({"dense": {"score": 0.99, "metric": 0.8}}, "metric and validation data.* metric was 0.7 .* and is 0.8 now"),
    ],
)
def test_going_on_with_something_else_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    lab.study(tmp_path / "lab.journal", metric="accuracy", dense={"score": 0.99, "metric": 0.7})
    before = (tmp_path / "lab.journal").read_bytes()
    with pytest.raises(StudyError, match=said):
        lab.study(tmp_path / "lab.journal", **{"metric": "accuracy"} | change)
    assert (tmp_path / "lab.journal").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"budget": "size<=3KB,macs<=0.7K"},  # other words for the same limits
        {"dense": {"score": 0.99 + 2e-5, "metric": 0.7 - 2e-5}},  # another processor
        {"metric": "accuracy"},
    ],
)
def test_what_an_older_record_lacks_other_words_and_rounding_are_no_difference(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    lab.study(tmp_path / "lab.journal", dense={"score": 0.99, "metric": 0.7})
    assert lab.study(tmp_path / "lab.journal", **change).meta["budget"] == lab.meta()["budget"]
    lab.study(tmp_path / "old.journal", dense={})
    lab.study(tmp_path / "old.journal", **change)


def test_another_space_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "lab.journal", 1)
    with pytest.raises(StudyError, match="the space it began with"):
        Study.create(tmp_path / "lab.journal", "lab", lab.meta(), lab.AXES[:3])


def test_a_half_made_study_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    lab.study(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))  # killed while it was being described
    study = lab.study(path)
    study.record(lab.lookup(lab.draw(np.random.default_rng(0))))
    assert Study.open(path).meta["fingerprint"] == lab.FINGERPRINT


def test_opening_what_is_no_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no"):
        Study.open(tmp_path / "nothing.journal")
    notes = tmp_path / "notes.txt"
    notes.write_text("dear diary\n")
    for call in (Study.open, lab.study):
        with pytest.raises(StudyError, match="another kind of file"):
            call(notes)
    assert notes.read_text() == "dear diary\n"
    with pytest.raises(StudyError, match="must be a study's storage"):
        Study.open("nosuchdb://here/there", "x")
    lab.study(tmp_path / "two.journal", "one")
    lab.study(tmp_path / "two.journal", "two")
    with pytest.raises(StudyError, match="holds one, two: give --study"):
        Study.open(tmp_path / "two.journal")
    with pytest.raises(StudyError, match=r"holds one, two and no 'three': give one of these by --study"):
        Study.open(tmp_path / "two.journal", "three")
    assert Study.open(tmp_path / "two.journal", usual="two").name == "two"
    with pytest.raises(StudyError, match="holds one, two: give --study"):
        Study.open(tmp_path / "two.journal", usual="three")


@pytest.mark.parametrize("where", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite:///:memory:"])
def test_a_database_in_memory_is_refused_by_name(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (Study.open, lab.study):
        with pytest.raises(StudyError, match=f"on a server; {re.escape(where)} is gone with its process"):
            call(where)
    assert not list(tmp_path.iterdir())


def test_an_unknown_trial_is_refused_with_the_range(tmp_path: Path) -> None:
    study = filled(tmp_path / "lab.journal", 3)
    assert study.trial("2").number == 2
    assert study.trial() == study.best
    with pytest.raises(StudyError, match="a number from 0 to 2; '7' is neither"):
        study.trial("7")


def test_a_cost_that_is_not_a_number_counts_as_failed_for_optuna(tmp_path: Path) -> None:
    study = lab.study(tmp_path / "lab.journal")
    odd = replace(
        lab.lookup(lab.draw(np.random.default_rng(0))), state="infeasible", score=None, costs=(("macs", float("nan")),)
    )
    assert isinstance(study.record(odd), Evaluation)
    assert study.optuna.trials[0].state == optuna.trial.TrialState.FAIL


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_trial_stopped_early_is_pruned_for_optuna_with_its_estimates_and_read_back_whole(
    tmp_path: Path, kind: str
) -> None:
    where = str(tmp_path / "lab.journal") if kind == "journal" else f"sqlite:///{tmp_path}/lab.db"
    study = lab.study(where)
    good, other = (lab.lookup(lab.draw(np.random.default_rng(i))) for i in (0, 1))
    assert good.score is not None
    study.record(replace(good, stages=((256, 0.4), (1024, 0.6), (5000, good.score))))
    study.record(lab.pruned(other))
    first, second = study.optuna.trials
    assert first.state == optuna.trial.TrialState.COMPLETE
    assert first.intermediate_values == {256: 0.4, 1024: 0.6, 5000: good.score}
    assert second.state == optuna.trial.TrialState.PRUNED and second.values is None
    assert second.intermediate_values == {256: other.score}
    assert set(second.params) == {a.key for a in lab.AXES} and set(lab.LIMITS) <= set(second.constraints)
    assert [t.number for t in study.optuna.best_trials] == [0]
    again = Study.open(where)
    assert again.evaluations == study.evaluations
    assert again.evaluations[1].stages == ((256, other.score),) and again.evaluations[1].share == 0.05


def test_an_estimate_is_never_best_nor_on_a_front_however_high(tmp_path: Path) -> None:
    study = filled(tmp_path / "lab.journal", 4)
    best, front = study.best, study.pareto()
    cheap = replace(lab.lookup(lab.draw(np.random.default_rng(5))), costs=(("macs", 1.0), ("size", 1.0)))
    study.record(lab.pruned(cheap, 0.999))
    assert study.best == best and study.pareto() == front
    alone = lab.study(tmp_path / "alone.journal")
    alone.record(lab.pruned(cheap, 0.999))
    assert alone.pareto() == []
    with pytest.raises(StudyError, match="none of 1 in 'lab' is: search some trials first"):
        _ = alone.best


def test_records_of_before_there_were_stages_are_read(tmp_path: Path) -> None:
    before = filled(tmp_path / "lab.journal", 3).evaluations
    old = [json.loads(e.to_json()) for e in before]
    for data, evaluation in zip(old, before, strict=True):
        del data["stages"]
        assert replace(Evaluation.from_dict(data), number=evaluation.number) == evaluation


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(allow_nan=False, allow_infinity=False)), max_size=4),
    st.sampled_from(["ok", "pruned"]),
)
def test_stages_survive_json(stages: list[tuple[int, float]], state: Any) -> None:
    found = replace(lab.lookup(lab.draw(np.random.default_rng(0))), stages=tuple(stages), state=state)
    assert Evaluation.from_dict(json.loads(found.to_json())) == found
    assert found.scored and found.ok == (state == "ok")


def graded(path: Path, *trials: tuple[float, float, str], **meta: Any) -> Study:
    """A study of (score, macs, state); the dense score is 0.99 unless said."""
    study, rng = lab.study(path, **meta), np.random.default_rng(0)
    for score, macs, state in trials:
        found = lab.lookup(lab.draw(rng))
        costs = (("macs", macs), ("size", 1000.0 - macs))
        study.record(replace(found, state=state, score=None if state == "failed" else score, costs=costs))  # type: ignore[arg-type]
    return study


def test_the_cheapest_trial_within_a_drop_is_found_by_brute_force(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trials = [(float(rng.uniform(0.8, 1.0)), float(rng.integers(100, 700)), "ok") for _ in range(30)]
    study = graded(tmp_path / "lab.journal", *trials)
    for drop in (0.02, 0.05, 0.1, 0.5):
        within = [(macs, -score) for score, macs, _ in trials if score >= 0.99 - drop]
        found = study.cheapest(drop)
        assert (found.cost("macs"), -(found.score or 0.0)) == min(within)
        assert study.cheapest(drop, "size").cost("size") == min(1000.0 - macs for macs, _ in within)


def test_only_full_scores_within_the_budget_count_as_cheapest(tmp_path: Path) -> None:
    states = [(0.98, 100.0, "pruned"), (0.98, 200.0, "failed"), (0.98, 400.0, "ok"), (0.985, 400.0, "ok")]
    assert graded(tmp_path / "lab.journal", *states).cheapest(0.01).number == 3  # of equally cheap ones the better


def test_a_drop_reaches_the_score_it_names_despite_rounding(tmp_path: Path) -> None:
    assert 0.93 - 0.06 > 0.87  # in binary
    study = graded(tmp_path / "lab.journal", (0.87, 300.0, "ok"), dense={"score": 0.93, "costs": {"macs": 1000.0}})
    assert study.cheapest(0.06).number == 0


def test_no_trial_within_a_drop_is_a_sentence_with_the_smallest_there_is(tmp_path: Path) -> None:
    study = graded(tmp_path / "lab.journal", (0.9, 300.0, "ok"), (0.95, 400.0, "ok"))
    with pytest.raises(StudyError, match=r"within a drop of 0.01 .* 0.99; the smallest drop in 'lab' is 0.04: allow"):
        study.cheapest(0.01)
    with pytest.raises(StudyError, match="a number from 0 up; -1 is not"):
        study.cheapest(-1)
    with pytest.raises(StudyError, match="must be one of"):
        study.cheapest(0.5, "latency")
    with pytest.raises(StudyError, match="must be feasible"):
        lab.study(tmp_path / "empty.journal", "empty").cheapest(0.1)
