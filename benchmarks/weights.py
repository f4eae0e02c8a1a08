"""ResNet-56 on CIFAR-10, single weights pruned and rounded without fine-tuning.

    python benchmarks/weights.py sparsity    50-90 % zeros in every layer: criteria and reconstruction side by side
    python benchmarks/weights.py patterns    2:4, 1:4, 4:8 and blocks, by magnitude, Wanda and OBC
    python benchmarks/weights.py bits        weights at 8, 4, 3 and 2 bits, GPTQ against nearest; 50 % zeros and 4 bits

Every layer gets the same decision (the 3-channel first one stays dense under N:M and 1xC). Accuracies are those of the
test split; nothing is chosen on it. Needs AUTOMC_DATA (see README.md).
"""

import argparse
import time
from typing import Any

from results import write

from automc.pattern import parse
from automc.policy import LayerDecision, Policy, Recipe
from automc.scoring.evaluator import Evaluator
from automc.setting import evaluator_of
from automc.tasks import load_task

CRITERIA = ("l1", "activation", "obd", "sparsegpt", "obs")
Row = dict[str, Any]


def score(evaluator: Evaluator, decision: LayerDecision, recipe: Recipe) -> Row:
    """Test accuracy of the same decision at every layer, and how long compressing took."""
    facts = evaluator.compressor.graph.facts
    pattern = parse(decision.pattern)
    fitting = [x.name for x in facts.layers if pattern.fits(x.out_channels // x.groups, x.in_channels // x.groups)]
    policy = Policy(facts.fingerprint, (), tuple((name, decision) for name in fitting), recipe)
    start = time.perf_counter()
    small = evaluator.compressor.compress(policy)
    row = {
        "criterion": decision.criterion,
        "pattern": decision.pattern,
        "sparsity": decision.sparsity,
        "bits": decision.weight_bits,
        "reconstruct": recipe.reconstruct,
        "rounding": recipe.rounding,
        "test": 100 * evaluator.score(small, "test"),
        "seconds": time.perf_counter() - start,
    }
    print(row, flush=True)
    return row


def sparsity(evaluator: Evaluator) -> list[Row]:
    """Unstructured: criteria x levels, refitted in sequence; magnitude and Wanda also as published, without refit."""
    rows = []
    for level in (0.5, 0.7, 0.8, 0.9):
        for criterion in CRITERIA:
            for reconstruct in ("none", "layerwise", "sequential"):
                recipe = Recipe(reconstruct=reconstruct)  # type: ignore[arg-type]
                rows.append(score(evaluator, LayerDecision(sparsity=level, criterion=criterion), recipe))
    return rows


def patterns(evaluator: Evaluator) -> list[Row]:
    """N:M at their own sparsity, blocks at a half and 70 %."""
    cases = [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75)]
    cases += [(name, level) for name in ("1x4", "4x1", "1x8", "8x1", "1x16", "16x1") for level in (0.5, 0.7)]
    return [
        score(evaluator, LayerDecision(sparsity=level, pattern=name, criterion=criterion), Recipe())
        for name, level in cases
        for criterion in ("l1", "activation", "obs")
    ]


def bits(evaluator: Evaluator) -> list[Row]:
    """Rounding alone, each layer by itself and in sequence, then after pruning half of the weights by OBC."""
    rows = []
    for width in (8, 4, 3, 2):
        for reconstruct in ("none", "sequential"):
            for rounding in ("nearest", "gptq"):
                recipe = Recipe(reconstruct=reconstruct, rounding=rounding)  # type: ignore[arg-type]
                rows.append(score(evaluator, LayerDecision(weight_bits=width), recipe))
    for width in (4, 3):
        decision = LayerDecision(weight_bits=width, sparsity=0.5, criterion="obs")
        rows += [score(evaluator, decision, Recipe(rounding=rounding)) for rounding in ("nearest", "gptq")]  # type: ignore[arg-type]
    return rows


def main() -> None:
    """Prints the rows of one part and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"sparsity": sparsity, "patterns": patterns, "bits": bits}
    parser.add_argument("part", choices=list(parts))
    arguments = parser.parse_args()
    task = load_task("cifar10-resnet56")
    evaluator = evaluator_of(task)
    dense = 100 * evaluator.score(task.model, "test")
    print(f"dense {dense:.2f} %")
    rows = parts[arguments.part](evaluator)
    for row in rows:
        row["drop"] = dense - row["test"]
    write(f"resnet56_weights_{arguments.part}", {"dense_test": dense, "rows": rows}, seeds=[Recipe().seed])


if __name__ == "__main__":
    main()
