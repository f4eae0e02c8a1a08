"""How long several ways to compute the same take: timed in turn, so that a slow moment of the machine hits all."""

import time
from collections.abc import Callable, Sequence

ROUNDS = 7
SECONDS = 2.0
"""How long a comparison may take, its first two rounds aside."""


def seconds_of(ways: Sequence[Callable[[], object]], rounds: int = ROUNDS, most: float = SECONDS) -> list[float]:
    """The least seconds of each way over some rounds, a first one not counted.

    The least rather than the median: what others do on the machine only ever adds.
    """
    least = [float("inf")] * len(ways)
    begin = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 1 and time.perf_counter() - begin > most:
            break
        for number, way in enumerate(ways):
            start = time.perf_counter()
            way()
            if turn:  # the first pays for memory and primitives
                least[number] = min(least[number], time.perf_counter() - start)
    return least
