"""How long several ways to compute the same take: timed in turn, so that a slow moment of the machine hits all.

A GPU computes behind the back of who asks it to. It is waited for where what a way gives lies on one, so that seconds
are those of all that it was asked in a turn; asking and computing overlap, as they do in a model.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from automc.graph.runs import tensors

ROUNDS = 7
TURN = 3e-4
"""Seconds of each way in each round: what is run again and again finds its weights in the cache, as a model does."""
SECONDS = 2.0
"""How long a comparison may take, its first two rounds aside."""


def seconds_of(ways: Sequence[Callable[[], object]]) -> list[float]:
    """The least seconds of each way over some rounds.

    The least rather than the median: what others do on the machine only ever adds.
    """
    return [min(own) for own in in_turns(ways, ROUNDS, TURN, SECONDS)]


def in_turns(
    ways: Sequence[Callable[[], object]],
    rounds: int,
    turn: float,
    most: float = math.inf,
    *,
    runs: int = 1,
    least: int = 1,
) -> list[list[float]]:
    """Seconds of each way, a number a round, in each of which it runs for so many seconds.

    runs: how often at least; if more than once, then as what is run again and again: behind a run that does not count,
    which finds the caches full of what others have read. most: seconds after which rounds end, the first `least` of
    them aside.
    """
    # the first run pays for memory and primitives
    gpus = {x.device for way in ways for x in tensors(way()) if x.is_cuda}
    repeats = [max(runs, int(turn / max(1e-6, _seconds(way, 1, gpus)))) for way in ways]
    found: list[list[float]] = [[] for _ in ways]
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= least and time.perf_counter() - begin > most:
            break
        for way, count, own in zip(ways, repeats, found, strict=True):
            if runs > 1:
                way()
            own.append(_seconds(way, count, gpus))
    return found


def _seconds(way: Callable[[], object], count: int, gpus: Iterable[torch.device]) -> float:
    _wait(gpus)
    start = time.perf_counter()
    for _ in range(count):
        way()
    _wait(gpus)
    return (time.perf_counter() - start) / count


def _wait(gpus: Iterable[torch.device]) -> None:
    for gpu in gpus:
        torch.cuda.synchronize(gpu)
