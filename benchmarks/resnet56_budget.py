"""ResNet-56 on CIFAR-10 within a budget: joint search against random search and the uniform policy, same backend.

    python benchmarks/resnet56_budget.py "macs<=50%"            searches of 100 trials, three seeds each
    python benchmarks/resnet56_budget.py "macs<=60%,size<=25%" --searchers joint
    python benchmarks/resnet56_budget.py "macs<=50%" --searchers joint amc:benchmarks/magnitude.yaml --trials 400
        --stages 512 1536 --seeds 0 1 2 3 4 --name amc

SEARCHER:SPACE searches a space other than the budget's own; that one is AMC's: magnitude ranks, channels alone are
decided. The refit and the scores are the same.

Searches score on the validation split; the test split is scored once, for the best policy of each search. Studies lie
in runs/ and are gone on with, so an interrupted benchmark loses nothing; seconds are those of the trials themselves.
Needs AUTOMC_DATA (see README.md).
"""

import argparse
import re
import statistics
import tempfile
from typing import Any

from results import write

import automc
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.projection import within
from automc.report import latency
from automc.scoring.evaluator import Evaluator
from automc.setting import evaluator_of
from automc.study import Study
from automc.tasks import load_task

TASK = "cifar10-resnet56"


def on_test(evaluator: Evaluator, policy: Policy) -> dict[str, Any]:
    """What the applied module scores on the test split, and what is counted and timed on the module and its file."""
    small = evaluator.compressor.compress(policy)
    with tempfile.TemporaryDirectory() as folder:
        size = automc.save(small, folder)
    task = evaluator.task
    counted = automc.cost(small, task.example_inputs)
    times = latency.compare({"dense": task.model, "compressed": small}, task.example_inputs)
    return {
        "test": 100 * evaluator.score(small, "test"),
        "macs": counted["macs"],
        "bytes": size,
        "speed_up": {
            key: timed["dense"]["median"] / timed["compressed"]["median"]
            for key, timed in times.items()
            if key.startswith("batch")
        },
    }


def on_test_after(study: Study, evaluator: Evaluator, trials: int) -> float:
    """What the best policy of the first trials scores on the test split."""
    found = max((e for e in study.evaluations[:trials] if e.ok), key=lambda e: float(e.score or 0))
    return 100 * evaluator.score(evaluator.compressor.compress(found.policy), "test")


def figures(study: Study, evaluator: Evaluator) -> dict[str, Any]:
    """Everything asked of one search."""
    dense, limits = study.meta["dense"], study.meta["limits"]
    best: Evaluation = study.best
    row = on_test(evaluator, best.policy)
    return row | {
        "validation": 100 * float(best.score or 0),
        "macs_share": row["macs"] / dense["costs"]["macs"],
        "size_share": row["bytes"] / dense["costs"]["size"],
        "trials": len(study.evaluations),
        "all_within_budget": all(within(dict(e.costs), limits) for e in study.evaluations),
        "minutes": sum(e.seconds for e in study.evaluations) / 60,
        "proposer": best.proposer,
        "bits": sorted({d.weight_bits for _, d in best.policy.layers}),
        "test_by_trials": {n: on_test_after(study, evaluator, n) for n in (100, 200) if n < len(study.evaluations)},
    }


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("budget")
    parser.add_argument("--searchers", nargs="+", default=["joint", "random"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--stages", nargs="+", type=int, default=[], help="stop losers after so many samples")
    parser.add_argument("--name", default="", help="of the results, behind the budget's")
    arguments = parser.parse_args()

    task = load_task(TASK)
    evaluator = evaluator_of(task)
    dense = 100 * evaluator.score(task.model, "test")
    rows: dict[str, list[dict[str, Any]]] = {}
    uniform: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for searcher in arguments.searchers:
            name, _, space = searcher.partition(":")
            study = automc.search(
                TASK,
                budget=arguments.budget,
                searcher=name,
                space=space or "auto",
                trials=arguments.trials,
                stages=arguments.stages,
                seed=seed,
                progress=True,
            )
            rows.setdefault(searcher, []).append(figures(study, evaluator))
            print(searcher, seed, rows[searcher][-1], flush=True)
            if not uniform:
                policy = Policy.from_dict(study.meta["uniform"]["policy"])
                uniform.append({"validation": 100 * study.meta["uniform"]["score"]} | on_test(evaluator, policy))
    print(f"dense test accuracy {dense:.2f} %")
    tested = {name: [r["test"] for r in found] for name, found in (rows | {"uniform": uniform}).items()}
    summary = {name: summarised(test, dense) for name, test in tested.items()}
    for name, of in summary.items():
        print(f"{name:8s} test {of['mean']:.2f} +- {of['deviation']:.2f} %, drop {of['drop']:.2f}")
    words = f"{arguments.budget.lower().replace('<=', '')} {arguments.name}"
    name = "resnet56_" + re.sub(r"[^a-z0-9]+", "_", words).strip("_")
    found_figures = {"budget": arguments.budget, "dense_test": dense, "test": summary, "uniform": uniform, **rows}
    write(name, found_figures, seeds=arguments.seeds)


def summarised(test: list[float], dense: float) -> dict[str, float]:
    """Mean test accuracy over seeds, its standard deviation, and the drop from the dense model, in points."""
    mean = statistics.fmean(test)
    return {"mean": mean, "deviation": statistics.stdev(test) if len(test) > 1 else 0.0, "drop": dense - mean}


if __name__ == "__main__":
    main()
