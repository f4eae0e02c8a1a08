"""How long several ways to compute the same take: timed in turn, so that a slow moment of the machine hits all."""

import math
import time
from collections.abc import Callable, Sequence

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
    ways: Sequence[Callable[[], object]], rounds: int, turn: float, most: float = math.inf
) -> list[list[float]]:
    """Seconds of each way, a number a round, in each of which it runs for so many seconds; rounds end after `most`."""
    for way in ways:
        way()  # the first run pays for memory and primitives
    repeats = [max(1, int(turn / max(1e-6, _seconds(way, 1)))) for way in ways]
    found: list[list[float]] = [[] for _ in ways]
    begin = time.perf_counter()
    for done in range(rounds):
        if done and time.perf_counter() - begin > most:
            break
        for way, count, own in zip(ways, repeats, found, strict=True):
            own.append(_seconds(way, count))
    return found


def _seconds(way: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        way()
    return (time.perf_counter() - start) / count
