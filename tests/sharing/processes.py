"""Starts searches that share a study, and reads what came of it."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from automc.evaluation import Evaluation
from automc.study import Study

ROOT = Path(__file__).parents[2]


def driver(
    where: str | Path, seed: int, trials: int, seconds: float = 0.01, how: str = "shared"
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.sharing.driver", str(where), *map(str, (seed, trials, seconds)), how]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def ended(drivers: "list[subprocess.Popen[bytes]]", seconds: float = 90.0) -> list[int]:
    return [d.wait(seconds) for d in drivers]


def recorded(where: str | Path) -> tuple[Evaluation, ...]:
    return Study.open(where, "lab").evaluations


def wait_for(where: str | Path, trials: int, seconds: float = 60.0) -> tuple[Evaluation, ...]:
    """What is recorded once it is so many trials."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(Exception):  # there is no study yet, or half of one
            found = recorded(where)
            if len(found) >= trials:
                return found
        time.sleep(0.05)
    raise TimeoutError(f"{where} has fewer than {trials} trials after {seconds} s")


def each_once(evaluations: tuple[Evaluation, ...]) -> bool:
    return len({e.policy.digest for e in evaluations}) == len(evaluations)
