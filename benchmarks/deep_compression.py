"""Deep Compression (Han et al. 2016) on MNIST: how much smaller the file of a LeNet gets at no loss of accuracy.

    python benchmarks/deep_compression.py lenet300
    python benchmarks/deep_compression.py lenet5

Per seed: train a dense network, prune it gradually by magnitude with the dense network as teacher, share weights by
k-means, train the centroids, save. The size is that of the whole file automc writes (indices, codebooks, biases,
header) against the dense float32 tensors. Settings were chosen on the 5,000 validation images; the 10,000 test images
are looked at once for each seed. Needs AUTOMC_DATA (see README.md).
"""

import argparse
import copy
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from results import write
from torch import nn

import automc
from automc.policy import LayerDecision, Policy, Recipe
from automc.recovery.finetune import finetune, prune_gradually
from automc.recovery.optimize import Schedule
from automc.setting import evaluator_of
from automc.task import Task
from automc.tasks import mnist


@dataclass(frozen=True)
class Settings:
    """What is kept of each layer, in how many bits, and how long everything is trained."""

    sparsity: dict[str, float]
    bits: dict[str, int]
    steps: int
    after: int
    """Epochs behind the last pruning step."""
    centroids: int
    """Epochs for the codebooks."""
    rate: float = 1e-3
    batch: int = 128


NETWORKS = {
    "lenet300": (
        mnist.lenet300,
        Settings({"1": 0.94, "3": 0.88, "5": 0.50}, {"1": 4, "3": 5, "5": 5}, steps=20, after=40, centroids=5),
    ),
    "lenet5": (
        mnist.lenet5,
        Settings(
            {"0": 0.25, "3": 0.78, "7": 0.95, "9": 0.65},
            {"0": 6, "3": 5, "7": 5, "9": 5},
            steps=8,
            after=10,
            centroids=2,
        ),
    ),
}


def compressed(task: Task, settings: Settings, seed: int) -> tuple[nn.Module, dict[str, float]]:
    """The pruned, shared and fine-tuned network, and the validation score after every stage."""
    model, scores = copy.deepcopy(task.model), {}
    evaluator = evaluator_of(task)
    once = Schedule(epochs=1, batch=settings.batch, rate=settings.rate, seed=seed)
    assert task.train is not None
    prune_gradually(model, task.train, settings.sparsity, once, steps=settings.steps, teacher=task.model)
    finetune(model, task.train, replace(once, epochs=settings.after), teacher=task.model)
    scores["pruned"] = 100 * evaluator.score(model)
    pruned = replace(task, model=model.eval())
    layers = evaluator.compressor.graph.facts.layers
    decisions = tuple((x.name, LayerDecision(weight_bits=settings.bits[x.name], codebook="kmeans")) for x in layers)
    inside = evaluator_of(pruned)
    policy = Policy(inside.compressor.graph.facts.fingerprint, (), decisions, Recipe(reconstruct="none"))
    small = inside.compressor.compress(policy)
    scores["shared"] = 100 * evaluator.score(small)
    finetune(small, task.train, replace(once, epochs=settings.centroids, rate=settings.rate / 5), teacher=task.model)
    scores["centroids trained"] = 100 * evaluator.score(small)
    return small, scores


def figures(name: str, seed: int) -> dict[str, Any]:
    """One seed, from the dense network's training on."""
    factory, settings = NETWORKS[name]
    task = mnist.task(f"mnist-{name}", factory, mnist.Training(seed=seed))
    evaluator = evaluator_of(task)
    start = time.perf_counter()
    small, validation = compressed(task, settings, seed)
    minutes = (time.perf_counter() - start) / 60
    with tempfile.TemporaryDirectory() as folder:
        size = automc.save(small, folder)
        again = automc.load(folder, factory)
    dense = 4 * sum(p.numel() for p in task.model.parameters())
    return {
        "seed": seed,
        "bytes": size,
        "dense_bytes": dense,
        "times_smaller": dense / size,
        "test": 100 * evaluator.score(again, "test"),
        "dense_test": 100 * evaluator.score(task.model, "test"),
        "dense_validation": 100 * evaluator.score(task.model),
        "validation": validation,
        "minutes": minutes,
    }


def main() -> None:
    """Prints and writes one network's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in arguments.seeds:
        rows.append(figures(arguments.network, seed))
        print(rows[-1], flush=True)
    summary = {
        key: {"mean": statistics.fmean(r[key] for r in rows), "deviation": statistics.pstdev([r[key] for r in rows])}
        for key in ("times_smaller", "test", "dense_test")
    }
    print(summary)
    settings = NETWORKS[arguments.network][1]
    found = {"summary": summary, "sparsity": settings.sparsity, "bits": settings.bits, "rows": rows}
    write(f"deep_compression_{arguments.network}", found, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
