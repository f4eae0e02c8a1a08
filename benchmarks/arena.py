"""All searchers on one task: same space, same budget, same number of evaluations, several seeds.

    python benchmarks/arena.py resnet20                   what is missing of every searcher, then figures
    python benchmarks/arena.py resnet20 --searchers joint tpe --seeds 5 --trials 400 --processes 2
    python benchmarks/arena.py digits --report            figures of what is recorded, nothing is run

Every search is a study of its own in runs/arena/, gone on with where it stopped. A policy that any search of the same
setting has scored is not scored again: it counts as an evaluation all the same, and for the time it took.
Rows of the results file whose studies are gone are kept where setting and number of evaluations are the same.

Prints and writes, per searcher, the median over seeds of the best feasible score and of the hypervolume after so many
evaluations, and draws both against evaluations and time (benchmarks/results/arena_NAME.html).
The hypervolume is that of score and limited cost, as a share of the box between the dense score and that of a useless
model, and between zero and 1.1 times the limit.
ResNets need AUTOMC_DATA (see README.md).
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import FOLDER, write
from scipy.stats import wilcoxon

from automc import loop
from automc.budget import Budget
from automc.evaluation import Evaluation
from automc.pareto import hypervolume, objectives
from automc.policy import Policy, Recipe
from automc.projection import within
from automc.registry import SEARCHERS
from automc.setting import Setting, prepare
from automc.study import Study
from automc.tasks import load_task

RUNS = Path("runs") / "arena"
AT = (1, 5, 10, 20, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300, 350, 400)
"""Numbers of evaluations that stand in the table."""
NAMES = tuple(SEARCHERS)
"""Searchers by default; those a space has nothing for are left out with their own words."""


@dataclass(frozen=True)
class Arena:
    """What is searched."""

    task: str
    space: str
    budget: str
    samples: int
    """Validation samples that score a candidate."""
    recipe: Recipe
    """How a candidate is fitted."""
    score: str = "mse"
    useless: float = 0.0
    """Score of a model that gives the mean of all outputs."""


CHEAP = Recipe(images=256, rows=4096)
BEYOND = 1.1
"""Where the hypervolume's box ends, in units of the limit: policies at the limit count, too."""


ARENAS = {
    "digits": Arena("digits", "channels-bops", "bops<=1.6%", samples=300, recipe=CHEAP),
    "resnet20": Arena("cifar10-resnet20", "channels-bops", "bops<=1.6%", samples=512, recipe=CHEAP),
    "resnet56": Arena("cifar10-resnet56", "criteria", "macs<=50%", samples=512, recipe=CHEAP),
}


def opened(arena: Arena) -> Setting:
    """The setting of a search, its validation data cut to the first samples."""
    task = load_task(arena.task)
    x = torch.cat([inputs[0] for inputs, _ in task.validation])[: arena.samples]
    y = torch.cat([targets for _, targets in task.validation])[: arena.samples]
    batches = [((inputs,), targets) for inputs, targets in zip(x.split(256), y.split(256), strict=True)]
    cut = replace(task, validation=batches)
    return prepare(cut, Budget.parse(arena.budget), arena.space, arena.recipe, score=arena.score)


def record(name: str, searcher: str, seed: int, setting: Setting) -> Study:
    """The study of one search."""
    limits = setting.problem_parts[1].limits
    meta = {
        "fingerprint": setting.graph.facts.fingerprint,
        "budget": ARENAS[name].budget,
        "limits": limits,
        "recipe": asdict(ARENAS[name].recipe),
        "score": ARENAS[name].score,
        "searcher": searcher,
    }
    RUNS.mkdir(parents=True, exist_ok=True)
    return Study.create(RUNS / f"{name}-{searcher}-{seed}.journal", "arena", meta, setting.problem.space.axes)


def recorded(name: str) -> Iterator[tuple[str, int, Study]]:
    """All searches of a setting there are records of: searcher, seed, study."""
    for path in sorted(RUNS.glob(f"{name}-*.journal")):
        searcher, _, seed = path.stem.removeprefix(f"{name}-").rpartition("-")
        yield searcher, int(seed), Study.open(path)


def run(job: tuple[str, str, int, int]) -> str:
    """One search, to its number of trials."""
    name, searcher, seed, trials = job
    torch.set_num_threads(1)
    setting = opened(ARENAS[name])
    study = record(name, searcher, seed, setting)
    if len(study.evaluations) >= trials:
        return f"{searcher} {seed}: there"
    known = {e.policy.digest: e for _, _, s in recorded(name) for e in s.evaluations if e.ok}

    def evaluate(policy: Policy) -> Evaluation:
        found = known.get(policy.digest)
        return replace(found, number=-1) if found is not None else setting.evaluator.evaluate(policy)

    start = time.perf_counter()
    try:
        proposer = SEARCHERS.load(searcher)(setting.problem, seed)
    except Exception as error:  # one searcher that cannot do this space is no reason to stop the others
        return f"{searcher} {seed}: {error}"
    loop.run(setting.problem, proposer, evaluate, study, trials=trials)
    took = time.perf_counter() - start
    return f"{searcher} {seed}: best {study.best.score:.5f}, {took:.0f} s"


def share_of_box(evaluations: Sequence[Evaluation], arena: Arena, dense: float, cost: str, limit: float) -> float:
    """Hypervolume of the feasible ones among some evaluations, as a share of the box."""
    feasible = [e for e in evaluations if e.ok]
    box = np.array([-arena.useless, BEYOND * limit])
    return hypervolume(objectives(feasible, [cost]), box) / ((dense - arena.useless) * box[1])


def curves(study: Study, arena: Arena, dense: float) -> dict[str, list[float]]:
    """After each evaluation: best feasible score, hypervolume as a share of the box, seconds of scoring so far."""
    found: dict[str, list[float]] = {"best": [], "hypervolume": [], "seconds": []}
    (cost, limit), *_ = study.meta["limits"].items()
    best, seconds = float("-inf"), 0.0
    for count, e in enumerate(study.evaluations, start=1):
        seconds += e.seconds
        if e.ok and e.score is not None:
            best = max(best, e.score)
        volume = share_of_box(study.evaluations[:count], arena, dense, cost, limit)
        for key, value in zip(found, (best, volume, seconds), strict=True):
            found[key].append(value)
    return found


def summary(runs: Sequence[dict[str, list[float]]], trials: int) -> dict[str, Any]:
    """Medians over seeds, and the seeds' spread at the end."""
    whole = [r for r in runs if len(r["best"]) >= trials]
    if not whole:
        return {"seeds": 0}
    at = [n for n in AT if n <= trials]
    medians = {
        key: [round(statistics.median(r[key][n - 1] for r in whole), 6) for n in at]
        for key in ("best", "hypervolume", "seconds")
    }
    return {
        "seeds": len(whole),
        "at": at,
        **medians,
        "final_best": [round(r["best"][trials - 1], 6) for r in whole],
        "final_hypervolume": [round(r["hypervolume"][trials - 1], 6) for r in whole],
    }


def reached(runs: Sequence[dict[str, list[float]]], key: str, goal: float) -> list[int | None]:
    """By seed, after how many evaluations a goal was reached; None where it was not."""
    return [next((n + 1 for n, value in enumerate(r[key]) if value >= goal), None) for r in runs]


def figures(table: dict[str, dict[str, Any]], joint: Sequence[dict[str, list[float]]], trials: int) -> dict[str, Any]:
    """What is asked of the joint search, against the others' rows of the table."""
    if "joint" not in table:
        return {}
    found: dict[str, Any] = {}
    whole = [r for r in joint if len(r["best"]) >= trials]
    for other, key in (("random", "best"), ("tpe", "hypervolume"), ("nsga2", "hypervolume")):
        if other in table and whole:
            goal = statistics.median(table[other][f"final_{key}"])
            needed = reached(whole, key, goal)
            median = statistics.median(n if n is not None else trials + 1 for n in needed)
            found[f"evaluations_to_{other}s_{key}"] = {"goal": goal, "by_seed": needed, "median": median}
    finals = {n: row["final_hypervolume"] for n, row in table.items()}
    singles = {n: v for n, v in finals.items() if n != "joint"}
    if singles:
        best = max(singles, key=lambda n: statistics.median(singles[n]))
        pairs = list(zip(finals["joint"], singles[best], strict=False))
        found["hypervolume_against_best_single"] = {
            "single": best,
            "ratio": statistics.median(finals["joint"]) / statistics.median(singles[best]),
            "wilcoxon_p": float(wilcoxon(*zip(*pairs, strict=True), alternative="greater").pvalue),
        }
    return found


def earlier(name: str, arena: Arena, trials: int) -> dict[str, dict[str, Any]]:
    """Rows of the results file that were found under the same setting with as many evaluations."""
    path = FOLDER / f"arena_{name}.json"
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())
    if results["arena"] != asdict(arena):
        return {}
    return {n: row for n, row in results["searchers"].items() if row["seeds"] and row["at"][-1] == trials}


def plot(name: str, table: dict[str, dict[str, Any]]) -> Path:
    """Both measures against evaluations and against seconds of scoring; medians over seeds."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = ("best score", "hypervolume", "best score by time", "hypervolume by time")
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.12)
    palette = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
    for index, (searcher, row) in enumerate(sorted(table.items())):
        style = {"color": "black" if searcher == "joint" else palette[index % len(palette)]}
        style |= {"width": 3 if searcher == "joint" else 1.5, "dash": ("solid", "dash", "dot")[index // len(palette)]}
        for column, key in enumerate(("best", "hypervolume"), start=1):
            for line, x in enumerate(("at", "seconds"), start=1):
                first = line == column == 1
                drawn = go.Scatter(
                    x=row[x], y=row[key], name=searcher, legendgroup=searcher, showlegend=first, line=style
                )
                figure.add_trace(drawn, line, column)
    figure.update_layout(title=f"{name}: medians over seeds", template="plotly_white", height=900)
    figure.update_xaxes(title="evaluations", row=1)
    figure.update_xaxes(title="seconds of scoring", row=2)
    path = FOLDER / f"arena_{name}.html"
    figure.write_html(path, include_plotlyjs="cdn")
    return path


def main() -> None:
    """Runs what is missing, then prints, draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arena", choices=ARENAS)
    parser.add_argument("--searchers", nargs="+", default=NAMES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    name, trials = arguments.arena, arguments.trials
    if not arguments.report:
        jobs = [(name, s, seed, trials) for seed in range(arguments.seeds) for s in arguments.searchers]
        with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
            for said in pool.imap_unordered(run, jobs):
                print(said, flush=True)
    report(name, trials, arguments.seeds)


def report(name: str, trials: int, seeds: int) -> None:
    """Figures of everything recorded."""
    arena = ARENAS[name]
    setting = opened(arena)
    limits = setting.problem_parts[1].limits
    all_runs: dict[str, list[dict[str, list[float]]]] = {}
    outside = 0
    for searcher, _, study in recorded(name):
        all_runs.setdefault(searcher, []).append(curves(study, arena, setting.evaluator.dense_score))
        outside += sum(not within(dict(e.costs), limits) for e in study.evaluations if e.scored)
    table = earlier(name, arena, trials)
    for searcher, runs in all_runs.items():
        row = summary(runs, trials)
        if row["seeds"] and row["seeds"] >= table.get(searcher, row)["seeds"]:
            table[searcher] = row
    for searcher, row in sorted(table.items(), key=lambda item: -statistics.median(item[1]["final_hypervolume"])):
        shown = [n for n in (10, 60, 150, trials) if n in row["at"]]
        best = " ".join(f"{row['best'][row['at'].index(n)]:9.5f}" for n in shown)
        volume = " ".join(f"{row['hypervolume'][row['at'].index(n)]:7.4f}" for n in shown)
        print(f"{searcher:18s} {row['seeds']} seeds | best after {shown}: {best} | hypervolume {volume}")
    found = figures(table, all_runs.get("joint", []), trials)
    for key, value in found.items():
        print(key, value)
    print(f"evaluations outside a limit: {outside}")
    plot(name, table)
    write(
        f"arena_{name}", {"arena": asdict(arena), "searchers": table, "outside": outside, **found}, seeds=range(seeds)
    )


if __name__ == "__main__":
    main()
