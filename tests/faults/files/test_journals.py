"""The journal, torn anywhere, beside files that somebody put there, under locks that nobody holds."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from automc import journal, loop
from automc.errors import StudyError
from automc.study import Study
from tests.faults.files import watch
from tests.study import lab


def goes_on(path: Path, whole: bytes, cut: int) -> None:
    """A journal that ends at `cut` is resumed: every whole record is there, and what was torn is kept."""
    aside = path.with_name(f"{path.name}.corrupt")
    aside.unlink(missing_ok=True)
    path.write_bytes(whole[:cut])
    last = whole.rfind(b"\n", 0, cut) + 1
    study = lab.study(path)
    assert path.read_bytes() == whole[:last]
    assert aside.exists() == (cut > last) and (cut == last or aside.read_bytes() == whole[last:cut] + b"\n")
    assert len(study.evaluations) == whole[:last].count(b'"policy":')


def ends(whole: bytes) -> list[int]:
    """Where its lines end."""
    return [i + 1 for i, byte in enumerate(whole) if byte == 10]


def test_a_journal_torn_within_its_last_three_records_is_resumed_and_the_torn_bytes_are_kept(tmp_path: Path) -> None:
    whole = lab.written(tmp_path / "whole.journal")
    first = ends(whole)[-4]
    for cut in {*range(first, len(whole), 311), first, first + 1, len(whole) - 1, len(whole)}:
        goes_on(tmp_path / "cut.journal", whole, cut)


@pytest.mark.slow
def test_a_journal_torn_at_every_byte_of_its_last_three_records_is_resumed(tmp_path: Path) -> None:
    whole = lab.written(tmp_path / "whole.journal")
    for cut in range(ends(whole)[-4], len(whole) + 1):
        goes_on(tmp_path / "cut.journal", whole, cut)
        loop.run(lab.problem(), lab.Draws(), lab.lookup, lab.study(tmp_path / "cut.journal"), trials=7)
        assert len(Study.open(tmp_path / "cut.journal").evaluations) == 7
        (tmp_path / "cut.journal").unlink()


@pytest.mark.parametrize("beside", ["x.journal.corrupt", ".x.journal.owner", ".x.journal.making"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_nothing_is_written_to_where_a_link_beside_a_journal_leads(beside: str, kind: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "study" / "x.journal", tmp_path / "victim"
    path.parent.mkdir()
    whole = lab.written(path, 2)
    path.write_bytes(whole + b"evil words\n" + b'{"op_code":')
    for left in path.parent.iterdir():
        if left != path:
            left.unlink()
    victim.write_text("precious")
    other = path.with_name(beside)
    if kind == "link":
        other.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(other)
    elif kind == "folder":
        other.mkdir()
    else:
        other.symlink_to("/dev/full")
    for call in (lambda: Study.open(path), lambda: lab.study(path), lambda: lab.study(path, shared=True)):
        try:
            with watch.no_hang():
                call()
        except StudyError as error:
            assert "x.journal" in str(error)
    assert victim.read_text() == "precious"


def test_what_an_owner_file_says_is_only_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.journal"
    lab.written(path, 1)
    (tmp_path / ".x.journal.owner").write_bytes(b"\x1b[2Jprocess\n\xff 1\x00" * 1000)
    os.symlink(path, f"{path}.lock")
    loop.run(lab.problem(), lab.Draws(), lab.lookup, lab.study(path), trials=2)
    [said] = [r.getMessage() for r in caplog.records if "which was killed" in r.getMessage()]
    assert "\x1b" not in said and "\n" not in said and len(said) < 2000


@pytest.mark.parametrize("begins", [1, 1000, 100_000])
def test_a_line_in_which_records_seem_to_begin_everywhere_is_cut_at_once(begins: int, tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    whole = lab.written(path, 2)
    path.write_bytes(whole + b'{"op_code":' * begins + b"\n")
    with watch.no_hang(), watch.little_memory():
        assert journal.repair(path) == 11 * begins + 1
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1] + b'{"op_code":' * begins + whole.splitlines(keepends=True)[-1])
    with watch.no_hang():
        journal.repair(path)
    assert path.read_bytes().endswith(whole.splitlines(keepends=True)[-1])


def test_lines_of_other_json_are_cut_and_the_study_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    lines = lab.written(path, 3).splitlines(keepends=True)
    strange = (b"[]\n", b"null\n", b"7\n", b'"x"\n', b"{}\n", b'{"op_code"}\n', b"[" * 50_000 + b"]" * 50_000 + b"\n")
    for text in strange:
        path.write_bytes(b"".join(lines[:-1]) + text + lines[-1])
        assert len(lab.study(path).evaluations) == 3


def test_an_operation_that_optuna_does_not_know_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    whole = lab.written(path, 3)
    for record in ({"op_code": 99}, {"op_code": 4}, {"op_code": 4, "study_id": 10**400}, {"op_code": "4"}):
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        path.write_bytes(whole + line)
        try:
            lab.study(path)
        except StudyError as error:
            assert str(path) in str(error)
        assert path.read_bytes() == whole + line


@pytest.mark.parametrize("leads", ["x.journal", "nowhere", "x.journal.lock", "/dev/zero", "the journal"])
def test_a_lock_that_nobody_says_he_held_is_removed_with_a_word(
    leads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal, "GRACE", 0.2)
    monkeypatch.chdir(tmp_path)
    path = Path("x.journal")
    lab.written(path, 2)
    Path(".x.journal.owner").unlink()
    os.symlink(path.absolute() if leads == "the journal" else leads, "x.journal.lock")
    loop.run(lab.problem(), lab.Draws(), lab.lookup, lab.study(path), trials=3)
    assert len(Study.open(path).evaluations) == 3
    assert "removed a lock that was held for more than 0.2 s" in caplog.text
    assert not Path("x.journal.lock").is_symlink()


def test_a_lock_that_changes_hands_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    link, passed = tmp_path / "x.journal.lock", list[float]()

    def sleep(_: float) -> None:  # twenty seconds in which the lock goes to somebody else
        passed.append(20.0)
        link.unlink()
        if len(passed) < 8:
            os.symlink(f"holder {len(passed)}", link)

    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: sum(passed), sleep=sleep))
    os.symlink("holder", link)
    assert journal.Lock(tmp_path / "x.journal").acquire()
    assert len(passed) == 8 and "removed" not in caplog.text
