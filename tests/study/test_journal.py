"""Damage to the journal file: torn lines, foreign locks, full disks."""

import errno
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc import journal, loop
from automc.errors import StudyError
from automc.study import Study
from tests.study import lab


def test_a_cut_anywhere_in_the_last_three_records_costs_the_torn_one_alone(tmp_path: Path) -> None:
    whole = lab.written(tmp_path / "whole.journal")
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    path = tmp_path / "cut.journal"
    near = {end + i for end in ends[-4:] for i in range(-40, 41)}  # each repair waits for the disk: not every byte
    for cut in sorted(c for c in near | set(range(ends[-4], len(whole), 7)) if ends[-4] <= c <= len(whole)):
        path.write_bytes(whole[:cut])
        last = max(end for end in ends if end <= cut)
        if cut > last:
            assert journal.repair(path) == cut - last
            aside = tmp_path / "cut.journal.corrupt"
            assert aside.read_bytes() == whole[last:cut] + b"\n"
            aside.unlink()
        assert path.read_bytes() == whole[:last]


def test_a_study_cut_anywhere_in_its_last_three_records_goes_on(tmp_path: Path) -> None:
    whole = lab.written(tmp_path / "whole.journal")
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    cuts = {c for end in ends[-4:] for c in (end - 1, end, end + 1) if c <= len(whole)}
    cuts |= set(range(ends[-4], len(whole), 97))
    reference = Study.open(tmp_path / "whole.journal").evaluations
    for cut in sorted(cuts):
        path = tmp_path / f"{cut}.journal"
        path.write_bytes(whole[:cut])
        expected = sum(end <= cut for end in ends) - (len(ends) - len(reference))
        study = lab.study(path)
        assert study.evaluations == reference[:expected]
        study.record(lab.lookup(lab.draw(np.random.default_rng(2))))
        assert len(Study.open(path).evaluations) == expected + 1


def test_a_record_glued_to_a_torn_one_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    whole = lab.written(path, 3)
    lines = whole.splitlines(keepends=True)
    torn = lines[-2][: len(lines[-2]) // 2]
    path.write_bytes(b"".join(lines[:-2]) + torn + lines[-1])
    study = lab.study(path)
    assert len(study.evaluations) == 2
    assert path.read_bytes() == b"".join(lines[:-2]) + lines[-1]
    assert (tmp_path / "lab.journal.corrupt").read_bytes() == torn + b"\n"


def test_a_torn_line_left_by_somebody_else_while_we_search_is_cut_before_the_next_record(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    lab.written(path, 2)
    study = Study.open(path)
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    study.record(lab.lookup(lab.draw(np.random.default_rng(3))))
    assert len(Study.open(path).evaluations) == 3


@settings(max_examples=40)
@given(noise=st.binary(min_size=1, max_size=60), line=st.integers(0, 3), data=st.data())
def test_whatever_stands_between_records_repair_leaves_whole_lines_only(
    noise: bytes, line: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    records = [json.dumps({"op_code": 4, "n": i}, separators=(",", ":")).encode() + b"\n" for i in range(4)]
    path = tmp_path_factory.mktemp("noise") / "x.journal"
    at = data.draw(st.integers(0, len(records[line])))
    records[line] = records[line][:at] + noise + records[line][at:]
    path.write_bytes(b"".join(records))
    journal.repair(path)
    left = path.read_bytes().splitlines(keepends=True)
    for kept in left:
        assert kept.endswith(b"\n") and isinstance(json.loads(kept), dict)
    untouched = {r for i, r in enumerate(records) if i not in (line, line + 1)}
    assert untouched <= set(left)
    assert journal.repair(path) == 0


def test_the_lock_of_a_killed_search_is_removed_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lab.journal"
    lab.written(path, 1)
    (tmp_path / ".lab.journal.owner").write_text("process 12345 on here")
    os.symlink(path, f"{path}.lock")
    study = Study.open(path)
    loop.run(lab.problem(), lab.Draws(), lab.lookup, study, trials=3)
    assert len(study.evaluations) == 3
    assert "removed the lock of process 12345 on here, which was killed" in caplog.text


def test_a_torn_record_under_the_lock_of_a_killed_search_needs_no_waiting(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    whole = lab.written(path, 2)
    (tmp_path / ".lab.journal.owner").write_text("process 12345 on here")
    os.symlink(path, f"{path}.lock")
    path.write_bytes(whole[:-9])
    assert len(lab.study(path).evaluations) == 1
    assert not Path(f"{path}.lock").is_symlink()


def test_two_searches_on_one_study_at_a_time_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.journal"
    lab.written(path, 1)
    with Study.open(path).searching(), pytest.raises(StudyError, match=f"process {os.getpid()} on .* is doing so"):
        loop.run(lab.problem(), lab.Draws(), lab.lookup, Study.open(path), trials=3)
    loop.run(lab.problem(), lab.Draws(), lab.lookup, Study.open(path), trials=3)
    assert len(Study.open(path).evaluations) == 3


FULL_DISK = """
import resource, sys
from pathlib import Path
from automc import loop
from automc.errors import StudyError
from tests.study import lab
path = Path(sys.argv[1])
study = lab.study(path)
loop.run(lab.problem(), lab.Draws(), lab.lookup, study, trials=5)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    loop.run(lab.problem(), lab.Draws(), lab.lookup, study, trials=30)
except StudyError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if sys.argv[3] == "here":
    loop.run(lab.problem(), lab.Draws(), lab.lookup, study, trials=12)
"""


@pytest.mark.parametrize("where", ["here", "later"])
@pytest.mark.parametrize("room", [0, 700, 5000])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path, room: int, where: str) -> None:
    path = tmp_path / "lab.journal"
    command = [sys.executable, "-c", FULL_DISK, str(path), str(room), where]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert f"{path}" in done.stdout and "free space" in done.stdout, done.stdout
    assert done.stdout.count("\n") == 1
    assert path.read_bytes().endswith(b"\n")
    study = lab.study(path)
    assert len(study.evaluations) >= 5
    loop.run(lab.problem(), lab.Draws(), lab.lookup, study, trials=12)
    undisturbed = lab.study(tmp_path / "other.journal")
    loop.run(lab.problem(), lab.Draws(), lab.lookup, undisturbed, trials=12)
    assert lab.contents(study.evaluations) == lab.contents(undisturbed.evaluations)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_during_a_search_the_disk_has_a_record_before_the_next_is_written_and_all_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk holds up the next record, not the search; in the file a record is at once."""
    path, seen = tmp_path / "lab.journal", list[str]()
    study, rng, sync = lab.study(path), np.random.default_rng(1), os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.2)
        sync(descriptor)
        seen.append("on the disk")

    monkeypatch.setattr(os, "fsync", slow)
    with study.searching():
        for number in range(3):
            study.record(lab.lookup(lab.draw(rng)))
            seen.append(f"{number} written")
            assert len(Study.open(path).evaluations) == number + 1
    assert seen == ["0 written", "on the disk", "1 written", "on the disk", "2 written", "on the disk"]
    study.record(lab.lookup(lab.draw(rng)))
    assert seen[6:] == ["on the disk"]  # outside of a search nothing is left for later


def test_a_disk_that_does_not_take_a_record_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    study, rng = lab.study(tmp_path / "lab.journal"), np.random.default_rng(1)
    with pytest.raises(StudyError, match="the system says Input/output error"), study.searching():
        monkeypatch.setattr(os, "fsync", broken)
        study.record(lab.lookup(lab.draw(rng)))
        study.record(lab.lookup(lab.draw(rng)))
        raise AssertionError("the second must not be written before the first is on the disk")
    monkeypatch.undo()
    with pytest.raises(StudyError, match="the system says Input/output error"), study.searching():
        monkeypatch.setattr(os, "fsync", broken)
        study.record(lab.lookup(lab.draw(rng)))  # the last one fails when all is over
    monkeypatch.undo()
    with study.searching():
        study.record(lab.lookup(lab.draw(rng)))
    assert len(Study.open(tmp_path / "lab.journal").evaluations) == 3
