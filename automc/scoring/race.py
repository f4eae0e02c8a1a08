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

from scipy.special import ndtri

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.scoring.evaluator import Costs, Evaluator
from automc.scoring.heat import Job, Outcome, Rival, Scorer, Scores
from automc.scoring.incumbents import MOST, Incumbents
from automc.scoring.screen import Guess, Screen


class Race:
    """Says what is scored, and against whom, for a loop that tells it every recorded evaluation.

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
        self.scorer = Scorer(evaluator, risk)
        self._scores: dict[str, Scores] = {}
        """Of incumbents, by the policy's digest."""
        self._new: dict[str, Scores] = {}
        """Of candidates not yet recorded."""

    def evaluate(self, policy: Policy) -> Evaluation:
        """Scores a policy here, as far as it pays; what goes wrong with the candidate is a failed evaluation."""
        job = self.job(policy)
        return job if isinstance(job, Evaluation) else self.take(job, self.scorer(job))

    def job(self, policy: Policy) -> Job | Evaluation:
        """What is to be computed of a policy, by what is recorded now; an evaluation where nothing is."""
        costs = self.evaluator.costs(policy)
        guess = None if self.screen is None else self.screen.guess(policy)
        beaten = None if guess is None else self._screened(policy, costs, guess)
        if beaten is not None:
            return beaten
        rival = self._rival(dict(costs)) if self.evaluator.staged else None
        return Job(policy, costs, rival, None if guess is None else guess.mean)

    def take(self, job: Job, outcome: Outcome) -> Evaluation:
        """Keeps what a job brought besides its evaluation."""
        if outcome.scores is not None:
            self._remember(job.policy, outcome.scores)
        if job.rival is not None and outcome.rival_scores is not None:
            self._scores[job.rival.evaluation.policy.digest] = outcome.rival_scores
        if job.rival is not None and outcome.rival_failed:
            self.incumbents.discard(job.rival.evaluation)
        return outcome.evaluation

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

    def _screened(self, policy: Policy, costs: Costs, guess: Guess) -> Evaluation | None:
        """The record of a policy that will not beat its rival, if the guess says so."""
        rival = self.incumbents.rival(dict(costs))
        upper = guess.mean - float(ndtri(self.scorer.risk)) * guess.deviation
        if rival is None or rival.score is None or upper >= rival.score:
            return None
        reason = (
            f"Not scored: predicted {guess.mean:.4g}, {upper:.4g} at most, where trial {rival.number}, which costs no "
            f"more, has {rival.score:.4g}."
        )
        return Evaluation(policy, "pruned", guess.mean, costs, share=0.0, reason=reason, predicted=guess.mean)

    def _remember(self, policy: Policy, scores: Scores) -> None:
        """Keeps a candidate's scores until it is recorded; of candidates that never are, the oldest go."""
        self._new[policy.digest] = scores
        for digest in list(self._new)[:-MOST]:
            del self._new[digest]

    def _rival(self, costs: dict[str, float]) -> Rival | None:
        """The incumbent to beat, with its scores where they are known."""
        chosen = self.incumbents.rival(costs)
        return None if chosen is None else Rival(chosen, self._scores.get(chosen.policy.digest))
