"""What TensorBoard reads back is what the study holds; a name writes nowhere but in the folder given."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automc.callbacks.tensorboard import TensorBoard, run_folder
from automc.errors import RegistryError
from tests.callbacks.searching import mixed, search
from tests.study import lab


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By name, steps and values."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_every_trial_is_a_step_also_of_a_search_that_goes_on(tmp_path):
    for trials in (7, 15):
        callback = TensorBoard(tmp_path / "board")
        study = search(lab.study(tmp_path / "lab.journal"), [callback], trials=trials, evaluate=mixed)
    found = curves(tmp_path / "board" / "lab")
    assert [step for step, _ in found["seconds"]] == list(range(15))
    ok = [(e.number, e.score) for e in study.evaluations if e.ok]
    assert [step for step, _ in found["score"]] == [number for number, _ in ok]
    assert [value for _, value in found["score"]] == pytest.approx([score for _, score in ok])
    assert [value for _, value in found["cost/macs"]] == pytest.approx([e.cost("macs") for e in study.evaluations])
    best = [value for _, value in found["best/score"]]
    assert best == sorted(best) and best[-1] == pytest.approx(study.best.score)
    failed = [value for _, value in found["trials/failed"]]
    assert failed == [sum(e.state == "failed" for e in study.evaluations[: n + 1]) for n in range(15)]


def test_estimates_of_stopped_trials_are_a_curve_of_their_own(tmp_path):
    def evaluate(policy):
        found = lab.lookup(policy)
        return lab.pruned(found) if int(policy.digest[0], 16) % 2 else found

    study = search(lab.study(tmp_path / "lab.journal"), [TensorBoard(tmp_path)], evaluate=evaluate)
    found = curves(tmp_path / "lab")
    assert [s for s, _ in found["estimate"]] == [e.number for e in study.evaluations if e.state == "pruned"]
    assert [s for s, _ in found["score"]] == [e.number for e in study.evaluations if e.ok]


def test_a_name_of_a_study_leads_out_of_no_folder(tmp_path):
    for name in ("../../out", "/tmp/out", "..", "a/b", "a\\b", "", ".hidden", "x" * 300, "a\0b"):
        folder = run_folder(name)
        assert "/" not in folder and "\0" not in folder and not folder.startswith(".") and 0 < len(folder) < 120
    search(lab.study(tmp_path / "lab.journal", name="../out"), [TensorBoard(tmp_path / "board")], trials=1)
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "board").iterdir())) == 1


@given(st.text(), st.text())
def test_two_studies_never_share_a_run(first, second):
    assert (run_folder(first) == run_folder(second)) == (first == second)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RegistryError, match=r"not installed: pip install automc\[tensorboard\]\.$"):
        TensorBoard("anywhere")
