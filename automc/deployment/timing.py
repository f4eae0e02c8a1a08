"""How long several ways to compute the same take: timed in turn, so that a slow moment of the machine hits all."""

import time
from collections.abc import Callable, Sequence

ROUNDS = 7
TURN = 3e-4
"""Seconds of each way in each round: what is run again and again finds its weights in the cache, as a model does."""
SECONDS = 2.0
"""How long a comparison may take, its first two rounds aside."""


def seconds_of(ways: Sequence[Callable[[], object]], rounds: int = ROUNDS, most: float = SECONDS) -> list[float]:
    """The least seconds of each way over some rounds.

    The least rather than the median: what others do on the machine only ever adds.
    """
    for way in ways:
        way()  # the first run pays for memory and primitives
    repeats = [max(1, int(TURN / max(1e-6, _seconds(way, 1)))) for way in ways]
    least = [float("inf")] * len(ways)
    begin = time.perf_counter()
    for turn in range(rounds):
        if turn and time.perf_counter() - begin > most:
            break
        for number, (way, count) in enumerate(zip(ways, repeats, strict=True)):
            least[number] = min(least[number], _seconds(way, count))
    return least


def _seconds(way: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        way()
    return (time.perf_counter() - start) / count
