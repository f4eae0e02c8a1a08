"""Kernels compiled again, for other processors than the one at hand."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from automc.kernels import build, dense8, images, sparse8, sparse8_conv, tiles, tokens


def renew() -> None:
    """Libraries are looked for anew."""
    caches = (build.compiled, images._library, tokens._library, tokens.lanes, tiles.lanes)
    for cached in (*caches, dense8.functions, sparse8._function, sparse8_conv._function):
        cached.cache_clear()


@contextmanager
def compiled_with(flags: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Kernels are compiled with these flags as well; what else is patched lasts as long."""
    if platform.machine() != "x86_64" and flags:
        pytest.skip("an option of x86 compilers")
    renew()
    with monkeypatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, *flags))
        yield patch
    renew()
