"""No code runs: not from a pickle, a .pt or a .pt2, not by a tag of YAML, not from a task that only a file names."""

import contextlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import automc
from automc import artifact
from automc.errors import AutomcError, TaskError
from automc.policy import GroupDecision, Policy
from automc.registry import SPACES
from automc.study import Study
from automc.tasks import named
from tests.cli.conftest import Run, run  # noqa: F401 - a fixture
from tests.cli.test_errors import SEARCH, refused
from tests.faults.files import watch
from tests.faults.files.hostile import Canary, poisoned
from tests.faults.files.readers import GONE, READERS
from tests.spaces import models


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A path that comes into being where code runs."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code ran"


def _torch_zip(path: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"state": Canary(path)}, stream)
    return stream.getvalue()


def _torch_legacy(path: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Canary(path), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _exported(path: Path) -> bytes:
    """A .pt2 whose sample inputs are a pickle."""
    stream = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), stream)
    with zipfile.ZipFile(stream) as before:
        entries = {name: before.read(name) for name in before.namelist()}
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as after:
        for name, data in entries.items():
            after.writestr(name, poisoned(path) if name.endswith(".pt") else data)
    return changed.getvalue()


def _in_a_header(path: Path) -> bytes:
    """A safetensors file whose only text is a pickle."""
    header = json.dumps({"__metadata__": {"automc": poisoned(path).decode("latin-1"), "sha256": "0"}}).encode()
    return struct.pack("<Q", len(header)) + header


POISON: dict[str, Callable[[Path], bytes]] = {
    "pickle": poisoned,
    "old pickle": lambda path: pickle.dumps(Canary(path), protocol=0),
    "pt": _torch_zip,
    "old pt": _torch_legacy,
    "pt2": _exported,
    "header": _in_a_header,
}


@pytest.mark.parametrize("kind", POISON)
def test_the_poison_is_one(kind: str, tmp_path: Path) -> None:
    if kind == "pt2":
        return  # what torch.export does with it changes from version to version
    data = POISON[kind](tmp_path / "canary")
    if kind == "header":
        data = json.loads(data[8:])["__metadata__"]["automc"].encode("latin-1")
    if kind in ("pt", "old pt"):
        torch.load(io.BytesIO(data), weights_only=False)
    else:
        pickle.loads(data)  # noqa: S301 - what nobody else may do
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", POISON)
@pytest.mark.parametrize("name", READERS)
def test_poison_in_the_place_of_any_file_is_refused_unread(name: str, kind: str, tmp_path: Path, canary: Path) -> None:
    path = READERS[name].make(tmp_path)
    path.write_bytes(POISON[kind](canary))
    for reseal in (lambda _: None, READERS[name].reseal or (lambda _: None)):
        reseal(path)
        with watch.nothing_runs(), contextlib.suppress(AutomcError):
            assert READERS[name].read(path) == GONE


TAGS = (
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{}]]",
    "!!python/object/new:pathlib.Path [{}]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/object:automc.task.Task {{}}",
    "!!python/tuple [a, b]",
    "!!binary aGVsbG8=",
    "!!timestamp 2020-01-01",
    "!!set {{a, b}}",
    "!!omap [a: b]",
    "!include {}",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['true']",
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", ["open: {}", "open: [channels, {}]", "open: [channels]\nchannels: {}", "{}", "{}: 1"])
def test_tags_of_yaml_make_nothing(tag: str, place: str, tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(place.format(tag.format(canary)))
    with watch.nothing_runs(), pytest.raises(AutomcError):
        READERS["space"].read(path)


def test_aliases_that_stand_for_billions_of_values_are_counted_and_not_written_out(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    merged = ["a0: &a0 {k: v}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    ring = ["open: &a [*a]"]
    for lines in (lists, merged, ring):
        path.write_text("\n".join(lines))
        with watch.no_hang(), watch.little_memory(), pytest.raises(AutomcError):
            READERS["space"].read(path)


@pytest.mark.parametrize("name", ["os:system", "builtins:exec", "tests.cli.tiny:Stub", "automc.cli:main", "x.py:task"])
def test_what_reads_like_code_is_no_name_in_a_space_or_a_policy(name: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    for text in (
        f"open: [{name!r}]",
        f"open: [criteria]\ncriteria: [{name!r}]",
        f"open: [ranks]\nranks: {{method: {name!r}}}",
    ):
        path.write_text(text)
        with watch.nothing_runs(), pytest.raises(AutomcError):
            READERS["space"].read(path)
    facts = models.facts_of("option_a")
    group = facts.groups[0].name
    policy = Policy(facts.fingerprint, ((group, GroupDecision(0.5, name)),))
    with watch.nothing_runs(), pytest.raises(AutomcError, match="must be registered"):
        automc.apply(models.task_of("option_a"), policy)
    assert name not in SPACES


EVIL = """
from pathlib import Path
Path({!r}).touch()
from my_task import task
"""


@pytest.fixture
def elsewhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A study and a model that somebody else made, of a task that nobody has named here."""
    (tmp_path / "evil.py").write_text(EVIL.format(str(tmp_path / "canary")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
    assert run(*SEARCH[:1], "evil.py:task", *SEARCH[2:])[0] == 0
    assert run("apply", "tiny", "--out", "small")[0] == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    (tmp_path / "canary").unlink()
    return tmp_path


def test_a_task_that_only_a_file_names_is_not_run_until_it_is_named(run: Run, elsewhere: Path) -> None:  # noqa: F811
    reference = f"{elsewhere / 'evil.py'}:task"
    for command in (
        ("apply", "tiny", "--out", "again"),
        ("evaluate", "small"),
        ("bench", "small"),
        ("export", "small", "--format", "pt2"),
    ):
        refused(run(*command), "give it by --task")
        assert not (elsewhere / "canary").exists()
    with pytest.raises(TaskError, match="was never named here"):
        automc.policy_for(elsewhere / "runs" / "tiny.journal", 0.5)
    assert not (elsewhere / "canary").exists()
    status, _, err = run("evaluate", "small", "--task", "evil.py:task")
    assert status == 0 and (elsewhere / "canary").exists(), err
    assert run("evaluate", "small")[0] == 0  # it is known now
    named.check(reference, "here")


@pytest.mark.parametrize(
    "reference", ["os:getcwd", "antigravity:geohash", "this:s", "", "digits:x", "x.py", "a:b:c", "\0:x"]
)
def test_references_in_a_report_or_a_study_are_only_words(run: Run, reference: str, tmp_path: Path) -> None:  # noqa: F811
    path = READERS["report"].make(tmp_path / "small")
    path.write_text(json.dumps({"reference": reference}))
    reseal = READERS["report"].reseal
    assert reseal is not None
    reseal(path)
    with watch.nothing_runs():
        refused(run("evaluate", "small"), "must be")
    journal = READERS["journal"].make(tmp_path)
    study = Study.open(journal)
    study.note("task", reference)
    with watch.nothing_runs():
        refused(run("apply", str(journal), "--out", "x"), "must be")


def test_a_registered_task_needs_no_naming() -> None:
    named.check("digits", "anywhere")
    named.note("digits")


def test_poison_is_refused_by_every_command(run: Run, tmp_path: Path, canary: Path) -> None:  # noqa: F811
    for kind in ("pickle", "pt", "pt2"):
        data = POISON[kind](canary)
        for name in ("x.pt", "x.yaml", "x.json", "x.journal"):
            Path(name).write_bytes(data)
        Path("dir").mkdir(exist_ok=True)
        for name in (artifact.MODEL, artifact.POLICY, artifact.REPORT, artifact.MANIFEST):
            (Path("dir") / name).write_bytes(data)
        with watch.nothing_runs():
            for command in (
                ("show", "x.pt"),
                ("pareto", "x.journal"),
                ("show", "sqlite:///x.pt"),
                ("evaluate", "dir"),
                ("export", "dir", "--format", "onnx"),
                (*SEARCH, "--space", "x.yaml"),
                (*SEARCH[:3], "latency<=50%", *SEARCH[4:], "--latency", "x.json"),
                (*SEARCH, "--storage", "x.pt"),
                (*SEARCH, "--earlier", "x.pt"),
            ):
                refused(run(*command), "must be")
