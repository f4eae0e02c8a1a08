"""ResNet-56 at half the MACs: what label-free distillation adds to a searched policy.

    python benchmarks/distill.py --seeds 0 1 2 --epochs 30

The policies are the best ones of `resnet56_budget.py "macs<=50%"`'s joint searches, gone on with or run now. The first
2,048 training images are used without their labels. The test split is scored before and after, once each. Needs
AUTOMC_DATA (see README.md).
"""

import argparse
import statistics
import time
from typing import Any

from results import write

import automc
from automc.api import evaluator_of
from automc.recovery.distill import Distillation
from automc.recovery.optimize import Schedule
from automc.tasks import load_task

TASK = "cifar10-resnet56"
IMAGES = 2048


def main() -> None:
    """Prints and writes accuracy before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=2e-4)
    arguments = parser.parse_args()
    task = load_task(TASK)
    evaluator = evaluator_of(task)
    dense = 100 * evaluator.score(task.model, "test")
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        study = automc.search(TASK, budget=arguments.budget, trials=100, seed=seed, progress=True)
        small = evaluator.compressor.compress(study.best.policy)
        before = {split: 100 * evaluator.score(small, split) for split in ("validation", "test")}  # type: ignore[arg-type]
        start = time.perf_counter()
        schedule = Schedule(epochs=arguments.epochs, rate=arguments.rate, seed=seed)
        automc.distill(small, task, settings=Distillation(schedule), samples=IMAGES)
        minutes = (time.perf_counter() - start) / 60
        after = {split: 100 * evaluator.score(small, split) for split in ("validation", "test")}  # type: ignore[arg-type]
        rows.append({"seed": seed, "before": before, "after": after, "minutes": minutes})
        print(rows[-1], flush=True)
    summary = {
        key: {"test": statistics.fmean(r[key]["test"] for r in rows)}
        | {"drop": dense - statistics.fmean(r[key]["test"] for r in rows)}
        for key in ("before", "after")
    }
    print(f"dense {dense:.2f} %", summary)
    write("distill", {"dense_test": dense, "summary": summary, "rows": rows}, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
