"""A search driven by Ray Tune, with a scheduler that stops weak candidates: `python examples/ray_tune.py`, and again.

The study in runs/ is what counts: the same command goes on from it, whatever became of Ray's own files.
"""

import sys
from pathlib import Path

from ray import tune
from ray.tune.schedulers import ASHAScheduler

import automc
from automc.tasks import load_task


def main(trials: int) -> None:
    task = load_task("digits")
    samples = sum(len(targets) for _, targets in task.validation)
    search = automc.tune_searcher(
        task,
        budget="macs<=50%",
        searcher="joint",
        stages=(64, 256),  # a trial reports after so many validation samples, and after all of them
        trials=trials,  # of the study in all, earlier ones counted
        study="ray-tune",
    )
    tuner = tune.Tuner(
        automc.trainable(search),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=ASHAScheduler(time_attr="samples", grace_period=64, max_t=samples, reduction_factor=4),
            metric="score",
            mode="max",
            num_samples=-1,  # as many as the study lacks
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(Path("runs/ray").absolute()), verbose=1),
    )
    tuner.fit()
    best = search.study.best
    stopped = sum(e.state == "pruned" for e in search.study.evaluations)
    print(f"{len(search.study.evaluations)} trials, {stopped} stopped early; trial {best.number} has {best.score:.4f}")
    print("see them with: automc pareto ray-tune")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
