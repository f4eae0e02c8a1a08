"""What an episode was worth to the agent.

* accuracy: how far the score is from the dense model's, relative to it. AMC's resource-constrained reward is the
  accuracy itself (He et al. 2018, section 3.3); the constant makes no difference behind a baseline, and the scale
  suits any metric.
* accuracy-macs: AMC's accuracy-guaranteed reward, -error * log(MACs), for scores that are accuracies in [0, 1].

A failed candidate gets -1: the reward of losing the whole score. One that was stopped early gets what its estimated
score is worth.
"""

import math
from collections.abc import Callable

from automc.evaluation import Evaluation

Reward = Callable[[Evaluation, float], float]
"""From an evaluation and the dense score to a reward."""
FAILED = -1.0


def accuracy(evaluation: Evaluation, dense_score: float) -> float:
    """(score - dense) / |dense|"""
    if not evaluation.scored or evaluation.score is None:
        return FAILED
    return (evaluation.score - dense_score) / max(abs(dense_score), 1e-9)


def accuracy_macs(evaluation: Evaluation, dense_score: float) -> float:
    """-(1 - score) * log(MACs)"""
    if not evaluation.scored or evaluation.score is None:
        return FAILED
    return -(1.0 - evaluation.score) * math.log(max(evaluation.cost("macs"), 1.0))


REWARDS: dict[str, Reward] = {"accuracy": accuracy, "accuracy-macs": accuracy_macs}
