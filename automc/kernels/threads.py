"""Threads for compiled work: as many as torch has, which ctypes lets run side by side."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_lent: ContextVar[int] = ContextVar("threads lent by torch", default=0)


def threads() -> int:
    """How many threads compiled steps use: as many as torch, or as torch had before it lent them."""
    return _lent.get() or torch.get_num_threads()


@contextmanager
def lent_threads() -> Iterator[None]:
    """While open, torch works with one thread and compiled steps with all that it had.

    For work that goes back and forth between the two: threads of torch's that have nothing to do spin for a while, on
    the processors that the steps' threads wait for.
    """
    count = threads()
    token = _lent.set(count)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _lent.reset(token)
        torch.set_num_threads(1 if _lent.get() else count)


def together(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """What `work` gives for each part, by several threads."""
    workers = min(threads(), len(parts))
    if workers <= 1:
        return [work(part) for part in parts]
    return list(_pool(os.getpid(), workers).map(work, parts))


def dealt(work: Callable[[int, int], R], count: int, workers: int, step: int = 1) -> list[R]:
    """What `work` gives for runs of `count` things, from one to before another, a run each worker; all but the last of
    multiples of `step`."""
    steps = -(-count // step)
    workers = min(workers, steps)
    if workers <= 1:  # what small layers are made of
        return [work(0, count)] if workers else []
    edges = [min(count, step * (steps * n // workers)) for n in range(workers + 1)]
    return together(lambda run: work(*run), list(pairwise(edges)))


@cache
def _pool(_process: int, workers: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a forked process has none of its parent's."""
    return ThreadPoolExecutor(workers, "automc-tiles")
