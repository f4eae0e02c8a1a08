"""Candidates scored a second, against AMC's own procedure (`amc_procedure`), interleaved in one process.

    python benchmarks/scoring.py --candidates 10

ResNet-56, random policies of channel shares at half the MACs, the same 5,000 validation images. `plain` evaluates the
very module that was scored without folding, in batches of 256: its accuracy must agree. Needs AUTOMC_DATA (see
README.md).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from amc_procedure import AmcProcedure, evaluate
from results import write

from automc.api import evaluator_of
from automc.budget import Budget
from automc.projection import Projector
from automc.registry import SPACES
from automc.space import SearchSpace
from automc.tasks import load_task


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def main() -> None:
    """Prints and writes seconds a candidate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=10)
    count = parser.parse_args().candidates
    task = load_task("cifar10-resnet56")
    evaluator = evaluator_of(task)
    facts = evaluator.compressor.graph.facts
    amc = AmcProcedure(task, facts)
    space = SearchSpace(facts, SPACES.load("channels")(facts))
    projector, rng = Projector(space, Budget.parse("macs<=50%")), np.random.default_rng(0)
    policies = [space.decode(projector.project(space.sample(rng), fill=True)) for _ in range(count + 1)]
    evaluator.evaluate(policies[0])  # the dense statistics
    rows = []
    for policy in policies[1:]:
        theirs, slow = timed(lambda p=policy: amc.accuracy(p))  # type: ignore[misc]
        ours, fast = timed(lambda p=policy: float(evaluator.evaluate(p).score or 0.0))  # type: ignore[misc]
        plain = evaluate(evaluator.compressor.compress(policy), amc.batches)
        rows.append({"amc": theirs, "amc_seconds": slow, "automc": ours, "automc_seconds": fast, "plain": plain})
        print(rows[-1], flush=True)
    median = {key: statistics.median(r[key] for r in rows) for key in ("amc_seconds", "automc_seconds")}
    found = {
        "median": median,
        "times_faster": statistics.median(r["amc_seconds"] / r["automc_seconds"] for r in rows),
        "largest_difference_points": 100 * max(abs(r["automc"] - r["plain"]) for r in rows),
    }
    print(found)
    write("scoring", {**found, "rows": rows}, seeds=[0])


if __name__ == "__main__":
    main()
