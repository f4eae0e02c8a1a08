"""Compiled files: made once, loaded only when whole, done without where nothing can be kept."""

import subprocess
import sys
from pathlib import Path

import pytest

from automc.kernels import build, compiler

CODE = "from automc.kernels.tiles import lanes; print(lanes())"
pytestmark = pytest.mark.skipif(compiler.compiler() is None, reason="no compiler")


def lanes(folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": "/usr/bin:/bin", "AUTOMC_KERNELS": str(folder)}
    command = [sys.executable, "-c", CODE]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=variables, timeout=300)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    assert int(lanes(folder).stdout) >= 4
    return folder


def test_a_torn_library_is_made_anew(made: Path) -> None:
    [path] = made.glob("tiles-*.so")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = lanes(made)
    assert found.returncode == 0 and int(found.stdout) >= 4
    assert len(path.read_bytes()) == len(whole) and compiler.whole(path)


def test_a_changed_byte_is_seen(made: Path) -> None:
    [path] = made.glob("tiles-*.so")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not compiler.whole(path)


def test_where_nothing_can_be_kept_torch_does_the_work(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    found = lanes(in_the_way)
    assert (found.returncode, found.stdout.strip()) == (0, "0")


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("AUTOMC_KERNELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert build.folder_named() is None
