"""A PostgreSQL server of the tests' own, in a folder, on a socket; started and stopped here."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ANYBODY = "nobody"
"""Whom the server runs as where the tests run as root, which it refuses."""


def programs() -> Path | None:
    """Where the server's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """A server that can be stopped and started again, as a machine that reboots."""

    def __init__(self, folder: Path, where: Path) -> None:
        self._folder, self._bin = folder, where
        self._data = folder / "data"

    @property
    def url(self) -> str:
        """Of its database, for SQLAlchemy."""
        return f"postgresql+psycopg2://postgres@/postgres?host={self._folder}"

    def make(self) -> None:
        """Lays the database out."""
        if os.getuid() == 0:
            shutil.chown(self._folder, ANYBODY)
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync")

    def start(self) -> None:
        """Starts the server and waits for it."""
        options = f"-k {self._folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self._folder / "log"), "-w", "start")

    def stop(self) -> None:
        """Stops it at once, whoever is connected."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        user = ANYBODY if os.getuid() == 0 else None
        command = [str(self._bin / program), *arguments]
        with (self._folder / f"{program}.log").open("w") as log:  # a pipe would stay open as long as the server runs
            done = subprocess.run(command, check=False, user=user, cwd=self._folder, stdout=log, stderr=log)
        if done.returncode:
            raise RuntimeError(f"{program}: {(self._folder / f'{program}.log').read_text()[-500:]}")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A running server; skips the test where there is none to be had."""
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install automc[postgres]")
    running = Server(folder, where)
    running.make()
    running.start()
    try:
        yield running
    finally:
        with contextlib.suppress(RuntimeError):
            running.stop()
