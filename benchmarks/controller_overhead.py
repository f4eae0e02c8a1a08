"""Controller overhead: searcher, projection and record, per trial, with a score looked up instead of computed.

The space is that of ResNet-56 with 27 groups and three decisions each (share, criterion, bits of the layer that reads
it).

    python benchmarks/controller_overhead.py
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from results import write

from automc.budget import Budget
from automc.evaluation import Evaluation
from automc.graph.trace import trace_model
from automc.policy import Policy
from automc.projection import Projector
from automc.registry import SEARCHERS
from automc.search_spaces.criteria import criteria
from automc.searcher import Problem
from automc.space import Axis, SearchSpace
from automc.study import Study
from automc.tasks.resnet import ResNet

TRIALS, SEEDS = 100, (0, 1, 2)
NAMES = (
    "random",
    "uniform",
    "global_magnitude",
    "tpe",
    "cmaes",
    "nsga2",
    "nsga3",
    "dp",
    "knapsack",
    "evolution",
    "amc",
    "haq",
    "ddpg",
    "reinforce",
    "joint",
)
"""GP takes seconds an ask at so many decisions, and Stable-Baselines3 is an extra."""


def make_problem() -> tuple[Problem, list[np.ndarray]]:
    """ResNet-56 with 27 x 3 decisions, and made-up additive errors."""
    facts = trace_model(ResNet(56), (torch.zeros(2, 3, 32, 32),), verify=False).facts
    axes = []
    for axis in criteria(facts):
        axes.append(axis)
        if axis.field == "criterion":
            reader = facts.group(axis.place).consumers[0]
            axes.append(Axis(reader, "layer", "weight_bits", (2, 3, 4, 5, 6, 7, 8, 32)))
    space = SearchSpace(facts, tuple(axes))
    rng = np.random.default_rng(0)
    errors = [
        rng.uniform(0.2, 2) * np.linspace(1, 0, n) ** 2 if o else rng.uniform(0, 0.02, n)
        for n, o in zip(space.sizes, space.ordered, strict=True)
    ]
    projector = Projector(space, Budget.parse("macs<=50%,size<=30%"))
    return Problem(space, projector, 0.93, lambda: tuple(errors), lambda _: tuple(errors)), errors


def one_search(problem: Problem, errors: list[np.ndarray], name: str, seed: int, folder: Path) -> dict[str, float]:
    """Median and mean milliseconds of a trial."""
    searcher = SEARCHERS.load(name)(problem, seed)
    meta = {"fingerprint": problem.space.facts.fingerprint, "limits": problem.projector.limits}
    study = Study.create(folder / f"{name}-{seed}.journal", name, meta, problem.space.axes)
    times = []
    with study.searching():
        for _ in range(TRIALS):
            start = time.perf_counter()
            policy = searcher.ask()
            costs = problem.projector.costing.of_policy(policy)
            asked = time.perf_counter()
            evaluation = Evaluation(policy, "ok", _score(problem, errors, policy), tuple(costs.items()))
            scored = time.perf_counter()
            searcher.tell(study.record(replace(evaluation, proposer=str(getattr(searcher, "proposer", name)))))
            times.append(1e3 * (time.perf_counter() - scored + asked - start))
    return {"median": statistics.median(times), "mean": statistics.fmean(times), "max": max(times)}


def _score(problem: Problem, errors: list[np.ndarray], policy: Policy) -> float:
    point = problem.space.encode(policy)
    return 0.93 - 0.01 * sum(float(e[level]) for e, level in zip(errors, point, strict=True))


def main() -> None:
    """Prints and writes the table."""
    problem, errors = make_problem()
    rows: dict[str, dict[str, list[float]]] = {n: {"median": [], "mean": [], "max": []} for n in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for name in NAMES:
                for key, value in one_search(problem, errors, name, seed, Path(folder)).items():
                    rows[name][key].append(value)
    for name, row in rows.items():
        print(
            f"{name:16s} median {statistics.median(row['median']):7.2f} ms  "
            f"mean {statistics.median(row['mean']):7.2f} ms  max {max(row['max']):7.1f} ms"
        )
    write(
        "controller_overhead",
        {
            "unit": "ms per trial",
            "trials": TRIALS,
            "decisions": len(problem.space.axes),
            "asked": 5.0,
            "searchers": rows,
        },
        seeds=SEEDS,
    )


if __name__ == "__main__":
    main()
