"""Scores candidates in stages and stops those that clearly lose to what the study holds already.

`racing` is the test, `stages` the samples, `incumbents` whom a candidate runs against. A candidate that survives every
stage has the score `Evaluator.evaluate` gives, to the last bit. The score of one that is stopped is an estimate, by
regression on the incumbent's scores, whose mean over all samples is known (Cochran 1977, Sampling Techniques, section
7.1): the mean seen, moved by as much as the incumbent's samples were off, in the proportion in which both go up and
down together. Where they stumble over the same samples it varies less than the mean seen, where they do not, no more.
It is no higher than the incumbent's score, at no lower cost: to a searcher as well, a stopped candidate is dominated.
Taken where a candidate looked bad enough to be stopped, estimates are on average a little low.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.scoring.evaluator import Costs, Evaluator, SampleScores
from automc.scoring.forward import Forward
from automc.scoring.incumbents import MOST, Incumbents
from automc.scoring.racing import Comparison, check_risk, compare
from automc.scoring.screen import Guess, Screen

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Rival:
    """An incumbent and its scores of all samples (N,)."""

    evaluation: Evaluation
    scores: Scores


class Race:
    """Evaluates for a loop that tells it every recorded evaluation.

    The search's `limited` costs say who may stop whom (`slack`: see `incumbents`), `keep` how many of the best are safe
    from being stopped, `risk` how often a candidate that is no worse is stopped nevertheless (each by right and wrong,
    on average by other scores: see `racing`): over all stages, and once more by the `screen`, which stops it before it
    is compressed, on what is predicted of its score. Without stages, or where a task's own `evaluate` gives no scores
    by sample, every candidate that is compressed is scored in full.

    What it does depends on the recorded evaluations alone. Scores by sample are held in memory, at most `MOST` times
    the number of samples; after a resume they are computed again, once each, when first needed.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        limited: Sequence[str],
        keep: int = 1,
        risk: float = 0.01,
        screen: Screen | None = None,
        slack: Mapping[str, float] | None = None,
    ) -> None:
        self.evaluator, self.screen = evaluator, screen
        self.incumbents = Incumbents(limited, keep, slack=slack)
        check_risk(risk)
        self._limited = tuple(limited)
        self._risk = risk
        self._scores: dict[str, Scores] = {}
        """Of incumbents, by the policy's digest."""
        self._new: dict[str, Scores] = {}
        """Of candidates not yet recorded."""

    def evaluate(self, policy: Policy) -> Evaluation:
        """Scores a policy as far as it pays; what goes wrong with the candidate is a failed evaluation."""
        guess = None if self.screen is None else self.screen.guess(policy)
        if guess is None:
            return self._scored(policy)
        beaten = self._screened(policy, guess)
        return replace(self._scored(policy), predicted=guess.mean) if beaten is None else beaten

    def _scored(self, policy: Policy) -> Evaluation:
        if not self.evaluator.staged:
            return self.evaluator.evaluate(policy)
        rival = self._rival(dict(self.evaluator.costs(policy)))
        return self.evaluator.attempt(policy, lambda forward, costs: self._run(policy, forward, costs, rival))

    def _screened(self, policy: Policy, guess: Guess) -> Evaluation | None:
        """The record of a policy that will not beat its rival, if the guess says so."""
        costs = self.evaluator.costs(policy)
        rival = self.incumbents.rival(dict(costs))
        upper = guess.mean - float(ndtri(self._risk)) * guess.deviation
        if rival is None or rival.score is None or upper >= rival.score:
            return None
        reason = (
            f"Not scored: predicted {guess.mean:.4g}, {upper:.4g} at most, where trial {rival.number}, which costs no "
            f"more, has {rival.score:.4g}."
        )
        return Evaluation(policy, "pruned", guess.mean, costs, share=0.0, reason=reason, predicted=guess.mean)

    def learn(self, evaluation: Evaluation) -> None:
        """Takes note of a recorded evaluation, in the order recorded, earlier searches' ones first."""
        found = self._new.pop(evaluation.policy.digest, None)
        if self.screen is not None:
            self.screen.learn(evaluation)
        self.incumbents.add(evaluation)
        if found is not None:
            self._scores[evaluation.policy.digest] = found
        held = {e.policy.digest for e in self.incumbents.held}
        self._scores = {digest: scores for digest, scores in self._scores.items() if digest in held}

    def _run(self, policy: Policy, forward: Forward, costs: Costs, rival: _Rival | None) -> Evaluation:
        found: list[SampleScores] = []
        passed: list[tuple[int, float]] = []
        for stage in self.evaluator.stages:
            found.append(self.evaluator.stage_scores(forward, stage))
            if rival is None or len(found) == len(self.evaluator.stages):
                continue
            seen = np.concatenate([scores.score.numpy() for scores in found])
            beside = np.concatenate([rival.scores[s.rows.numpy()] for s in self.evaluator.stages[: len(found)]])
            risk = self._risk / (len(self.evaluator.stages) - 1)
            looked = compare(seen - beside, len(rival.scores), risk)
            passed.append((looked.seen, estimated(seen, beside, float(rival.scores.mean()))))
            if looked.lost:
                return self._stopped(policy, costs, found, passed, rival, looked)
        scores, metrics = (self.evaluator.joined(x) for x in zip(*found, strict=True))
        self._remember(policy, scores.numpy())
        score = float(scores.mean())
        done = ((len(scores), score),) if rival is not None else ()
        return Evaluation(policy, "ok", score, costs, metric=float(metrics.mean()), stages=(*passed, *done))

    def _stopped(
        self,
        policy: Policy,
        costs: Costs,
        found: Sequence[SampleScores],
        passed: Sequence[tuple[int, float]],
        rival: _Rival,
        looked: Comparison,
    ) -> Evaluation:
        metric = float(np.concatenate([f.metric.numpy() for f in found]).mean())
        reason = (
            f"Stopped after {looked.seen} of {looked.population} samples: its score there is {-looked.mean:.4g} below "
            f"trial {rival.evaluation.number}'s, which costs no more."
        )
        share = looked.seen / looked.population
        score = min(passed[-1][1], float(rival.scores.mean()))
        return Evaluation(
            policy, "pruned", score, costs, share=share, reason=reason, metric=metric, stages=tuple(passed)
        )

    def _remember(self, policy: Policy, scores: Scores) -> None:
        """Keeps a candidate's scores until it is recorded; of candidates that never are, the oldest go."""
        self._new[policy.digest] = scores
        for digest in list(self._new)[:-MOST]:
            del self._new[digest]

    def _rival(self, costs: dict[str, float]) -> _Rival | None:
        """The incumbent to beat, its scores computed where they are not known."""
        chosen = self.incumbents.rival(costs)
        if chosen is None:
            return None
        digest = chosen.policy.digest
        if digest not in self._scores:
            try:
                self._scores[digest] = self.evaluator.searched_scores(chosen.policy).numpy()
            except Exception:  # a search does not end because an earlier trial cannot be repeated here
                self.incumbents.discard(chosen)
                return None
        return _Rival(chosen, self._scores[digest])


def estimated(seen: Scores, beside: Scores, mean: float) -> float:
    """The mean over all samples of scores (n,) of some, beside another's there, whose mean over all is known."""
    around = beside - beside.mean()
    spread = float(around @ around)
    slope = float(np.clip((seen - seen.mean()) @ around / spread, 0.0, 1.0)) if spread > 0 else 0.0
    return float(seen.mean()) + slope * (mean - float(beside.mean()))
