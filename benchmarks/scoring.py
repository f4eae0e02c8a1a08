"""Candidates scored a second, against AMC's own procedure (`amc_procedure`), interleaved in one process.

    python benchmarks/scoring.py independent --candidates 10
    python benchmarks/scoring.py neighbours --candidates 20
    python benchmarks/scoring.py race --candidates 300
    python benchmarks/scoring.py eight_bits --candidates 20
    python benchmarks/scoring.py memory

ResNet-56, policies of channel shares at half the MACs, all of the same 5,000 validation images, on all processors.

independent: random policies, nothing shared. `sequential` is automc's default refit, `layerwise` fits each layer by
    itself towards its dense outputs, which is what AMC does. `plain` runs the very module that was scored in torch,
    unfolded, in batches of 256: its accuracy must agree. `bf16` runs it in torch's bfloat16, to say what less precision
    would bring; its rank correlation with fp32 is over all candidates.
neighbours: policies that differ from one in one to three layers, as a local search proposes them; passes begin where
    decisions part. `together`: the search knows them all before the first is scored, `one by one`: it does not, and the
    one they are neighbours of was scored before. Each kind of refit has an evaluator, and memory, of its own.
race: the five best of 200 random policies by `mse`, found by a tournament (guess, cheap refit, race in stages). Of
    `candidates` policies each is scored cheaply and in full once, and what every step took is recorded; 20 tournaments,
    each among 200 drawn from these, are then played from the records: their seconds are the recorded ones plus what the
    guesses take. Two more are played for real, to say whether that adds up.
eight_bits: rank correlation between `mse`, or accuracy, of candidates and of the same ones with weights and activations
    of eight bits.
memory: the process's peak while it scores neighbours, without AMC.

Needs AUTOMC_DATA (see README.md).
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from amc_procedure import AmcProcedure, evaluate
from results import write
from scipy.stats import kendalltau

from automc.budget import Budget
from automc.compression.compress import in_channels_last
from automc.evaluation import Evaluation
from automc.policy import LayerDecision, Policy, Recipe
from automc.scoring.evaluator import Costs, Evaluator, SampleScores
from automc.scoring.folding import folded
from automc.scoring.forward import Forward
from automc.scoring.stages import Stage
from automc.scoring.tournament import Tournament, cheaper
from automc.setting import prepare
from automc.tasks import load_task

RECIPES = {"sequential": Recipe(), "layerwise": Recipe(reconstruct="layerwise", batchnorm="keep")}
BEST = 5
ROUNDS = 3
AMC_POLICIES = 4
"""Of one round that are scored by AMC's procedure: it has nothing to share, so that a few tell what it takes."""
DRAWN, REPEATS = 200, 20
"""Policies of a tournament, and tournaments."""
STAGES, RISK = (512, 2048), 0.05
"""Of a tournament; chosen on policies of other seeds, where a risk of 0.03 gave 38.6 times and all top fives right."""
Row = dict[str, float]
T = TypeVar("T")


class Bench:
    """One task, one space, and both procedures."""

    def __init__(
        self,
        *,
        with_amc: bool = True,
        score: str = "metric",
        stages: tuple[int, ...] = (),
        recipes: Sequence[str] = tuple(RECIPES),
        seed: int = 0,
    ) -> None:
        task = load_task("cifar10-resnet56")
        self.setting = setting = prepare(task, Budget.parse("macs<=50%"), "channels", score=score, stages=stages)
        self.evaluator: Evaluator = setting.evaluator
        self.space, self.projector = setting.problem_parts
        self.rng = np.random.default_rng(seed)
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


def timed(run: Callable[[], T]) -> tuple[T, float]:
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
        low = in_channels_last(folded(small)).to(torch.bfloat16)
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


@dataclass(frozen=True, slots=True)
class Record:
    """A candidate that was scored."""

    scores: list[SampleScores]
    seconds: list[float]
    """Of compression, then of each stage."""


class Recorded(Evaluator):
    """Plays what another evaluator did."""

    def __init__(self, real: Evaluator) -> None:
        self.__dict__ |= real.__dict__
        self.real = real
        self.records: dict[Policy, Record] = {}
        self.seconds = 0.0
        """Of everything played."""

    def score_all(self, policy: Policy, stages: int) -> Record:
        """The record of a policy that is scored now, on some of the stages."""

        def judge(forward: Forward, costs: Costs) -> Evaluation:
            begun = time.perf_counter()
            found = [timed(lambda s=stage: self.real.stage_scores(forward, s)) for stage in self.stages[:stages]]  # type: ignore[misc]
            self.records[policy] = Record([scores for scores, _ in found], [begun - start, *(s for _, s in found)])
            return Evaluation(policy, "ok", 0.0, costs)

        start = time.perf_counter()
        self.real.attempt(policy, judge)
        return self.records[policy]

    def attempt(self, policy: Policy, judge: Callable[[Forward, Costs], Evaluation]) -> Evaluation:
        """What `judge` makes of the record."""
        record = self.records[policy]
        self.seconds += record.seconds[0]
        return judge(record, self.costs(policy))  # type: ignore[arg-type]

    def stage_scores(self, forward: Forward, stage: Stage) -> SampleScores:
        """Scores that were recorded."""
        assert isinstance(forward, Record)
        index = self.stages.index(stage)
        self.seconds += forward.seconds[index + 1]
        return forward.scores[index]


def race(count: int) -> None:
    """Tournaments of random policies, for real and from records, and AMC's procedure on some of them."""
    bench = Bench(score="mse", stages=STAGES, recipes=["sequential"], seed=2)
    assert bench.amc is not None
    pool = list({p.digest: p for p in (bench.random() for _ in range(count))}.values())
    bench.evaluator.compressor.compress(pool[0].with_recipe(cheaper(Recipe())))  # its dense statistics
    theirs: list[float] = []
    played: list[dict[str, Any]] = []
    for chosen in draws(len(pool), 2):
        theirs += [timed(lambda p=pool[i]: bench.amc.accuracy(p))[1] for i in chosen[:4]]  # type: ignore[misc, union-attr]
        played.append(tournament(bench, bench.evaluator, pool, chosen))
        print(theirs[-4:], played[-1], flush=True)
    recorded = Recorded(bench.evaluator)
    for done, policy in enumerate(pool):
        recorded.score_all(policy.with_recipe(cheaper(policy.recipe)), 1)
        recorded.score_all(policy, len(recorded.stages))
        if done % 100 == 0:
            theirs.append(timed(lambda p=policy: bench.amc.accuracy(p))[1])  # type: ignore[misc, union-attr]
            print(done, theirs[-1], flush=True)
    scores = np.array([float(recorded.joined([x.score for x in recorded.records[p].scores]).mean()) for p in pool])
    rows = []
    for chosen in draws(len(pool), REPEATS):
        rows.append(tournament(bench, recorded, pool, chosen))
    for row in (*rows, *played):
        row["same"] = sorted(row["best"]) == sorted(sorted(row.pop("of"), key=lambda i: -scores[i])[:BEST])
        print(row)
    each = statistics.median(theirs)
    figures = {
        "amc_seconds_each": each,
        "times_faster": spread([each * DRAWN / row["seconds"] for row in rows]),
        "times_faster_played_for_real": [each * DRAWN / row["seconds"] for row in played],
        "top_five_the_same": statistics.fmean(row["same"] for row in rows),
        "full_seconds_each": statistics.median(sum(recorded.records[p].seconds) for p in pool),
    }
    print(figures)
    write("scoring_race", {**figures, "pool": len(pool), "rows": rows, "for_real": played}, seeds=[2])


def draws(count: int, repeats: int) -> list[list[int]]:
    """Some of the policies, several times, by chance."""
    rng = np.random.default_rng(repeats)
    return [rng.permutation(count)[:DRAWN].tolist() for _ in range(repeats)]


def tournament(bench: Bench, evaluator: Evaluator, pool: list[Policy], chosen: list[int]) -> dict[str, Any]:
    """What it found among the chosen policies, and its seconds."""
    before = getattr(evaluator, "seconds", 0.0)
    judge = Tournament(evaluator, lambda: bench.setting.screen, BEST, RISK)
    found, seconds = timed(lambda: judge.run([pool[i] for i in chosen]))
    ranked = sorted((i for i, e in enumerate(found) if e.ok), key=lambda i: -(found[i].score or 0.0))
    return {
        "seconds": seconds + getattr(evaluator, "seconds", 0.0) - before,
        "best": [chosen[i] for i in ranked[:BEST]],
        "of": chosen,
        "ended": {how: sum(_ended(e) == how for e in found) for how in ("in full", "in a stage", "cheaply", "guessed")},
    }


def _ended(evaluation: Evaluation) -> str:
    """How far a policy got."""
    if evaluation.ok:
        return "in full"
    return "in a stage" if evaluation.stages else "cheaply" if evaluation.share else "guessed"


def eight_bits(count: int) -> None:
    """Whether weights and activations of eight bits, refitted alike, keep the order of random policies."""
    bench = Bench(with_amc=False, score="mse", recipes=["sequential"], seed=3)
    layers = [layer.name for layer in bench.setting.graph.facts.layers]
    eight = tuple((name, LayerDecision(weight_bits=8, activation_bits=8)) for name in layers)
    rows: list[Row] = []
    for _ in range(count):
        policy = bench.random()
        whole = bench.evaluator.evaluate(policy)
        rounded = bench.evaluator.evaluate(replace(policy, layers=eight).with_recipe(Recipe(rounding="nearest")))
        rows.append({"score": whole.score or 0.0, "score_8": rounded.score or 0.0})
        rows[-1] |= {"accuracy": whole.metric or 0.0, "accuracy_8": rounded.metric or 0.0}
        print(rows[-1], flush=True)
    pairs = {name: [[r[name] for r in rows], [r[f"{name}_8"] for r in rows]] for name in ("score", "accuracy")}
    kendall = {name: float(kendalltau(*pair).statistic) for name, pair in pairs.items()}
    report("scoring_eight_bits", {"kendall": kendall}, rows)


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
    """How many times as fast as AMC's procedure, over candidates."""
    return spread([r["amc_seconds"] / r[f"{name}_seconds"] for r in rows])


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def report(name: str, found: dict[str, Any], rows: list[Row]) -> None:
    """Prints and writes figures."""
    found["median"] = {key: statistics.median(r[key] for r in rows) for key in rows[0]}
    print(found)
    write(name, {**found, "rows": rows}, seeds=[0])


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {
        "independent": independent,
        "neighbours": neighbours,
        "race": race,
        "eight_bits": eight_bits,
        "memory": memory,
    }
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("--candidates", type=int, default=10)
    arguments = parser.parse_args()
    parts[arguments.part](arguments.candidates)


if __name__ == "__main__":
    main()
