"""How long the layer bank of ResNet-56 takes: all channel levels of all groups, under two criteria.

    python benchmarks/bank.py

One forward pass of 1,024 calibration images gives the moments; an elimination for each group and criterion gives order
and error at every level, and each level's refitted weights follow. Medians of three banks, each built from nothing.
Needs AUTOMC_DATA (see README.md).
"""

import statistics
import time

import numpy as np
from results import write

from automc.compression.bank import LayerBank
from automc.policy import Recipe
from automc.setting import evaluator_of
from automc.tasks import load_task

CRITERIA = ("obs", "l1")
RUNS = 3


def build(bank: LayerBank) -> dict[str, float]:
    """Seconds of each part, and how many variants the bank then knows."""
    start = time.perf_counter()
    layers = len(bank.moments)
    forward = time.perf_counter()
    for criterion in CRITERIA:
        for group in bank.facts.groups:
            bank.elimination(group, criterion)
    eliminated = time.perf_counter()
    variants = 0
    for criterion in CRITERIA:
        for group in bank.facts.groups:
            readers = [n for n in group.consumers if bank.facts.layer(n).groups == 1]
            if group.coupled:
                continue
            for units in range(1, group.units):
                kept = bank.kept(group, criterion, units)
                variants += sum(len(bank.refit(name, kept)) > 0 for name in readers)
    done = time.perf_counter()
    return {
        "forward": forward - start,
        "elimination": eliminated - forward,
        "refits": done - eliminated,
        "total": done - start,
        "layers": layers,
        "variants": variants,
    }


def main() -> None:
    """Prints and writes the medians."""
    task = load_task("cifar10-resnet56")
    evaluator = evaluator_of(task)
    compressor, recipe = evaluator.compressor, Recipe()
    inputs = compressor.inputs(recipe)
    runs = []
    for _ in range(RUNS):
        runs.append(build(LayerBank(compressor.graph.facts, compressor.model, inputs, recipe)))
        print(runs[-1], flush=True)
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    spread = float(np.std([run["total"] for run in runs]))
    write("bank", {"median": figures, "deviation_total": spread, "runs": runs}, seeds=[recipe.seed])


if __name__ == "__main__":
    main()
