"""Settings and fixtures of the whole suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Two test workers on two cores: more threads would only fight. Set before torch is imported, and inherited by
# every process a test starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for this run, shared by its workers: nothing is written to the user's home."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_turns() -> Iterator[None]:
    """Whole models are timed in a moment: what they take is tested nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("automc.report.latency._TURN", 1e-4)
        patch.setattr("automc.deployment.stopwatch.LONG", 1e-4)
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with CIFAR-10 and trained networks; a test that asks for it is skipped where there is none."""
    from automc.tasks.cifar10 import data_folder

    root = data_folder()
    if not (root / "data" / "cifar10").is_dir():
        pytest.skip("CIFAR-10 is not here: set AUTOMC_DATA to the folder that holds data/cifar10 and models/cifar10")
    return root
