"""ResNets on CIFAR-10 at half the MACs by channels, without training: criteria and reconstruction side by side.

    python benchmarks/reconstruction.py table     l1, fpgm, obs, random x no, independent, sequential refit
    python benchmarks/reconstruction.py ranking   how well cheap refits rank 30 policies that the full one scores
    python benchmarks/reconstruction.py prefix    seconds to compress neighbours of a policy, prefixes reused and not

The policy of the table keeps the same share in every group, the largest share within the budget; ratios are what a
search is for. At most 2,048 unlabelled training images calibrate. Needs AUTOMC_DATA (see README.md).
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from results import write
from scipy.stats import kendalltau

from automc.budget import Budget
from automc.compression.prefix import PassMemory
from automc.policy import GroupDecision, Policy, Recipe
from automc.projection import Projector
from automc.registry import SPACES
from automc.scoring.evaluator import Evaluator
from automc.setting import evaluator_of
from automc.space import SearchSpace
from automc.tasks import load_task

CRITERIA = ("l1", "fpgm", "obs", "random")
RECIPES = {
    "none": Recipe(reconstruct="none"),
    "independent": Recipe(reconstruct="layerwise"),
    "sequential": Recipe(images=2048),
}
CHEAP = {
    "sequential, 256 images": Recipe(images=256, rows=4096),
    "sequential, 512 images": Recipe(images=512, rows=8192),
    "independent": Recipe(reconstruct="layerwise"),
}
Row = dict[str, Any]


def opened(evaluator: Evaluator) -> tuple[SearchSpace, Projector]:
    """The channels of every block, within half the MACs."""
    facts = evaluator.compressor.graph.facts
    space = SearchSpace(facts, SPACES.load("channels")(facts))
    return space, Projector(space, Budget.parse("macs<=50%"))


def uniform(space: SearchSpace, projector: Projector) -> Policy:
    """The same share everywhere, as large as the budget allows."""
    shares = [np.array([a.level(s) for a in space.axes]) for s in np.linspace(1.0, 0.1, 91)]
    return space.decode(next(levels for levels in shares if projector.feasible(levels)))


def by(policy: Policy, criterion: str) -> Policy:
    """The same shares, units ranked by another criterion."""
    return replace(policy, groups=tuple((n, GroupDecision(d.keep, criterion)) for n, d in policy.groups))


def table() -> None:
    """Accuracy of one policy under every criterion and refit, on ResNet-20 and ResNet-56."""
    found: dict[str, Any] = {}
    for name in ("cifar10-resnet20", "cifar10-resnet56"):
        task = load_task(name)
        evaluator = evaluator_of(task)
        dense = 100 * evaluator.score(task.model, "test")
        policy = uniform(*opened(evaluator))
        rows = []
        for criterion in CRITERIA:
            for kind, recipe in RECIPES.items():
                start = time.perf_counter()
                small = evaluator.compressor.compress(by(policy, criterion).with_recipe(recipe))
                seconds = time.perf_counter() - start
                test = 100 * evaluator.score(small, "test")
                rows.append(
                    {"criterion": criterion, "refit": kind, "test": test, "drop": dense - test, "seconds": seconds}
                )
                print(name, rows[-1], flush=True)
        found[name] = {"dense_test": dense, "keep": policy.groups[0][1].keep, "rows": rows}
    write("reconstruction_table", found, seeds=[0])


def ranking() -> None:
    """Kendall's tau of cheap refits' scores with the full one's, over random policies at the budget, on validation."""
    task = load_task("cifar10-resnet56")
    evaluator = evaluator_of(task, "kl")
    space, projector = opened(evaluator)
    rng = np.random.default_rng(0)
    policies = [space.decode(projector.project(space.sample(rng), fill=True)) for _ in range(30)]
    full, seconds = scores(evaluator, policies, Recipe())
    rows: list[Row] = [{"refit": "sequential, 1024 images", "seconds": seconds}]
    for kind, recipe in CHEAP.items():
        cheap, seconds = scores(evaluator, policies, recipe)
        taus = {name: float(kendalltau(cheap[name], full[name]).statistic) for name in full}
        rows.append({"refit": kind, "tau": taus, "seconds": seconds})
        print(rows[-1], flush=True)
    write("reconstruction_ranking", {"policies": len(policies), "rows": rows, "full": full}, seeds=[0])


def prefix() -> None:
    """Neighbours of the uniform policy, one group changed in each, compressed with and without earlier passes' help."""
    evaluator = evaluator_of(load_task("cifar10-resnet56"))
    compressor = evaluator.compressor
    space, projector = opened(evaluator)
    start, rng = space.encode(uniform(space, projector)), np.random.default_rng(0)
    policies = [space.decode(start)] + [space.decode(space.neighbours(start, rng, 1, 3)) for _ in range(30)]
    compressor.compress(policies[0])  # the dense statistics
    ways = {"reused": compressor.passes, "from the start": PassMemory(0)}
    rows: dict[str, list[float]] = {way: [] for way in ways}
    for policy in policies:
        models = []
        for way, memory in ways.items():
            compressor.passes = memory
            begun = time.perf_counter()
            models.append(compressor.compress(policy).state_dict())
            rows[way].append(time.perf_counter() - begun)
        assert all(torch.equal(x, models[1][name]) for name, x in models[0].items())
        print({way: round(seconds[-1], 2) for way, seconds in rows.items()}, flush=True)
    summary = {way: {"mean": statistics.fmean(s), "median": statistics.median(s)} for way, s in rows.items()}
    print(summary)
    write("reconstruction_prefix", {"summary": summary, "seconds": rows}, seeds=[0])


def scores(evaluator: Evaluator, policies: list[Policy], recipe: Recipe) -> tuple[dict[str, list[float]], float]:
    """Likeness to the dense model and accuracy on the validation data, and the median seconds that compressing took."""
    found, seconds = [], []
    for policy in policies:
        start = time.perf_counter()
        small = evaluator.compressor.compress(policy.with_recipe(recipe))
        seconds.append(time.perf_counter() - start)
        found.append(evaluator.measure(small))
    return {name: [pair[i] for pair in found] for i, name in enumerate(("kl", "accuracy"))}, float(np.median(seconds))


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"table": table, "ranking": ranking, "prefix": prefix}
    parser.add_argument("part", choices=list(parts))
    parts[parser.parse_args().part]()


if __name__ == "__main__":
    main()
