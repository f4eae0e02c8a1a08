"""Latency foretold and measured: random policies of ResNet-56 and MiniLM, and a search within a share of dense time.

    python benchmarks/latency.py                    tables, and 20 random policies of each model
    python benchmarks/latency.py --nets --search 25 --name search     a search of ResNet-56 within latency<=60%, alone

The policies are none of those that a table is fitted to. Predictions are compared with medians of the model in its
fastest form, timed in turn with the dense one; the table is measured first, the policies afterwards, on the same
machine. As shares of the dense time errors are those of the table alone; as seconds what the machine has become in the
meantime counts, too. What the search ends with is timed as `automc bench` does it: against the dense model by torch's
own kernels, and by automc's. MiniLM has random weights, since time does not depend on them. Needs AUTOMC_DATA (see
README.md) for ResNet-56.
"""

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from kernels import Encoder
from results import write
from torch import nn

import automc
from automc.compression.compress import Compressor
from automc.deployment.probes import BY_SIZE
from automc.deployment.profile import by_magnitude, profile
from automc.deployment.stopwatch import Stopwatch, seconds
from automc.graph.runs import of_size
from automc.graph.trace import trace_model
from automc.profiling import table_of
from automc.projection import Costing
from automc.registry import SPACES
from automc.report.bench import bench
from automc.space import SearchSpace
from automc.study import Study
from automc.task import Task
from automc.tasks import load_task

POLICIES = 20
NETS = {"resnet56": ("channels-ranks", "weights"), "minilm": ("cpu-blocks",)}
"""Spaces that policies are drawn from."""
TOKENS = 128


def task_of(net: str) -> Task:
    """A network with something to run it on."""
    if net == "resnet56":
        return load_task("cifar10-resnet56")
    torch.manual_seed(0)
    model = nn.Sequential(*(Encoder() for _ in range(6))).eval()
    x = torch.randn(4, TOKENS, 384)
    return Task(model, [x], [(x, torch.zeros(4))], metric=lambda outputs, targets: outputs.mean(dim=(1, 2)), name=net)


def random_points(space: SearchSpace, rng: np.random.Generator) -> np.ndarray:
    """Policies from nearly the dense to nearly the smallest one."""
    points = []
    for dense in rng.uniform(0.05, 0.95, POLICIES):
        levels = rng.binomial(space.sizes - 1, dense)
        points.append(np.where(space.ordered, levels, space.sample(rng)))
    return np.array(points)


def errors(net: str, name: str, seed: int) -> dict[str, Any]:
    """How far predictions for random policies are off."""
    task = task_of(net)
    graph = trace_model(task.model, task.example_inputs)
    space = SearchSpace(graph.facts, SPACES.load(name)(graph.facts), BY_SIZE)
    compressor, inputs = Compressor(graph, task.model, task), of_size(task.example_inputs, 1)
    table = profile(compressor, space, inputs)
    costing, rows = Costing(space, table), []
    watch = Stopwatch.of(task.model, inputs)
    for point in random_points(space, np.random.default_rng(1000 + seed)):
        small = compressor.compress(by_magnitude(space.decode(point)))
        rows.append({"foretold": costing.of(point)["latency"], "measured": watch.model(small, inputs)})
    ratios = np.array([r["foretold"] / r["measured"] for r in rows])
    off, shares = np.abs(ratios - 1), np.abs(ratios * watch.dense / table.dense - 1)
    found = {
        "median": float(np.median(off)),
        "ninetieth": float(np.quantile(off, 0.9)),
        "of_dense": {"median": float(np.median(shares)), "ninetieth": float(np.quantile(shares, 0.9))},
        "noise": table.noise,
        "dense": table.dense,
        "form": table.form,
        "fitted": {k: getattr(table, k) for k in ("scale", "factored", "fetch", "rest", "error")},
        "policies": rows,
    }
    print(
        f"{net}, {name}: off by {found['median']:.1%} (median), {found['ninetieth']:.1%} (90th percentile), as shares "
        f"of dense by {np.median(shares):.1%}, {np.quantile(shares, 0.9):.1%}",
        flush=True,
    )
    return found


def searched(trials: int, seed: int, space: str) -> dict[str, Any]:
    """A search within 60 % of the dense time, and what its best model takes."""
    task = load_task("cifar10-resnet56")
    study: Study = automc.search(
        "cifar10-resnet56",
        budget="latency<=60%",
        space=space,
        trials=trials,
        seed=seed,
        stages=(512, 1536),
        progress=True,
    )
    table = table_of(study)
    assert table is not None  # the budget limits latency
    small, best = automc.apply(task, study.best.policy), study.best
    runs = bench(small, task, batches=(1,), threads=(1,))["runs"]
    inputs = of_size(task.example_inputs, 1)
    both = [(seconds(small, inputs), seconds(task.model, inputs)) for _ in range(5)]
    share = statistics.median(took / dense for took, dense in both)
    print(f"latency<=60%: foretold {best.cost('latency') / table.dense:.1%}, measured {share:.1%} of dense", flush=True)
    return {
        "space": space,
        "trials": len(study.evaluations),
        "validation": best.score,
        "foretold": best.cost("latency") / table.dense,
        "measured": share,
        "macs": best.cost("macs") / study.meta["dense"]["costs"]["macs"],
        "bench": runs,
    }


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", type=int, default=0, metavar="TRIALS")
    parser.add_argument("--nets", nargs="*", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--space", default="auto", help="of the search")
    parser.add_argument("--name", default="", help="of the results, behind latency")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        f"{net} {space}": errors(net, space, arguments.seed) for net in arguments.nets for space in NETS[net]
    }
    if arguments.search:
        figures["search"] = searched(arguments.search, arguments.seed, arguments.space)
    write("_".join(["latency", *arguments.name.split()]), figures, seeds=[arguments.seed])


if __name__ == "__main__":
    main()
