"""One candidate, one stage of the validation samples at a time: whoever asks for the next one says how far it pays."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.scoring.evaluator import Costs, Evaluator, SampleScores
from automc.scoring.forward import Forward


class Stepwise:
    """The scores of a policy, as far as they are known; after the last stage, to the last bit, `Evaluator.evaluate`'s.

    Without stages, or where a task's own `evaluate` gives no scores by sample, there is one step.
    """

    def __init__(self, evaluator: Evaluator, policy: Policy, found: Sequence[SampleScores] = ()) -> None:
        """found: of the first stages, as `found` has them, where these were scored elsewhere."""
        self.evaluator, self.policy = evaluator, policy
        self.found = list(found)
        """Scores by sample of each stage so far."""
        self._forward: Forward | None = None
        self._seconds = 0.0

    @property
    def seen(self) -> int:
        """How many samples are scored by stages."""
        return sum(len(part.score) for part in self.found)

    @property
    def all(self) -> int:
        """How many samples there are."""
        return sum(len(targets) for _, targets in self.evaluator.task.validation)

    def step(self) -> Evaluation:
        """What is known after one stage more: `pruned`, with the mean over the samples seen for a score, before the
        last one; what goes wrong with the candidate is a failed evaluation, never an exception.
        """
        if self.evaluator.staged:
            known = self.evaluator.attempt(self.policy, self._next, self._forward)
        else:
            known = self.evaluator.evaluate(self.policy)
        self._seconds += known.seconds
        return replace(known, seconds=self._seconds)

    def _next(self, forward: Forward, costs: Costs) -> Evaluation:
        self._forward = forward
        stages = self.evaluator.stages
        self.found.append(self.evaluator.stage_scores(forward, stages[len(self.found)]))
        columns = zip(*self.found, strict=True)
        if len(self.found) == len(stages):
            score, metric = (float(self.evaluator.joined(parts).mean()) for parts in columns)
            return Evaluation(self.policy, "ok", score, costs, metric=metric)
        score, metric = (float(torch.cat(parts).mean()) for parts in columns)
        return Evaluation(self.policy, "pruned", score, costs, share=self.seen / self.all, metric=metric)
