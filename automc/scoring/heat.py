"""One candidate's run against the incumbent it was given, wherever that is computed.

What a race decides beforehand (who runs against whom) and what it learns afterwards stay with `race`; a heat needs the
evaluator and its job alone, so that it may run in another process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from automc.compression.bounded import Bounded
from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.scoring.evaluator import Costs, Evaluator, SampleScores
from automc.scoring.forward import Forward
from automc.scoring.racing import Comparison, check_risk, compare

Scores = NDArray[np.float64]
REMEMBERED = 2**24
"""Bytes of incumbents' scores that a scorer computed itself and keeps."""


@dataclass(frozen=True, eq=False, slots=True)
class Rival:
    """An incumbent and its scores of all samples (N,); None where whoever runs the heat has to compute them."""

    evaluation: Evaluation
    scores: Scores | None


@dataclass(frozen=True, eq=False, slots=True)
class Job:
    """A policy to be scored, and whom it runs against."""

    policy: Policy
    costs: Costs
    rival: Rival | None = None
    predicted: float | None = None
    """What the surrogate said of its score."""

    def lost(self, reason: str, seconds: float = 0.0) -> "Outcome":
        """The outcome where no scorer came back with one."""
        return Outcome(
            Evaluation(
                self.policy, "failed", None, self.costs, seconds=seconds, reason=reason, predicted=self.predicted
            )
        )


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """What became of a job."""

    evaluation: Evaluation
    scores: Scores | None = None
    """Of all samples (N,), where the candidate survived a race."""
    rival_scores: Scores | None = None
    """The rival's, where they had to be computed."""
    rival_failed: bool = False
    """Whether the rival could not be scored again; the candidate ran alone then."""


class Scorer:
    """Runs heats; `risk` is how often a candidate that is no worse is stopped, over all stages of its heat."""

    def __init__(self, evaluator: Evaluator, risk: float = 0.01) -> None:
        check_risk(risk)
        self.evaluator, self.risk = evaluator, risk
        self._known: Bounded[Scores] = Bounded(REMEMBERED)
        """Of rivals, by the policy's digest."""

    def __call__(self, job: Job) -> Outcome:
        """Scores a policy as far as it pays; what goes wrong with the candidate is a failed evaluation."""
        if not self.evaluator.staged:
            return Outcome(self._named(self.evaluator.evaluate(job.policy), job))
        rival, computed, failed = self._rival(job.rival)
        survived: list[Scores] = []

        def judge(forward: Forward, costs: Costs) -> Evaluation:
            return self._run(job.policy, forward, costs, rival, survived)

        found = self._named(self.evaluator.attempt(job.policy, judge), job)
        return Outcome(found, survived[0] if survived and found.ok else None, computed, failed)

    def _named(self, evaluation: Evaluation, job: Job) -> Evaluation:
        return evaluation if job.predicted is None else replace(evaluation, predicted=job.predicted)

    def _rival(self, rival: Rival | None) -> tuple[Rival | None, Scores | None, bool]:
        """The rival with its scores, these if they were computed here, and whether that failed."""
        if rival is None or rival.scores is not None:
            return rival, None, False
        digest = rival.evaluation.policy.digest
        scores = self._known.get(digest)
        if scores is None:
            try:
                scores = self.evaluator.searched_scores(rival.evaluation.policy).numpy()
            except Exception:  # a search does not end because an earlier trial cannot be repeated here
                return None, None, True
            self._known.put(digest, scores, scores.nbytes)
        return Rival(rival.evaluation, scores), scores, False

    def _run(
        self, policy: Policy, forward: Forward, costs: Costs, rival: Rival | None, survived: list[Scores]
    ) -> Evaluation:
        found: list[SampleScores] = []
        passed: list[tuple[int, float]] = []
        for stage in self.evaluator.stages:
            found.append(self.evaluator.stage_scores(forward, stage))
            if rival is None or len(found) == len(self.evaluator.stages):
                continue
            assert rival.scores is not None  # `_rival` saw to it
            seen = np.concatenate([scores.score.numpy() for scores in found])
            beside = np.concatenate([rival.scores[s.rows.numpy()] for s in self.evaluator.stages[: len(found)]])
            risk = self.risk / (len(self.evaluator.stages) - 1)
            looked = compare(seen - beside, len(rival.scores), risk)
            mean = float(rival.scores.mean())
            passed.append((looked.seen, estimated(seen, beside, mean)))
            if looked.lost:
                return self._stopped(policy, costs, found, passed, rival.evaluation, mean, looked)
        scores, metrics = (self.evaluator.joined(x) for x in zip(*found, strict=True))
        survived.append(scores.numpy())
        score = float(scores.mean())
        done = ((len(scores), score),) if rival is not None else ()
        return Evaluation(policy, "ok", score, costs, metric=float(metrics.mean()), stages=(*passed, *done))

    def _stopped(
        self,
        policy: Policy,
        costs: Costs,
        found: Sequence[SampleScores],
        passed: Sequence[tuple[int, float]],
        rival: Evaluation,
        bound: float,
        looked: Comparison,
    ) -> Evaluation:
        metric = float(np.concatenate([f.metric.numpy() for f in found]).mean())
        reason = (
            f"Stopped after {looked.seen} of {looked.population} samples: its score there is {-looked.mean:.4g} below "
            f"trial {rival.number}'s, which costs no more."
        )
        share = looked.seen / looked.population
        score = min(passed[-1][1], bound)
        return Evaluation(
            policy, "pruned", score, costs, share=share, reason=reason, metric=metric, stages=tuple(passed)
        )


def estimated(seen: Scores, beside: Scores, mean: float) -> float:
    """The mean over all samples of scores (n,) of some, beside another's there, whose mean over all is known."""
    around = beside - beside.mean()
    spread = float(around @ around)
    slope = float(np.clip((seen - seen.mean()) @ around / spread, 0.0, 1.0)) if spread > 0 else 0.0
    return float(seen.mean()) + slope * (mean - float(beside.mean()))
