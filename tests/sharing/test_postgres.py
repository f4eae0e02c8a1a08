"""Searches that share a study on PostgreSQL; the server is the tests' own, and is skipped where it is not installed."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sharing.postgres import Server, server
from tests.sharing.processes import driver, each_once, ended, recorded, wait_for


@pytest.fixture
def running() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="automc-postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server may run as another user, who may not look into folders of pytest's
        with server(folder) as found:
            yield found


def test_several_start_at_once_on_an_empty_server(running: Server) -> None:
    assert ended([driver(running.url, 0, 24) for _ in range(4)]) == [0] * 4
    assert len(recorded(running.url)) == 24 and each_once(recorded(running.url))


@pytest.mark.parametrize(("how", "count"), [("alone", 1), ("shared", 2)])
def test_a_server_that_goes_away_and_comes_back_costs_nothing(running: Server, how: str, count: int) -> None:
    drivers = [driver(running.url, 0, 24, 0.1, how) for _ in range(count)]
    wait_for(running.url, 3)
    running.stop()
    time.sleep(1)
    running.start()
    assert ended(drivers) == [0] * count
    assert len(recorded(running.url)) == 24 and each_once(recorded(running.url))


@pytest.mark.slow
def test_eight_for_five_minutes(running: Server) -> None:
    drivers = [driver(running.url, 0, 10**6, 0.05) for _ in range(8)]
    time.sleep(300)
    for one in drivers:
        one.terminate()
    assert ended(drivers) == [143] * 8
    found = recorded(running.url)
    assert len(found) > 1000 and each_once(found) and [e.number for e in found] == list(range(len(found)))
