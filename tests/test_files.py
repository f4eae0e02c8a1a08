"""Files are written whole, whoever else writes them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from automc import files


def test_writers_of_one_name_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)  # containers that share a folder all have this number
    contents = [bytes([n]) * 20_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: files.write_atomic(tmp_path / "one", data), contents * 20))
    assert (tmp_path / "one").read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
