"""Zeros and bits without training, by bit operations: searched together, alone, and one after the other.

    python benchmarks/bops.py resnet20                      budgets 3.1, 1.6 and 0.8 % of the 32-bit model's
    python benchmarks/bops.py resnet56 --trials 150 --seeds 0 1 2
    python benchmarks/bops.py resnet20 --budgets 0.4        written to a file of its own

At the tightest budget the joint search is compared with pruning alone, with quantization alone (both searched as long)
and with pruning first and quantizing what is left, half of the trials each, at the better of two shares of pruning.
Searches score on the validation split, candidates that lose are stopped early; the test split is scored once, for the
best policy of each search. Studies lie in runs/bops-zeros/ and are gone on with. Needs AUTOMC_DATA (see README.md).
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import write

import automc
from automc.errors import BudgetError
from automc.graph.facts import ModelFacts
from automc.policy import Policy
from automc.projection import within
from automc.registry import SPACES
from automc.scoring.evaluator import Evaluator
from automc.search_spaces.channels import all_channels
from automc.search_spaces.joined import joined
from automc.search_spaces.joint import SINGLE
from automc.search_spaces.weights import weights
from automc.setting import evaluator_of
from automc.space import Axis
from automc.study import Study
from automc.tasks import load_task

RUNS = Path("runs") / "bops-zeros"
BUDGETS = (3.1, 1.6, 0.8)
"""Percent of the bit operations of the dense 32-bit model."""
SHARES = (50, 25)
"""Percent of the bit operations that zeros leave where quantization comes second."""
STAGES = (512, 1536)
TOGETHER, BITS = "zeros-bits", "bits"


def searched(
    net: str, space: str | Callable[[ModelFacts], tuple[Axis, ...]], budget: str, name: str, trials: int, seed: int
) -> Study:
    """A search by the joint searcher, gone on with where it stopped."""
    RUNS.mkdir(parents=True, exist_ok=True)
    storage = RUNS / f"{net}-{name}-{seed}.journal"
    study = automc.search(
        f"cifar10-{net}",
        budget=budget,
        space=space,
        trials=trials,
        seed=seed,
        stages=STAGES,
        cache=RUNS / "cache",
        storage=storage,
        study=name,
    )
    print(f"{net} {name} seed {seed}: {100 * float(study.best.score or 0):.2f} % on validation", flush=True)
    return study


def pruned_already(policy: Policy) -> Callable[[ModelFacts], tuple[Axis, ...]]:
    """The space of bits where the zeros of a policy are settled."""

    def build(facts: ModelFacts) -> tuple[Axis, ...]:
        settled = [
            axis
            for name, decision in policy.layers
            for axis in (
                Axis(name, "layer", "sparsity", (decision.sparsity,)),
                Axis(name, "layer", "pattern", (decision.pattern,)),
                Axis(name, "layer", "criterion", (decision.criterion,)),
            )
        ]
        return joined(facts, [*settled, *SPACES.load(BITS)(facts)])

    return build


def zeros(facts: ModelFacts) -> tuple[Axis, ...]:
    """Every layer's share of zeros, as where bits are open beside them."""
    return weights(facts, zeros=SINGLE)


def zeros_and_channels(facts: ModelFacts) -> tuple[Axis, ...]:
    """All that pruning can do."""
    return joined(facts, [*all_channels(facts), *zeros(facts)])


def one_after_the_other(net: str, budget: float, trials: int, seed: int) -> Study:
    """Pruning, then bits for what is left; of the shares that pruning may leave, the one better on validation."""
    found = []
    for share in SHARES:
        first = searched(net, zeros, f"bops<={share}%", f"pruned{share}", trials // 2, seed)
        space = pruned_already(first.best.policy)
        name = f"pruned{share}-quantized{budget}"
        found.append(searched(net, space, f"bops<={budget}%", name, trials - trials // 2, seed))
    return max(found, key=lambda study: float(study.best.score or 0))


def row(study: Study, evaluator: Evaluator) -> dict[str, Any]:
    """What is asked of one search."""
    best, dense = study.best, study.meta["dense"]
    small = evaluator.compressor.compress(best.policy)
    return {
        "validation": 100 * float(best.score or 0),
        "test": 100 * evaluator.score(small, "test"),
        "bops": 100 * best.cost("bops") / dense["costs"]["bops"],
        "macs": 100 * best.cost("macs") / dense["costs"]["macs"],
        "trials": len(study.evaluations),
        "within": all(within(dict(e.costs), study.meta["limits"]) for e in study.evaluations if e.scored),
        "proposer": best.proposer,
        "minutes": sum(e.seconds for e in study.evaluations) / 60,
    }


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=("resnet20", "resnet56"))
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="percent, the tightest one last")
    arguments = parser.parse_args()
    net, trials = arguments.net, arguments.trials
    evaluator = evaluator_of(load_task(f"cifar10-{net}"))
    dense = 100 * evaluator.score(evaluator.task.model, "test")
    budgets, tightest = tuple(arguments.budgets), arguments.budgets[-1]
    rows: dict[str, list[dict[str, Any]]] = {}
    unreachable: dict[str, str] = {}
    for seed in arguments.seeds:
        for budget in budgets:
            study = searched(net, TOGETHER, f"bops<={budget}%", f"joint{budget}", trials, seed)
            rows.setdefault(f"joint {budget} %", []).append(row(study, evaluator))
        alone = {
            "quantize only": (BITS, f"quantized{tightest}", trials),
            "prune only": (zeros_and_channels, f"pruned{tightest}", trials // 2),
        }
        for name, (space, study_name, count) in alone.items():
            try:
                study = searched(net, space, f"bops<={tightest}%", study_name, count, seed)
                rows.setdefault(name, []).append(row(study, evaluator))
            except BudgetError as error:
                unreachable[name] = str(error)
        rows.setdefault("one after the other", []).append(
            row(one_after_the_other(net, tightest, trials, seed), evaluator)
        )
    summary = {}
    for name, found in rows.items():
        tests = [r["test"] for r in found]
        drops = sorted(dense - t for t in tests)
        summary[name] = {
            "drop": statistics.median(drops),
            "drops": drops,
            "all_within": all(r["within"] for r in found),
        }
        print(f"{name:22s} drop {summary[name]['drop']:.2f} (by seed {', '.join(f'{d:.2f}' for d in drops)})")
    for name, why in unreachable.items():
        print(f"{name}: {why}")
    write(
        f"bops_{net}" if budgets == BUDGETS else f"bops_{net}_{tightest}".replace(".", "_"),
        {"dense_test": dense, "summary": summary, "unreachable": unreachable, "rows": rows},
        seeds=arguments.seeds,
    )


if __name__ == "__main__":
    main()
