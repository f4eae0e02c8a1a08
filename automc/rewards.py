"""What an episode was worth to the agent.

All rewards are made of two numbers: the drop of the score and a cost.

The drop is relative to the dense score, (dense - score) / |dense|, and the same for every kind of score; a dense score
within 0.001 of 0, which is no scale, takes the difference as it is. Past one half the drop x bends towards 1, as
1 - 1 / (4 x): 1 is what a failure is worth, nothing that was scored may be worth less, and losses of many times the
dense one, as cross-entropies have, still differ. Gains are negative drops.

* accuracy: minus the drop. AMC's resource-constrained reward is the accuracy itself (He et al. 2018, section 3.3);
  behind a baseline the constant makes no difference, and this scale suits any score.
* accuracy-cost: AMC's accuracy-guaranteed reward, -error * log(cost), in the cost the walk counts. Deviations: AMC's
  error is one minus the accuracy, which other scores have not. Here it is a smooth positive part of the drop (a
  softplus of width 0.1): 0.07 at the dense score, as for the networks AMC was tried on, about the drop beyond it, and
  never 0, so that a cheaper candidate is always better. The logarithm is that of 1 + cost: costs below 1 count too.
* accuracy-efficiency: (b - drop) / b * log(1 / share), Huang et al. 2018 ('Learning to prune filters in convolutional
  neural networks', section 3), with b = 0.05 and the cost as a share of the dense one. Deviation: where the drop is
  above b the logarithm is left out; it would reward those who lost too much for costing more.

All rise with the score and never with the cost. A candidate that failed, and one whose score or reward is not finite,
gets the reward of losing the whole score at the dense cost; one that was stopped early gets what its estimated score
is worth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from automc.evaluation import Evaluation

WIDTH = 0.1
"""Drop over which accuracy-cost's error turns from flat to steep."""
BOUND = 0.05
"""Drop from which accuracy-efficiency is negative."""
LEAST_SCALE = 1e-3
"""Dense scores nearer to 0 are no scale."""
LEAST_SHARE = 1e-6
"""Of the dense cost; log(1 / share) stays finite."""


@dataclass(frozen=True, slots=True)
class Dense:
    """What rewards are measured against: the dense model."""

    score: float
    metric: str
    """The cost an agent's rewards are about."""
    cost: float
    """The dense model's, in that metric."""

    @property
    def scale(self) -> float:
        """The unit of a drop."""
        return abs(self.score) if abs(self.score) > LEAST_SCALE else 1.0


Reward = Callable[[Evaluation, Dense], float]
"""From a scored evaluation to a reward."""


def worth(reward: Reward, evaluation: Evaluation, dense: Dense) -> float:
    """What an agent is told of an evaluation, always finite."""
    scored = evaluation.scored and evaluation.score is not None and math.isfinite(evaluation.score)
    paid = float(reward(evaluation, dense)) if scored else math.nan
    if math.isfinite(paid):
        return paid
    costs = {**dict(evaluation.costs), dense.metric: dense.cost}
    lost = replace(evaluation, state="ok", share=1.0, score=-math.inf, costs=tuple(costs.items()))
    failed = float(reward(lost, dense))
    return failed if math.isfinite(failed) else accuracy(lost, dense)


def accuracy(evaluation: Evaluation, dense: Dense) -> float:
    """-drop"""
    return -_drop(evaluation, dense)


def accuracy_cost(evaluation: Evaluation, dense: Dense) -> float:
    """-error * log(1 + cost)"""
    x = _drop(evaluation, dense) / WIDTH
    error = WIDTH * (max(x, 0.0) + math.log1p(math.exp(-abs(x))))
    return -error * math.log1p(max(evaluation.cost(dense.metric), 0.0))


def accuracy_efficiency(evaluation: Evaluation, dense: Dense) -> float:
    """(b - drop) / b * log(1 / share)"""
    kept = (BOUND - _drop(evaluation, dense)) / BOUND
    share = min(max(evaluation.cost(dense.metric) / dense.cost, LEAST_SHARE), 1.0)
    return kept * -math.log(share) if kept > 0 else kept


def _drop(evaluation: Evaluation, dense: Dense) -> float:
    """How much of the score is lost, up to 1."""
    assert evaluation.score is not None
    x = (dense.score - evaluation.score) / dense.scale
    return x if x <= 0.5 else 1.0 - 0.25 / x


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "accuracy-cost": accuracy_cost,
    "accuracy-efficiency": accuracy_efficiency,
}
