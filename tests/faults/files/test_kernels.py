"""Compiled kernels are code: only what this user, and nobody else, can have put into the folder is loaded."""

import os
from pathlib import Path

import pytest

from automc.kernels import build, compiler

pytestmark = pytest.mark.skipif(compiler.compiler() is None, reason="no compiler")
POISON = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void run(void) {
    FILE *file = fopen(getenv("CANARY"), "w");
    if (file) fclose(file);
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own for compiled files, and a source that says when it is loaded."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "poison.c").write_text(POISON)
    kernels = tmp_path / "kernels"
    kernels.mkdir(mode=0o700)
    monkeypatch.setattr(compiler, "SOURCES", sources)
    monkeypatch.setenv("AUTOMC_KERNELS", str(kernels))
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    return kernels


def loaded() -> bool:
    """Whether the library is had; nothing is remembered."""
    return build.compiled.__wrapped__("poison") is not None


def test_what_was_compiled_here_is_loaded(folder: Path) -> None:
    assert loaded() and (folder.parent / "canary").exists()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o1777])
def test_a_folder_that_everybody_may_write_to_is_not_used(
    folder: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder.chmod(mode)
    assert not loaded() and not (folder.parent / "canary").exists()
    assert f"{folder} may be written to by others" in caplog.text


def test_a_folder_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert not loaded() and not (folder.parent / "canary").exists()


@pytest.mark.parametrize("other", ["pipe", "folder", "link", "text", "seal of another"])
def test_what_is_no_compiled_file_is_made_anew_or_done_without(folder: Path, other: str) -> None:
    assert loaded()
    [path] = folder.glob("*.so")
    seal = path.with_name(f"{path.name}.sha256")
    if other in ("pipe", "folder", "link"):
        for victim in (path, seal):
            victim.unlink()
            {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda p: os.symlink("/dev/zero", p)}[other](victim)
    else:
        (path if other == "text" else seal).write_text("x" * 64)
    assert loaded() == (other != "folder") == compiler.whole(path)
