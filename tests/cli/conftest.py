"""The command line in this process, in a folder with a tiny task and a searcher named `stub`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from automc import cli
from automc.registry import SEARCHERS
from tests.cli import tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls automc with arguments; gives exit status, standard output, standard error."""
    (tmp_path / "my_task.py").write_text(tiny.TASK)
    monkeypatch.chdir(tmp_path)
    for name in ("stub", "uniform"):
        monkeypatch.setitem(SEARCHERS.table, name, "tests.cli.tiny:Stub")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        captured = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, captured.out, captured.err

    return call
