"""How well a candidate's score tells what it will be worth after fine-tuning: ResNet-20, half the MACs.

    python benchmarks/score_fidelity.py --policies 30

Random policies of channel shares are compressed and scored on the validation images by accuracy, kl and mse; each is
then fine-tuned for two epochs on labelled training images and measured on the test images. Kendall's tau and Pearson's
correlation say how much of the order survives. The same command goes on after the policies that the JSON holds. Needs
AUTOMC_DATA (see README.md).
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from results import FOLDER, write
from scipy.stats import kendalltau, pearsonr

from automc.budget import Budget
from automc.projection import Projector
from automc.recovery.finetune import finetune
from automc.recovery.optimize import Schedule
from automc.registry import SPACES
from automc.scoring.evaluator import Evaluator
from automc.setting import evaluator_of
from automc.space import SearchSpace
from automc.task import Batch
from automc.tasks import load_task
from automc.tasks.cifar10 import batches

SCORES = ("metric", "kl", "mse")
SHARDS = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")
SCHEDULE = Schedule(epochs=2, batch=128, rate=1e-3)


def main() -> None:
    """Prints and writes correlations, after every policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=30)
    arguments = parser.parse_args()
    task = load_task("cifar10-resnet20")
    train = [((images,), labels) for name in SHARDS for images, labels in batches(name)]
    evaluators = {name: evaluator_of(task, name) for name in SCORES}
    facts = evaluators["metric"].compressor.graph.facts
    space = SearchSpace(facts, SPACES.load("channels")(facts))
    projector, rng = Projector(space, Budget.parse("macs<=50%")), np.random.default_rng(0)
    path = FOLDER / "score_fidelity.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    policies = [space.decode(projector.project(space.sample(rng), fill=True)) for _ in range(arguments.policies)]
    for policy in policies[len(rows) :]:
        small = evaluators["metric"].compressor.compress(policy)
        row: dict[str, Any] = {name: each.measure(small)[0] for name, each in evaluators.items()}
        rows.append({**row, **tuned(evaluators["metric"], small, train)})
        print(rows[-1], flush=True)
        report(rows)


def tuned(evaluator: Evaluator, small: torch.nn.Module, train: list[Batch]) -> dict[str, float]:
    """Accuracy on the test images before and after the fine-tune, and its minutes."""
    before, start = evaluator.score(small, "test"), time.perf_counter()
    finetune(small.to(memory_format=torch.channels_last), train, SCHEDULE)  # type: ignore[call-overload]
    minutes = (time.perf_counter() - start) / 60
    return {"test": before, "tuned": evaluator.score(small, "test"), "minutes": minutes}


def report(rows: list[dict[str, Any]]) -> None:
    """Prints and writes how the scores go with accuracy after fine-tuning."""
    if len(rows) < 3:
        return
    column = {name: [row[name] for row in rows] for name in (*SCORES, "test", "tuned")}
    found = {
        name: {
            "kendall": float(kendalltau(column[name], column["tuned"]).statistic),
            "pearson": float(pearsonr(column[name], column["tuned"]).statistic),
        }
        for name in (*SCORES, "test")
    }
    print(found, flush=True)
    write("score_fidelity", {"policies": len(rows), "correlation": found, "rows": rows}, seeds=[0])


if __name__ == "__main__":
    main()
