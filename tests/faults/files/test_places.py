"""What is no file where a file should be: folders, pipes, devices, links that lead round in a circle, a terabyte."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automc import artifact
from automc.errors import ArtifactError, AutomcError, StudyError
from tests.faults.files import watch
from tests.faults.files.readers import GONE, READERS

TERABYTE = 2**40


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, TERABYTE)


OTHERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "an empty device": lambda path: path.symlink_to("/dev/null"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "an empty file": Path.touch,
    "a terabyte of zeros": _huge,
}


def answer(read: Callable[[Path], Any], path: Path) -> Any:
    """What reading gives or raises; a pipe nobody writes to would be waited for, which takes no processor time."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(read(path))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it waits"
    return found[0]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", [n for n in READERS if READERS[n].named])
def test_what_is_no_such_file_is_refused_and_nothing_is_waited_for(name: str, other: str, tmp_path: Path) -> None:
    reader = READERS[name]
    path = reader.make(tmp_path)
    path.unlink()
    OTHERS[other](path)
    with watch.little_memory():
        found = answer(reader.read, path)
    if found == GONE:
        return
    assert isinstance(found, AutomcError), found
    assert path.name in str(found) or path.parent.name in str(found)


def test_a_journal_that_goes_on_for_a_terabyte_is_refused(tmp_path: Path) -> None:
    path = READERS["journal"].make(tmp_path)
    os.truncate(path, TERABYTE)
    with watch.little_memory(), pytest.raises(StudyError, match=r"at most .* bytes"):
        READERS["journal"].read(path)


@pytest.mark.parametrize("name", [artifact.MODEL, artifact.POLICY, artifact.REPORT])
def test_a_file_as_long_as_its_manifest_claims_is_refused_all_the_same(name: str, tmp_path: Path) -> None:
    path = READERS["saved model"].make(tmp_path).with_name(name)
    os.truncate(path, TERABYTE)
    manifest = json.loads((tmp_path / artifact.MANIFEST).read_text())
    manifest["files"][name]["bytes"] = TERABYTE
    (tmp_path / artifact.MANIFEST).write_text(json.dumps(manifest))
    with watch.little_memory(), pytest.raises(ArtifactError, match=f"{name} .*it has more than"):
        READERS["saved model"].read(path)


@pytest.mark.parametrize("name", ["bank", "trained network", "checkpoint"])
def test_a_tensor_that_fills_a_terabyte_is_refused(name: str, tmp_path: Path) -> None:
    path = READERS[name].make(tmp_path)
    header = json.dumps({"x": {"dtype": "U8", "shape": [TERABYTE], "data_offsets": [0, TERABYTE]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + TERABYTE)
    with watch.little_memory():
        found = answer(READERS[name].read, path)
    assert found == GONE or isinstance(found, ArtifactError)
