"""Candidates scored a second, against AMC's own procedure (`amc_procedure`), interleaved in one process.

    python benchmarks/scoring.py independent --candidates 10
    python benchmarks/scoring.py neighbours --candidates 20
    python benchmarks/scoring.py race --candidates 200
    python benchmarks/scoring.py memory

ResNet-56, policies of channel shares at half the MACs, all of the same 5,000 validation images, on all processors.

independent: random policies, nothing shared. `sequential` is automc's default refit, `layerwise` fits each layer by
    itself towards its dense outputs, which is what AMC does. `plain` runs the very module that was scored in torch,
    unfolded, in batches of 256: its accuracy must agree. `bf16` runs it in torch's bfloat16, to say what less precision
    would bring; its rank correlation with fp32 is over all candidates.
neighbours: policies that differ from one in one to three layers, as a local search proposes them; passes begin where
    decisions part. `together`: the search knows them all before the first is scored, `one by one`: it does not, and the
    one they are neighbours of was scored before. Each kind of refit has an evaluator, and memory, of its own.
race: the five best of many random policies by `mse`, found by a tournament (guess, cheap refit, race in stages), and by
    scoring all of them in full, which says whether they are the five best.
memory: the process's peak while it scores neighbours, without AMC.

Needs AUTOMC_DATA (see README.md).
"""

import argparse
import copy
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from amc_procedure import AmcProcedure, evaluate
from results import write
from scipy.stats import kendalltau

from automc.api import prepare
from automc.budget import Budget
from automc.evaluation import Evaluation
from automc.policy import Policy, Recipe
from automc.scoring.evaluator import Evaluator
from automc.scoring.forward import prepared
from automc.scoring.tournament import Tournament, cheaper
from automc.tasks import load_task

RECIPES = {"sequential": Recipe(), "layerwise": Recipe(reconstruct="layerwise", batchnorm="keep")}
BEST = 5
ROUNDS = 3
AMC_POLICIES = 4
"""Of one round that are scored by AMC's procedure: it has nothing to share, so that a few tell what it takes."""
Row = dict[str, float]


class Bench:
    """One task, one space, and both procedures."""

    def __init__(
        self,
        *,
        with_amc: bool = True,
        score: str = "metric",
        stages: tuple[int, ...] = (),
        recipes: Sequence[str] = tuple(RECIPES),
    ) -> None:
        task = load_task("cifar10-resnet56")
        self.setting = setting = prepare(task, Budget.parse("macs<=50%"), "channels", score=score, stages=stages)
        self.evaluator: Evaluator = setting.evaluator
        self.space, self.projector = setting.problem_parts
        self.rng = np.random.default_rng(0)
        self.amc = AmcProcedure(task, setting.graph.facts) if with_amc else None
        for name in recipes:  # the dense statistics, which all candidates share
            self.scored(self.random(), name)

    def random(self) -> Policy:
        """A random policy that fills the budget."""
        return self.space.decode(self.projector.project(self.space.sample(self.rng), fill=True))

    def neighbour(self, of: Policy) -> Policy:
        """One to three layers changed, and no other, in budget."""
        while True:
            levels = self.space.neighbours(self.space.encode(of), self.rng, int(self.rng.integers(1, 4)), 3)
            if self.projector.feasible(levels):
                return self.space.decode(levels)

    def scored(self, policy: Policy, recipe: str) -> tuple[float, float]:
        """Accuracy and seconds."""
        return timed(lambda: float(self.evaluator.evaluate(policy.with_recipe(RECIPES[recipe])).score or 0.0))


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def independent(count: int) -> None:
    """Random candidates, one after the other by every way."""
    bench = Bench()
    assert bench.amc is not None
    rows: list[Row] = []
    for _ in range(count):
        policy = bench.random()
        row: Row = {}
        row["amc"], row["amc_seconds"] = timed(lambda p=policy: bench.amc.accuracy(p))  # type: ignore[misc, union-attr]
        for name in RECIPES:
            row[name], row[f"{name}_seconds"] = bench.scored(policy, name)
        small = bench.evaluator.compressor.compress(policy)
        row["plain"], row["plain_seconds"] = timed(lambda m=small: evaluate(m, bench.amc.batches))  # type: ignore[misc, union-attr]
        row["forward"], row["forward_seconds"] = timed(lambda m=small: bench.evaluator.score(m))  # type: ignore[misc]
        low = prepared(copy.deepcopy(small)).to(torch.bfloat16)
        row["bf16"], row["bf16_seconds"] = timed(lambda m=low: in_bfloat16(m, bench.amc.batches))  # type: ignore[misc, union-attr]
        rows.append(row)
        print({k: round(v, 4) for k, v in row.items()}, flush=True)
    found: dict[str, Any] = {"times_faster": {name: faster(rows, name) for name in RECIPES}}
    found["largest_difference_points"] = 100 * max(abs(r["sequential"] - r["plain"]) for r in rows)
    found["bf16_kendall"] = float(kendalltau([r["bf16"] for r in rows], [r["forward"] for r in rows]).statistic)
    found["bf16_over_compiled_fp32"] = statistics.median(r["forward_seconds"] / r["bf16_seconds"] for r in rows)
    report("scoring_independent", found, rows)


def neighbours(count: int) -> None:
    """Rounds of neighbours of one policy, some of them by AMC's procedure, all of them by both refits."""
    benches = {name: Bench(with_amc=name == "layerwise", recipes=[name]) for name in RECIPES}
    bench = benches["layerwise"]
    assert bench.amc is not None
    rows: list[Row] = []
    for _ in range(ROUNDS):
        starts = bench.random(), bench.random()
        together, alone = ([bench.neighbour(start) for _ in range(count)] for start in starts)
        theirs = [timed(lambda p=policy: bench.amc.accuracy(p))[1] for policy in together[:AMC_POLICIES]]  # type: ignore[misc, union-attr]
        row: Row = {"amc_seconds": statistics.fmean(theirs)}
        for name, each in benches.items():
            known = [policy.with_recipe(RECIPES[name]) for policy in together]
            _, seconds = timed(lambda e=each, k=known: len(e.evaluator.evaluate_all(k)))  # type: ignore[misc]
            row[f"{name}_together"] = row["amc_seconds"] * count / seconds
            each.scored(starts[1], name)
            seconds = sum(each.scored(policy, name)[1] for policy in alone)
            row[f"{name}_one_by_one"] = row["amc_seconds"] * count / seconds
        rows.append(row)
        print({k: round(v, 4) for k, v in row.items()}, flush=True)
    report(
        "scoring_neighbours", {"times_faster": {k: [r[k] for r in rows] for k in rows[0] if k != "amc_seconds"}}, rows
    )


def race(count: int) -> None:
    """A tournament of random policies, AMC's procedure on some of them, and all of them in full."""
    bench = Bench(score="mse", stages=(256, 1024), recipes=["sequential"])
    assert bench.amc is not None
    policies = list({p.digest: p for p in (bench.random() for _ in range(count))}.values())
    tournament = Tournament(bench.evaluator, lambda: bench.setting.screen, BEST)
    bench.evaluator.compressor.compress(policies[0].with_recipe(cheaper(Recipe())))  # its dense statistics
    theirs = [timed(lambda p=p: bench.amc.accuracy(p))[1] for p in policies[:3]]  # type: ignore[misc, union-attr]
    start = time.perf_counter()
    found = tournament.run(policies)
    seconds = time.perf_counter() - start
    theirs += [timed(lambda p=p: bench.amc.accuracy(p))[1] for p in policies[3:6]]  # type: ignore[misc, union-attr]
    figures = {
        "policies": len(policies),
        "tournament_seconds": seconds,
        "amc_seconds_each": statistics.median(theirs),
        "times_faster": statistics.median(theirs) * len(policies) / seconds,
        "ended": {how: sum(_ended(e) == how for e in found) for how in ("in full", "in a stage", "cheaply", "guessed")},
    }
    print(figures, flush=True)
    scores = [bench.evaluator.evaluate(policy).score or 0.0 for policy in policies]
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:BEST]
    chosen = sorted((i for i, e in enumerate(found) if e.ok), key=lambda i: -(found[i].score or 0.0))[:BEST]
    figures |= {"best": best, "found": chosen, "same": sorted(best) == sorted(chosen), "scores": scores}
    print({key: value for key, value in figures.items() if key != "scores"})
    write("scoring_race", figures, seeds=[0])


def _ended(evaluation: Evaluation) -> str:
    """How far a policy got."""
    if evaluation.ok:
        return "in full"
    return "in a stage" if evaluation.stages else "cheaply" if evaluation.share else "guessed"


def memory(count: int) -> None:
    """The process's peak memory."""
    bench = Bench(with_amc=False, recipes=["sequential"])
    before = peak()
    start = bench.random()
    for _ in range(count):
        bench.scored(bench.neighbour(start), "sequential")
    found = {"peak_mib": peak(), "before_candidates_mib": before, "candidates": count}
    print(found)
    write("scoring_memory", found, seeds=[0])


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def in_bfloat16(module: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Accuracy in torch's bfloat16, channels last, in chunks that stay in cache."""
    pieces = [(a, b) for x, y in batches for a, b in zip(x.split(128), y.split(128), strict=True)]
    right = 0
    for x, y in pieces:
        inputs = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        right += int((module(inputs).argmax(dim=1) == y).sum())
    return right / sum(len(y) for _, y in pieces)


def faster(rows: list[Row], name: str) -> dict[str, float]:
    """How many times as fast as AMC's procedure: median and quartiles over candidates."""
    ratios = [r["amc_seconds"] / r[f"{name}_seconds"] for r in rows]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def report(name: str, found: dict[str, Any], rows: list[Row]) -> None:
    """Prints and writes figures."""
    found["median"] = {key: statistics.median(r[key] for r in rows) for key in rows[0]}
    print(found)
    write(name, {**found, "rows": rows}, seeds=[0])


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"independent": independent, "neighbours": neighbours, "race": race, "memory": memory}
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("--candidates", type=int, default=10)
    arguments = parser.parse_args()
    parts[arguments.part](arguments.candidates)


if __name__ == "__main__":
    main()
