"""A disk that fills: an error that names the path, status 2, what was there stays, and then as if nothing had been."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import automc
from automc.compression.store import TensorStore
from automc.costs.latency import LatencyTable
from automc.errors import ArtifactError
from automc.files import write_together
from automc.searchers import checkpoint
from automc.study import Study
from tests.cli.conftest import Run, run  # noqa: F401 - a fixture
from tests.cli.test_errors import SEARCH, refused
from tests.faults.files.readers import READERS, WALK, Net, fresh_agent, small
from tests.study import lab


@contextlib.contextmanager
def full(room: int) -> Iterator[None]:
    """No file may have more than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def command(trials: int, study: str = "tiny") -> tuple[str, ...]:
    return (*SEARCH[:-3], str(trials), "--study", study)


@pytest.fixture
def searched(run: Run) -> Path:  # noqa: F811
    """The journal of a short search."""
    assert run(*command(3))[0] == 0
    return Path("runs/tiny.journal")


@pytest.mark.parametrize("room", [0, 1, 900, 4000])
def test_a_search_whose_disk_fills_goes_on_as_if_it_had_not(run: Run, searched: Path, room: int) -> None:  # noqa: F811
    before = searched.read_bytes()
    with full(len(before) + room):
        refused(run(*command(9)), "runs/tiny.journal must be readable and writable; the system says File too large")
    assert searched.read_bytes().startswith(before) and searched.read_bytes().endswith(b"\n")
    kept = Study.open(searched).evaluations
    assert run(*command(9))[0] == 0 and run(*command(9, "undisturbed"))[0] == 0
    found, undisturbed = (Study.open(f"runs/{name}.journal").evaluations for name in ("tiny", "undisturbed"))
    assert found[: len(kept)] == kept
    assert lab.contents(found) == lab.contents(undisturbed)
    assert not list(Path("runs").glob("*.corrupt"))


def test_a_search_that_cannot_even_begin_its_journal_says_where(run: Run) -> None:  # noqa: F811
    with full(0):
        refused(run(*command(3)), "runs/tiny.journal")
    assert run(*command(3))[0] == 0


def test_a_model_that_finds_no_room_leaves_the_one_before(run: Run, searched: Path) -> None:  # noqa: F811
    for room in (0, 300, 2000):
        with full(room):
            refused(run("apply", "tiny", "--out", "small"), "small")
        assert not contents(Path("small")), room
    assert run("apply", "tiny", "--out", "small")[0] == 0
    before = contents(Path("small"))
    for room in (0, 300, 2000, max(len(data) for data in before.values()) - 1):
        with full(room):
            refused(run("apply", "tiny", "--out", "small", "--trial", "1"), "small")
        assert contents(Path("small")) == before
        assert run("evaluate", "small")[0] == 0
    assert run("apply", "tiny", "--out", "small", "--trial", "1")[0] == 0
    assert contents(Path("small")).keys() == before.keys()


def test_a_plot_and_json_find_no_room(run: Run, searched: Path) -> None:  # noqa: F811
    for room in (0, 100_000):
        with full(room):
            refused(run("pareto", "tiny", "--html", "front.html"), "front.html must be writable")
        assert not list(Path().glob("*front.html*"))
    assert run("pareto", "tiny", "--html", "front.html")[0] == 0


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_an_export_that_finds_no_room_leaves_the_one_before(run: Run, searched: Path, format: str) -> None:  # noqa: F811
    if format == "onnx":
        pytest.importorskip("onnx")
    assert run("apply", "tiny", "--out", "small")[0] == 0
    out = Path("small") / f"model.{format}"
    before = contents(Path("small"))
    with full(1000):
        refused(run("export", "small", "--format", format), str(out))
    assert contents(Path("small")) == before
    assert run("export", "small", "--format", format)[0] == 0
    before = contents(Path("small"))
    with full(1000):
        refused(run("export", "small", "--format", format), str(out))
    assert contents(Path("small")) == before


def test_a_cache_that_is_full_is_done_without(run: Run, searched: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    with full(400):
        store = TensorStore(1 << 20, Path("bank"))
        made = store.get("a", lambda: {"x": torch.arange(1000.0)})
    assert "No space" in caplog.text or "File too large" in caplog.text
    assert torch.equal(made["x"], torch.arange(1000.0)) and not contents(Path("bank"))
    again = TensorStore(1 << 20, Path("bank"))
    assert torch.equal(again.get("a", lambda: {"x": torch.arange(1000.0)})["x"], made["x"]) and contents(Path("bank"))


def test_agents_tables_and_models_find_no_room_from_python_either(tmp_path: Path) -> None:
    table = LatencyTable.read(READERS["latency table"].make(tmp_path))
    before = contents(tmp_path)
    saved = tmp_path / "saved"
    for write in (
        lambda: table.write(tmp_path / "latency.json"),
        lambda: checkpoint.save(tmp_path / "agent.safetensors", fresh_agent(), WALK),
        lambda: automc.save(small(), saved),
        lambda: automc.export(small(), tmp_path / "m.pt2", format="pt2"),
    ):
        with full(100), pytest.raises(ArtifactError, match=str(tmp_path)):
            write()
        assert contents(tmp_path) == before
    automc.save(small(), saved)
    assert automc.load(saved, Net)


def test_files_that_belong_together_change_together(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    write_together(dict.fromkeys(paths, b"old"))
    with full(10), pytest.raises(ArtifactError, match="/c must be writable"):
        write_together({paths[0]: b"new", paths[1]: b"new", paths[2]: b"x" * 100})
    assert contents(tmp_path) == dict.fromkeys(paths, b"old")
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    with pytest.raises(ArtifactError):
        write_together({paths[0]: b"newer", paths[1]: b"newer"})
    assert not list(tmp_path.rglob("*.tmp"))
