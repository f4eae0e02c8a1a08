"""The best few of many policies, found without scoring most of them.

Three ways to know a policy's score, each dearer and surer than the one before: the additive model's guess (`screen`), a
refit on a quarter of the calibration data scored on the first stage of the validation samples, and the policy's own
recipe raced in stages (`race`). Each level is asked best first, and only while what the level before says leaves a
policy a chance to be among the best. The guess learns from the second level, the second from the third: a constant
between the two, and how far they scatter around it.

This is successive elimination over fidelities (Karnin et al. 2013, with the confidence bounds of Maron and Moore 1994),
where the cheap fidelity is biased; its bias and scatter are estimated on the policies that were scored by both.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from automc.errors import TaskError
from automc.evaluation import Evaluation
from automc.policy import Policy, Recipe
from automc.scoring.evaluator import Costs, Evaluator
from automc.scoring.forward import Forward
from automc.scoring.incumbents import check_keep
from automc.scoring.race import Race
from automc.scoring.racing import check_risk
from automc.scoring.screen import ENOUGH, Screen

SHARE = 4
"""How many times less calibration data the cheap refit sees."""
LEAST_IMAGES = 256
REACH = 3.0
"""Deviations by which a guess may be too low."""
PAIRS = 4
"""Policies beyond the best that are scored in any case, to learn how far cheap scores can be trusted."""


class Tournament:
    """Ranks policies by an evaluator's score, costs aside; the best `keep` are scored in full.

    risk: how often a cheap score, and then the race, loses one of them, for each policy; a guess may be wrong by
    `REACH` deviations. A policy whose scoring fails is told as failed.
    """

    def __init__(
        self, evaluator: Evaluator, screen: Callable[[], Screen], keep: int = 5, risk: float = 0.01, seed: int = 0
    ) -> None:
        self.evaluator, self._screen, self._keep, self._seed = evaluator, screen, check_keep(keep), seed
        check_risk(risk)
        self._risk = risk

    def run(self, policies: Sequence[Policy]) -> list[Evaluation]:
        """An evaluation of each policy: state ok where it was scored in full, pruned where it has no chance."""
        if len({policy.digest for policy in policies}) < len(policies):
            raise TaskError("A tournament needs policies that differ; two of these are the same: leave one out.")
        cheap, guessed = self._cheaply(policies)
        done = self._fully(policies, cheap)
        return [done.get(i) or cheap.get(i) or guessed[i] for i in range(len(policies))]

    def _cheaply(self, policies: Sequence[Policy]) -> tuple[dict[int, Evaluation], dict[int, Evaluation]]:
        """Cheap evaluations of those that may be among the best, and guesses for the others."""
        screen, found = self._screen(), dict[int, Evaluation]()
        waiting = np.random.default_rng(self._seed).permutation(len(policies)).tolist()

        def take(index: int) -> None:
            waiting.remove(index)
            found[index] = self._cheap(policies[index])
            screen.learn(found[index])

        guessed: dict[int, Evaluation] = {}
        for index in waiting[: ENOUGH + self._keep]:
            take(index)
        while waiting:
            guesses = screen.guesses([policies[i] for i in waiting])
            if guesses is None:  # too many have failed to tell anything yet
                take(waiting[0])
                continue
            upper = np.array([guess.mean + REACH * guess.deviation for guess in guesses])
            bar = _nth_best([e.score for e in found.values() if e.score is not None], self._keep)
            if upper.max() < bar:
                guessed = {i: self._told(policies[i], g.mean, 0.0) for i, g in zip(waiting, guesses, strict=True)}
                break
            take(waiting[int(upper.argmax())])
        return found, guessed

    def _cheap(self, policy: Policy) -> Evaluation:
        """By a refit on less data, on the first stage."""

        def judge(forward: Forward, costs: Costs) -> Evaluation:
            scores = self.evaluator.stage_scores(forward, self.evaluator.stages[0])
            return self._told(policy, float(scores.score.mean()), len(scores.score) / self._samples)

        return replace(self.evaluator.attempt(policy.with_recipe(cheaper(policy.recipe)), judge), policy=policy)

    def _fully(self, policies: Sequence[Policy], cheap: dict[int, Evaluation]) -> dict[int, Evaluation]:
        """Evaluations by the policies' own recipes, best cheap scores first, while there is a chance."""
        race = Race(self.evaluator, (), self._keep, self._risk)
        ranked = sorted((i for i, e in cheap.items() if e.score is not None), key=lambda i: -(cheap[i].score or 0.0))
        done: dict[int, Evaluation] = {}
        for index in ranked:
            pairs = [(e.score or 0.0, cheap[i].score or 0.0) for i, e in done.items() if e.ok]
            shifts = np.array([full - low for full, low in pairs])
            if len(shifts) >= self._keep + PAIRS:
                bar = _nth_best([full for full, _ in pairs], self._keep)
                reach = -float(stdtrit(len(shifts) - 1, self._risk)) * float(shifts.std(ddof=1))
                if (cheap[index].score or 0.0) + float(shifts.mean()) + reach < bar:
                    break
            done[index] = replace(race.evaluate(policies[index]), number=index)
            race.learn(done[index])
        return done

    def _told(self, policy: Policy, score: float, share: float) -> Evaluation:
        costs = self.evaluator.costs(policy)
        how = f"on {100 * share:.3g}% of the samples after a cheap refit" if share else "by the other policies' scores"
        return Evaluation(policy, "pruned", score, costs, share=share, reason=f"Estimated {how}: it has no chance.")

    @property
    def _samples(self) -> int:
        return sum(len(stage.rows) for stage in self.evaluator.stages)


def cheaper(recipe: Recipe) -> Recipe:
    """A recipe whose refit takes a quarter of the time, about."""
    return replace(
        recipe, images=min(recipe.images, max(LEAST_IMAGES, recipe.images // SHARE)), rows=max(1, recipe.rows // SHARE)
    )


def _nth_best(scores: Sequence[float], n: int) -> float:
    return sorted(scores, reverse=True)[n - 1] if len(scores) >= n else -np.inf
