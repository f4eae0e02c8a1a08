"""One local Ray for the tests of a file that need one: a process has one at most, and other files have their own."""

from collections.abc import Iterator

import pytest

from tests.tune import cluster


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    import ray

    cluster.start()
    yield
    ray.shutdown()
