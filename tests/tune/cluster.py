"""Runs of Tuners on a small task, in a local Ray; as a process it is a driver that tests may kill."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from torch import Tensor, nn

import automc
from automc.tuning.searcher import TuneSearcher
from tests.scoring import tiny

SETTING: dict[str, Any] = {"budget": "macs<=60%", "space": "channels", "searcher": "joint", "score": "kl", "seed": 1}
STAGES = (64, 256, 1024)


def start(cpus: int = 2) -> None:
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}.items():
        os.environ.setdefault(name, value)
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def tuned(folder: Path, task: automc.Task, trials: int, **changes: Any) -> TuneSearcher:
    options = SETTING | {"storage": folder / "tuned.journal", "study": "tuned"} | changes
    return automc.tune_searcher(task, trials=trials, **options)


def fit(folder: Path, search: TuneSearcher, run: Any = None, *, alone: bool = False, **changes: Any) -> tune.ResultGrid:
    """One run of a Tuner; `alone`: one trial at a time, so that it is a function of the seed."""
    options: dict[str, Any] = {"metric": "score", "mode": "max", "num_samples": -1, "reuse_actors": True}
    options |= {"search_alg": search} | changes
    if alone:
        options["max_concurrent_trials"] = 1
    tuner = tune.Tuner(
        automc.trainable(search),
        tune_config=tune.TuneConfig(**options),
        run_config=run or tune.RunConfig(storage_path=str(folder), name="run", verbose=0),
    )
    return tuner.fit()


class Faulty:
    """An `evaluate` that raises for the second candidate of an actor, and ends its process at the fourth."""

    def __init__(self) -> None:
        self.driver, self.calls = os.getpid(), 0

    def __call__(self, model: nn.Module) -> float:
        if os.getpid() == self.driver:
            return 0.5
        self.calls += 1
        if self.calls == 2:
            raise ArithmeticError("not this one")
        if self.calls == 4:
            os._exit(9)
        return 0.5


def slow(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that leaves time to be killed."""
    time.sleep(0.05)
    return torch.as_tensor(outputs.argmax(1) == targets).double()


def main(folder: str, trials: str) -> None:
    start()
    where = Path(folder)
    search = tuned(where, tiny.task(metric=slow), int(trials), score="metric")
    (where / "ready").touch()
    fit(where, search)


if __name__ == "__main__":
    main(*sys.argv[1:])
