"""Two ways to share weights at the same storage: a k-means codebook with codes, and hashed buckets without.

    python benchmarks/sharing.py

LeNet-300-100 on MNIST, nothing pruned. k-means stores b bits a weight and 2^b values a layer; hashing (Chen et al.
2015, HashedNets) stores values alone, as many as fit in the same bytes (the power of two below). Accuracy on the test
split before and after the shared values are trained for five epochs, over three seeds. Needs AUTOMC_DATA (see
README.md).
"""

import copy
import statistics
from typing import Any

import torch
from results import write
from torch import nn
from torch.nn.utils import parametrize

from automc.compression.codebook import Codebook, SharedWeight, hashed, kmeans
from automc.recovery.finetune import finetune
from automc.recovery.optimize import Schedule
from automc.setting import evaluator_of
from automc.tasks import mnist

BITS = (4, 2)
SEEDS = (0, 1, 2)
SCHEDULE = Schedule(epochs=5, batch=128, rate=2e-4)


def shared(layer: nn.Linear, way: str, bits: int, seed: int) -> Codebook:
    """One layer's codebook, of at most numel * bits / 8 bytes without coding."""
    weight = layer.weight.detach()
    if way == "kmeans":
        return kmeans(weight, 2**bits)
    return hashed(weight, (weight.numel() * bits // 32).bit_length() - 1, seed)


def main() -> None:
    """Prints and writes the means."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        task = mnist.task("mnist-lenet300", mnist.lenet300, mnist.Training(seed=seed))
        evaluator = evaluator_of(task)
        assert task.train is not None
        for bits in BITS:
            for way in ("kmeans", "hashed"):
                model = copy.deepcopy(task.model)
                for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
                    book = shared(layer, way, bits, seed)
                    sharing = SharedWeight(book, torch.ones_like(layer.weight, dtype=torch.bool))
                    parametrize.register_parametrization(layer, "weight", sharing)
                row = {"seed": seed, "bits": bits, "way": way, "before": 100 * evaluator.score(model, "test")}
                finetune(model, task.train, SCHEDULE, teacher=task.model)
                rows.append(row | {"trained": 100 * evaluator.score(model, "test")})
                print(rows[-1], flush=True)
    cases = [(bits, way) for bits in BITS for way in ("kmeans", "hashed")]
    means = {
        f"{way}, {bits} bits a weight": {
            key: statistics.fmean(r[key] for r in rows if (r["bits"], r["way"]) == (bits, way))
            for key in ("before", "trained")
        }
        for bits, way in cases
    }
    print(means)
    write("sharing", {"means": means, "rows": rows}, seeds=SEEDS)


if __name__ == "__main__":
    main()
