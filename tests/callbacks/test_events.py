"""The event stream: every line a JSON object, whatever the search, the disk or an earlier kill does."""

import errno
import json
import logging
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automc.callbacks import events as module
from automc.callbacks.events import Events
from automc.callbacks.figures import plain
from automc.errors import StudyError
from automc.evaluation import Evaluation
from tests.callbacks.searching import mixed, search
from tests.study import lab

FILE, JOURNAL = "events.jsonl", "lab.journal"


def read(folder: Path) -> list[dict[str, Any]]:
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (folder / FILE).read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_search_is_told_in_full(tmp_path):
    study = search(lab.study(tmp_path / JOURNAL), [Events(tmp_path / FILE)], evaluate=mixed, trials=12)
    begin, *trials, end = read(tmp_path)
    assert [begin["type"], end["type"]] == ["begin", "end"] and {t["type"] for t in trials} == {"trial"}
    assert begin["storage"] == str(tmp_path / JOURNAL) and begin["trials"] == 0
    for key in ("task", "budget", "limits", "recipe", "dense", "fingerprint"):
        assert begin[key] == lab.meta()[key]
    assert [Evaluation.from_dict(t, t["number"]) for t in trials] == list(study.evaluations)
    assert (end["how"], end["reason"], end["trials"], end["best"]["number"]) == ("done", "", 12, study.best.number)
    states = [e.state for e in study.evaluations]
    assert end["counts"] == {s: states.count(s) for s in ("ok", "pruned", "infeasible", "failed")}
    assert next(t["reason"] for t in trials if t["state"] == "failed") == "Told\nto <fail>."


def test_every_event_has_its_study_and_a_time_with_a_zone_that_never_falls(tmp_path):
    search(lab.study(tmp_path / JOURNAL), [Events(tmp_path / FILE)])
    found = read(tmp_path)
    times = [datetime.fromisoformat(event["time"]) for event in found]
    assert all(t.tzinfo is not None for t in times) and times == sorted(times)
    assert {event["study"] for event in found} == {"lab"}


def test_the_best_so_far_is_the_best_of_the_trials_up_to_there(tmp_path):
    search(lab.study(tmp_path / JOURNAL), [Events(tmp_path / FILE)], evaluate=mixed, trials=20)
    best = None
    for event in read(tmp_path)[1:-1]:
        if event["state"] == "ok" and (best is None or event["score"] > best["score"]):
            best = event
        assert (event["best"] or {}).get("number") == (best or {}).get("number")
        if best is not None:
            assert event["best"] == {key: best[key] for key in ("number", "score", "metric", "costs")}


def test_a_search_that_goes_on_appends(tmp_path):
    for trials in (3, 5):
        search(lab.study(tmp_path / JOURNAL), [Events(tmp_path / FILE)], trials=trials)
    found = read(tmp_path)
    assert [e["type"] for e in found] == ["begin", *["trial"] * 3, "end", "begin", *["trial"] * 2, "end"]
    assert [e["trials"] for e in found if e["type"] == "begin"] == [0, 3]


def test_each_event_is_in_the_file_before_the_search_goes_on(tmp_path):
    def evaluate(policy):
        assert len(read(tmp_path)) == 1 + len(study.evaluations)
        return lab.lookup(policy)

    study = lab.study(tmp_path / JOURNAL)
    search(study, [Events(tmp_path / FILE)], evaluate=evaluate)


def test_a_line_torn_by_a_kill_stays_and_spoils_no_other(tmp_path):
    search(lab.study(tmp_path / JOURNAL), [Events(tmp_path / FILE)], trials=3)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-7])
    search(lab.study(tmp_path / JOURNAL), [Events(tmp_path / FILE)], trials=4)
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    assert b"".join(lines[:5]) == whole[:-7] + b"\n"
    assert [json.loads(line)["type"] for line in lines[5:]] == ["begin", "trial", "end"]


class Full:
    """A disk with room for so many more bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, file, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(self.room, len(data))
        self.room -= taken
        return file.write(data[:taken])


@settings(max_examples=25)
@given(rooms=st.lists(st.integers(0, 3000), min_size=1, max_size=12))
def test_whatever_room_the_disk_has_when_every_event_is_there_once_in_the_end(rooms, tmp_path_factory):
    """The disk fills amid any line, and may have room again after each trial."""
    folder, disk = tmp_path_factory.mktemp("full"), Full(10**9)
    events = Events(folder / FILE)
    opened = Path.open

    class Throttled:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            return disk.write(self.file, data)

    left = iter(rooms)

    def evaluate(policy):
        disk.room = next(left, 10**9)
        return lab.lookup(policy)

    def throttled(path, *args, **options):
        file = opened(path, *args, **options)
        return Throttled(file) if path.name == FILE else file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", throttled)
        study = search(lab.study(folder / JOURNAL), [events], trials=14, evaluate=evaluate)
    found = read(folder)
    assert [e["type"] for e in found] == ["begin", *["trial"] * 14, "end"]
    assert [e["number"] for e in found[1:-1]] == [e.number for e in study.evaluations]


def test_a_full_disk_is_said_once_and_loses_no_trial(tmp_path, caplog):
    events = Events(tmp_path / FILE)
    events.path = Path("/dev/full")
    if not events.path.exists():
        pytest.skip("the system has no /dev/full")
    study = search(lab.study(tmp_path / JOURNAL), [events])
    assert len(study.evaluations) == 8
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said == ["/dev/full cannot be written (No space left on device); events wait in memory; the search goes on."]


def test_a_place_that_cannot_be_written_is_refused_before_the_search(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / FILE):
        with pytest.raises(StudyError, match="Events must go to a file that can be written"):
            Events(path)


def test_a_folder_is_made_and_a_change_of_folder_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    events = Events(Path("new") / FILE)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    search(lab.study(tmp_path / JOURNAL), [events])
    assert len(read(tmp_path / "new")) == 10


def test_a_kill_at_any_moment_leaves_whole_lines_and_at_most_one_torn(tmp_path):
    """SIGKILL after so many lines; everything before the last one is JSON, and no trial stands there that is lost."""
    program = (
        "import sys; from pathlib import Path; from tests.callbacks.searching import search, mixed;"
        "from automc.callbacks.events import Events; from tests.study import lab; w = Path(sys.argv[1]);"
        f"search(lab.study(w / '{JOURNAL}'), [Events(w / '{FILE}')], trials=10**6, evaluate=mixed)"
    )
    running = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    while not (tmp_path / FILE).exists() or (tmp_path / FILE).read_bytes().count(b"\n") < 20:
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    *lines, _last = (tmp_path / FILE).read_bytes().split(b"\n")
    numbers = [e["number"] for e in map(json.loads, lines) if e["type"] == "trial"]
    recorded = len(lab.study(tmp_path / JOURNAL).evaluations)
    assert numbers == list(range(len(numbers))) and recorded - 1 <= len(numbers) <= recorded


def test_what_is_not_finite_is_null():
    told = {"a": [1.0, float("nan"), {"b": float("-inf")}], "c": True, "d": None, "e": "nan"}
    assert plain(told) == {"a": [1.0, None, {"b": None}], "c": True, "d": None, "e": "nan"}


def test_the_table_in_the_file_names_every_key_of_an_evaluation(tmp_path):
    search(lab.study(tmp_path / JOURNAL), [Events(tmp_path / FILE)], trials=1)
    begin, trial, end = read(tmp_path)
    known = {"type", "time", "study"}
    for event in (trial, end):
        assert [key for key in set(event) - known if f"`{key}`" not in str(module.__doc__)] == []
    assert {"storage", "automc", "trials"} <= set(begin)


def test_a_password_of_the_storage_is_not_written_down(tmp_path):
    study = lab.study(tmp_path / JOURNAL)
    study.storage = "postgresql://me:secret@host/automc"
    Events(tmp_path / FILE).begin(study)
    assert "secret" not in (tmp_path / FILE).read_text() and "***@host" in (tmp_path / FILE).read_text()
