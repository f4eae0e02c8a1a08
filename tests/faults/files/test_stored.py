"""What earlier versions wrote is opened, gone on with, applied and loaded; each released version has its folder."""

import shutil
from pathlib import Path

import pytest
import torch

import automc
from automc.artifact import read_report
from automc.study import Study
from tests.faults.files import readers, stored

VERSIONS = sorted(p.name for p in stored.FOLDER.iterdir())


def test_the_present_version_has_left_something() -> None:
    assert automc.__version__ in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_study_of_an_earlier_version_is_shown_and_gone_on_with(version: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(stored.FOLDER / version / "study.journal", tmp_path))
    before = Study.open(path).evaluations
    assert len(before) == stored.TRIALS and readers.seen(path)
    study = stored.search(path, stored.TRIALS + 2)
    assert study.evaluations[: stored.TRIALS] == before
    assert [e.number for e in study.evaluations] == list(range(stored.TRIALS + 2))
    assert study.evaluations[-1].ok and path.read_bytes().startswith(
        (stored.FOLDER / version / "study.journal").read_bytes()
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_of_an_earlier_version_is_what_its_study_applies_to(version: str) -> None:
    folder = stored.FOLDER / version
    best = Study.open(folder / "study.journal").best
    found = automc.load(folder / "model", stored.net)
    again = automc.apply(stored.task(), best.policy)
    x = stored.fractions(8, 3, 4, 4, step=23)
    with torch.no_grad():
        assert torch.allclose(found(x), again(x), rtol=1e-3, atol=1e-3)
    assert automc.cost(found, x)["macs"] == best.cost("macs")
    assert read_report(folder / "model") == {"reference": "stored"}
