"""The best few of many policies, found without scoring most of them.

Three ways to know a policy's score, each dearer and surer than the one before: the additive model's guess (`screen`), a
refit on a quarter of the calibration data scored on the first stage of the validation samples, and the policy's own
recipe raced in stages (`race`). Each level is asked best first, and only while what the level before says leaves a
policy a chance to be among the best. The guess learns from the second level; what the second says of the third is
learnt from the policies scored by both (`Bridge`), and with it guesses are looked at once more.

This is successive elimination over fidelities (Karnin et al. 2013, with the confidence bounds of Maron and Moore 1994),
where the cheap fidelity is biased; its bias and scatter are estimated on the policies that were scored by both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri, stdtrit

from automc.errors import TaskError
from automc.evaluation import Evaluation
from automc.policy import Policy, Recipe
from automc.scoring.evaluator import Costs, Evaluator
from automc.scoring.forward import Forward
from automc.scoring.incumbents import check_keep
from automc.scoring.race import Race
from automc.scoring.racing import check_risk
from automc.scoring.screen import ENOUGH, Guess, Screen
from automc.space import FloatArray

SHARE = 4
"""How many times less calibration data the cheap refit sees."""
LEAST_IMAGES = 256
PAIRS = 3
"""Policies beyond the best that are raced in any case, to learn how far cheap scores can be trusted."""
SLOPE = 0.25
"""Prior deviation of a bridge's slope from one: a cheap refit tells good policies and bad ones apart a little more."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """What cheap scores say of full ones: a line through pairs of them, its slope near one."""

    cheap: float
    """Mean of the pairs."""
    full: float
    slope: float
    weight: float
    """Of the pairs and the prior together, for the slope."""
    deviation: float
    """Of full scores around the line."""
    count: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Bridge":
        """Through three pairs (cheap, full) or more."""
        cheap, full = np.array(pairs, dtype=np.float64).T
        x, y = cheap - cheap.mean(), full - full.mean()
        weight = max(float(np.var(y - x, ddof=1)), 1e-18) / SLOPE**2
        slope = float(x @ y + weight) / float(x @ x + weight)
        deviation = float(np.sqrt(((y - slope * x) ** 2).sum() / (len(x) - 2)))
        return cls(float(cheap.mean()), float(full.mean()), slope, float(x @ x + weight), deviation, len(x))

    def upper(self, cheap: FloatArray, risk: float, deviation: FloatArray | float = 0.0) -> FloatArray:
        """What a full score exceeds with so much risk, given cheap ones or guesses of them with their deviation."""
        off = cheap - self.cheap
        own = self.deviation**2 * (1.0 + 1.0 / self.count + off**2 / self.weight)
        quantile = -float(stdtrit(self.count - 2, risk))
        return np.asarray(self.full + self.slope * off + quantile * np.sqrt(own + (self.slope * deviation) ** 2))


class Tournament:
    """Ranks policies by an evaluator's score, costs aside; the best `keep` are scored in full.

    risk: how often each level, a guess, a cheap score and the race, loses one of them, for each policy. A policy whose
    scoring fails is told as failed.
    """

    def __init__(
        self, evaluator: Evaluator, screen: Callable[[], Screen], keep: int = 5, risk: float = 0.01, seed: int = 0
    ) -> None:
        check_risk(risk)
        self.evaluator, self.screen, self.keep, self.risk, self.seed = evaluator, screen, check_keep(keep), risk, seed

    def run(self, policies: Sequence[Policy]) -> list[Evaluation]:
        """An evaluation of each policy: state ok where it was scored in full, pruned where it has no chance."""
        if len({policy.digest for policy in policies}) < len(policies):
            raise TaskError("A tournament needs policies that differ; two of these are the same: leave one out.")
        return _Run(self, policies, self.screen()).evaluations()


class _Run:
    """One tournament, by the policies' numbers."""

    def __init__(self, rules: Tournament, policies: Sequence[Policy], screen: Screen) -> None:
        self.policies, self.evaluator, self.screen = policies, rules.evaluator, screen
        self.keep, self.risk = rules.keep, rules.risk
        self.race = Race(self.evaluator, (), self.keep, self.risk)
        self.waiting = np.random.default_rng(rules.seed).permutation(len(policies)).tolist()
        """Neither scored cheaply nor in full."""
        self.cheap: dict[int, Evaluation] = {}
        self.full: dict[int, Evaluation] = {}

    def evaluations(self) -> list[Evaluation]:
        """What the tournament says of each policy."""
        for index in self.waiting[:ENOUGH]:
            self._take(index)
        before = -1
        while before < len(self.cheap):
            before = len(self.cheap)
            self._guess()
            self._play()
        guesses = (self._guesses() if self.waiting else None) or []
        told = {i: self._told(self.policies[i], g.mean, 0.0) for i, g in zip(self.waiting, guesses, strict=True)}
        return [self.full.get(i) or self.cheap.get(i) or told[i] for i in range(len(self.policies))]

    def _guess(self) -> None:
        """Scores cheaply what may be among the best by its guess."""
        while self.waiting:
            guesses = self._guesses()
            if guesses is None:  # too many have failed to tell anything yet
                self._take(self.waiting[0])
                continue
            mean, deviation = np.array([(guess.mean, guess.deviation) for guess in guesses]).T
            bridge = self._bridge()
            if bridge is None:
                upper, bar = mean - ndtri(self.risk) * deviation, self._bar(self.cheap)
            else:
                upper, bar = bridge.upper(mean, self.risk, deviation), self._bar(self.full)
            if upper.max() < bar:
                return
            self._take(self.waiting[int(upper.argmax())])

    def _play(self) -> None:
        """Races those that may be among the best by their cheap scores, the best first."""
        ranked = sorted((i for i, e in self.cheap.items() if e.score is not None), key=self._cheap_score, reverse=True)
        for index in (i for i in ranked if i not in self.full):
            bridge = self._bridge()
            if bridge is not None:
                upper = float(bridge.upper(np.array(self._cheap_score(index)), self.risk))
                if upper < self._bar(self.full):
                    return
            found = replace(self.race.evaluate(self.policies[index]), number=index)
            self.full[index] = found
            self.race.learn(found)

    def _take(self, index: int) -> None:
        self.waiting.remove(index)
        self.cheap[index] = self._cheaply(self.policies[index])
        self.screen.learn(self.cheap[index])

    def _guesses(self) -> list[Guess] | None:
        return self.screen.guesses([self.policies[i] for i in self.waiting])

    def _bridge(self) -> Bridge | None:
        """Once enough are scored both ways; a score by which the race stopped someone is good enough for this."""
        pairs = [(self._cheap_score(i), e.score) for i, e in self.full.items() if e.score is not None]
        return Bridge.of(pairs) if len(pairs) >= self.keep + PAIRS else None

    def _bar(self, found: Mapping[int, Evaluation]) -> float:
        """The score of the last of the best so far."""
        scores = sorted((e.score for e in found.values() if e.score is not None), reverse=True)
        return scores[self.keep - 1] if len(scores) >= self.keep else -np.inf

    def _cheap_score(self, index: int) -> float:
        score = self.cheap[index].score
        assert score is not None  # it would not be among the ranked ones
        return score

    def _cheaply(self, policy: Policy) -> Evaluation:
        """By a refit on less data, on the first stage."""

        def judge(forward: Forward, costs: Costs) -> Evaluation:
            scores = self.evaluator.stage_scores(forward, self.evaluator.stages[0])
            return self._told(policy, float(scores.score.mean()), len(scores.score) / self._samples)

        return replace(self.evaluator.attempt(policy.with_recipe(cheaper(policy.recipe)), judge), policy=policy)

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
