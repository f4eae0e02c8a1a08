"""Thousands of damaged and hostile files of every kind: what is read is right, or refused in one sentence."""

import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from automc.errors import AutomcError
from tests.faults.files import watch
from tests.faults.files.readers import GONE, READERS, Reader

FEW = 60
MANY = 10_000


def refused(reader: Reader, path: Path, error: AutomcError) -> None:
    """One sentence of a readable length, that names the file, its folder or study, or the entry in it."""
    said = str(error)
    assert not reader.named or path.name in said or path.parent.name in said or "'" in said, said[:500]
    assert len(said) < 1200 and "\n" not in said, said[:500]


def meets(reader: Reader, path: Path, good: Any, data: bytes, *, resealed: bool) -> None:
    """One changed file read; what is not refused is what it was, or at least something whole."""
    path.write_bytes(data)
    if resealed and reader.reseal is not None:
        reader.reseal(path)
    try:
        with watch.no_hang(), watch.nothing_runs():
            found = reader.read(path)
    except AutomcError as error:
        refused(reader, path, error)
        return
    if reader.sealed and not resealed:
        assert found in (good, GONE)


def fuzzed(name: str, folder: Path, cases: int) -> None:
    """So many changes of one kind of file."""
    reader = READERS[name]
    path = reader.make(folder)
    whole = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    good = reader.read(path)
    assert reader.read(path) == good
    with watch.little_memory():
        for seed in range(cases):
            rng = random.Random(zlib.crc32(name.encode()) + seed)
            data = rng.choice(reader.changes)(whole[path], rng)
            try:
                meets(reader, path, good, data, resealed=rng.random() < 0.6)
            except BaseException as error:
                (folder / "case").write_bytes(data)
                raise AssertionError(f"{name}, case {seed}, kept in {folder / 'case'}: {error!r:.300}") from error
            for other in folder.rglob("*"):
                if other.is_file() and other not in whole:
                    other.unlink()
            for other, before in whole.items():
                other.write_bytes(before)
    assert reader.read(path) == good


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_file_holds_it_is_read_right_or_refused(name: str, tmp_path: Path) -> None:
    fuzzed(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_files_of_each_kind(name: str, tmp_path: Path) -> None:
    fuzzed(name, tmp_path, MANY)
