"""Whether a proposal is worth scoring: the surrogate's guess, as uncertain as its earlier guesses were wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from automc.evaluation import Evaluation
from automc.policy import Policy
from automc.scoring.surrogate import AdditiveModel
from automc.space import FloatArray, IntArray, SearchSpace

ENOUGH = 16
"""Scored policies before anything is predicted."""
SPREADS = (0.3, 0.7, 1.5, 3.0)
"""Wider than for drawing coefficients: what calibration data say of a layer may be quite wrong."""
MOST = 500
"""Scored policies that a model is fitted to, the latest ones."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What a score will be."""

    mean: float
    deviation: float


class Screen:
    """Predicts scores from those it was told, a function of these and of their order.

    errors: per axis of the space, as in `Problem.errors`; asked for once there is something to predict from.
    """

    def __init__(self, space: SearchSpace, errors: Callable[[], tuple[FloatArray, ...]]) -> None:
        self._space, self._ask = space, errors
        self._points: list[IntArray] = []
        self._scores: list[float] = []
        self._model: tuple[AdditiveModel, float] | None = None

    def learn(self, evaluation: Evaluation) -> None:
        """Takes note of a score that samples were seen for."""
        if evaluation.scored and evaluation.share > 0 and evaluation.score is not None:
            self._points.append(self._space.encode(evaluation.policy))
            self._scores.append(evaluation.score)
            self._model = None

    def guess(self, policy: Policy) -> Guess | None:
        """A policy's score; None before there is enough to tell, or where no axis has an order."""
        found = self.guesses([policy])
        return None if found is None else found[0]

    def guesses(self, policies: Sequence[Policy]) -> list[Guess] | None:
        """The scores of several, as `guess` tells them one by one."""
        if len(self._scores) < ENOUGH or not self._space.ordered.any():
            return None
        if self._model is None:
            self._model = self._fitted()
        model, factor = self._model
        found = zip(*model.predict([self._space.encode(policy) for policy in policies]), strict=True)
        return [Guess(float(mean), float(deviation) * factor) for mean, deviation in found]

    @cached_property
    def _errors(self) -> tuple[FloatArray, ...]:
        return self._ask()

    def _fitted(self) -> tuple[AdditiveModel, float]:
        """The model, and by how much its errors on scores left out exceed what it expects of them."""
        points, scores = self._points[-MOST:], self._scores[-MOST:]
        model = AdditiveModel.of(self._space, self._errors, points, scores, SPREADS)
        mean, deviation = model.left_out()
        return model, float(np.sqrt(np.mean(((np.array(scores) - mean) / deviation) ** 2)))
