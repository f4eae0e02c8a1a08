"""A network at half the MACs, searched for fidelity to the dense model instead of accuracy, then distilled.

    python benchmarks/fidelity.py cifar10-resnet56 --epochs 40
    python benchmarks/fidelity.py cifar10-resnet20 --epochs 0

The search scores a candidate on the validation images by its likeness to the dense model (`score="kl"`), which needs no
labels and tells candidates apart that give the same 4,600 right answers. Nothing is trained until the search is over;
`automc.distill` then uses 2,048 training images without their labels. The test split is scored once before and once
after. Needs AUTOMC_DATA (see README.md).
"""

import argparse
import statistics
import time
from typing import Any

from results import write

import automc
from automc.recovery.distill import Distillation
from automc.recovery.optimize import Schedule
from automc.setting import evaluator_of
from automc.tasks import load_task

IMAGES = 2048


def main() -> None:
    """Prints and writes accuracy before and after distillation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["cifar10-resnet20", "cifar10-resnet56"])
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--space", default="criteria")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40, help="of distillation; 0 leaves it out")
    parser.add_argument("--rate", type=float, default=3e-4)
    arguments = parser.parse_args()
    task = load_task(arguments.task)
    evaluator = evaluator_of(task)
    dense = 100 * evaluator.score(task.model, "test")
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        settings = {"budget": arguments.budget, "space": arguments.space, "trials": 100, "seed": seed}
        study = automc.search(task, score="kl", progress=True, **settings)
        small = evaluator.compressor.compress(study.best.policy)
        row: dict[str, Any] = {"seed": seed, "likeness": study.best.score, "costs": dict(study.best.costs)}
        row["searched"] = 100 * evaluator.score(small, "test")
        if arguments.epochs:
            start = time.perf_counter()
            schedule = Schedule(epochs=arguments.epochs, rate=arguments.rate, seed=seed)
            automc.distill(small, task, settings=Distillation(schedule), samples=IMAGES)
            row |= {"distilled": 100 * evaluator.score(small, "test"), "minutes": (time.perf_counter() - start) / 60}
        rows.append(row)
        print(row, flush=True)
        report(task.name.removeprefix("cifar10-"), dense, rows)


def report(name: str, dense: float, rows: list[dict[str, Any]]) -> None:
    """Prints and writes means and drops of what is there so far."""
    means = {k: statistics.fmean(r[k] for r in rows) for k in ("searched", "distilled") if k in rows[0]}
    drops = {f"{key}_drop": dense - value for key, value in means.items()}
    print(f"dense {dense:.2f} %", means, drops)
    write(f"fidelity_{name}", {"dense_test": dense, **means, **drops, "rows": rows}, seeds=[r["seed"] for r in rows])


if __name__ == "__main__":
    main()
