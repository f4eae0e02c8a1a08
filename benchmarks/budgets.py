"""One agent that is shown its budget against five agents, each trained at one budget with a fifth of the evaluations.

    python benchmarks/budgets.py digits
    python benchmarks/budgets.py resnet20 --trials 250 --seeds 5

Both sides use the same agent (DDPG), task, space and scores as `arena.py`. The five budgets lie evenly between the
smallest reachable cost and the limit. Compared is the hypervolume of everything a side has evaluated, score against
cost, as a share of the same box as in `arena.py`. Searches are studies in runs/budgets/ and are gone on with.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import arena
import numpy as np
import torch
from results import write
from scipy.stats import wilcoxon

from automc import loop
from automc.evaluation import Evaluation
from automc.registry import SEARCHERS
from automc.searcher import Problem
from automc.setting import Setting
from automc.study import Study

RUNS = Path("runs") / "budgets"
AGENTS = 5


def searched(setting: Setting, problem: Problem, searcher: str, name: str, trials: int, seed: int) -> list[Evaluation]:
    """All evaluations of one search under the problem's budget."""
    RUNS.mkdir(parents=True, exist_ok=True)
    meta = {
        "fingerprint": setting.graph.facts.fingerprint,
        "budget": str(problem.projector.limits),
        "limits": problem.projector.limits,
        "recipe": None,
        "searcher": searcher,
    }
    study = Study.create(RUNS / f"{name}-{seed}.journal", name, meta, problem.space.axes)
    proposer = SEARCHERS.load(searcher)(problem, seed)
    loop.run(problem, proposer, setting.evaluator.evaluate, study, trials=trials)
    return list(study.evaluations[:trials])


def main() -> None:
    """Runs what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arena", choices=arena.ARENAS)
    parser.add_argument("--trials", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    of = arena.ARENAS[arguments.arena]
    setting = arena.opened(of)
    problem = setting.problem
    (metric, limit), *_ = problem.projector.limits.items()
    least = problem.projector.costing.of(problem.space.smallest)[metric]
    bounds = np.linspace(least, limit, AGENTS + 1)[1:]
    rows: dict[str, list[float]] = {"one agent": [], "five agents": []}
    for seed in range(arguments.seeds):
        one = searched(setting, problem, "amc-budgets", f"{arguments.arena}-one", arguments.trials, seed)
        five = []
        for turn, bound in enumerate(bounds.tolist()):
            tighter = replace(problem, projector=problem.projector.limited(metric, bound))
            name = f"{arguments.arena}-five{turn}"
            five += searched(setting, tighter, "ddpg", name, arguments.trials // AGENTS, AGENTS * seed + turn)
        for side, evaluations in (("one agent", one), ("five agents", five)):
            rows[side].append(arena.share_of_box(evaluations, of, problem.dense_score, metric, limit))
        print(f"seed {seed}: " + ", ".join(f"{side} {found[-1]:.4f}" for side, found in rows.items()), flush=True)
    ratios = [a / b for a, b in zip(*rows.values(), strict=True)]
    p = float(wilcoxon(*rows.values(), alternative="greater").pvalue)
    print(f"median ratio {statistics.median(ratios):.3f}, one-sided Wilcoxon p {p:.3f}")
    figures = {"hypervolume": rows, "ratios": ratios, "wilcoxon_p": p, "trials": arguments.trials}
    write(f"budgets_{arguments.arena}", figures, seeds=range(arguments.seeds))


if __name__ == "__main__":
    main()
