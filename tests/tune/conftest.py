"""One local Ray for all tests here that need one."""

from collections.abc import Iterator

import pytest

from tests.tune import cluster


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    cluster.start()
    yield
    ray.shutdown()
