"""What told scores say about the layers: how much score each unit of a layer's error costs.

SPDY (Frantar and Alistarh 2022, section 3.2) searches these coefficients at random. Here two sources propose them.
* `implied`: the coefficients under which a point, whoever proposed it, is the knapsack's solution: a start for
  mutations that needs no memory of who proposed what.
* `Regression.draw`: a draw from the posterior of Bayesian linear regression of the scores on the errors (one
  coefficient a layer, around a common one, alike where layers are neighbours) and on the criteria: Thompson sampling
  with the knapsack as its oracle (Agrawal and Goyal 2013; Wen et al. 2015 for combinatorial arms). Noise in the scores
  widens the posterior instead of misleading a local search.
"""

from dataclasses import dataclass

import numpy as np

from automc.searcher import Problem
from automc.searchers.relaxation import Additive
from automc.space import FloatArray, IntArray, SearchSpace

LEAST, MOST = 0.02, 50.0
"""Bounds on a coefficient, relative to the common one."""
TIE = 1e-6
"""How far a coefficient stays from where a neighbouring level is as good."""
SPREADS, NOISES = (0.3, 0.7), (0.15, 0.4, 0.8)
"""Prior deviation of a coefficient relative to the common one; noise relative to the scores' deviation."""
SMOOTH, REACH = 0.8, 0.2
"""Share of a coefficient's prior variance that neighbours in depth have in common; how far neighbours reach, as a share
of the depth. Layers of one stage matter alike: on ResNet-56 this takes the rank correlation between predicted and told
scores from 0.55 to 0.66 after 15 trials."""
CRITERION = 0.02
"""Prior deviation of what a criterion changes, relative to the scores' deviation."""


def implied(table: Additive, errors: FloatArray, price: FloatArray, levels: IntArray) -> FloatArray:
    """Per ordered axis the coefficient nearest to 1 (O,) for which `levels` (O,) minimise error plus priced cost."""
    rows, index = np.arange(len(levels)), np.arange(table.known.shape[1])
    cost = np.tensordot(price, np.where(table.known, table.costs, 0.0), axes=1)  # (O, V)
    saved = errors[rows, levels][:, None] - np.where(table.known, errors, np.nan)
    paid = cost - cost[rows, levels][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = paid / saved  # positive where a higher level costs more and errs less
    above = (index > levels[:, None]) & table.known & (saved > 0)
    below = (index < levels[:, None]) & table.known & (saved < 0)
    high = np.where(above, ratio, np.inf).min(axis=1, initial=np.inf)
    low = np.where(below, ratio, 0.0).max(axis=1, initial=0.0)
    broken = low > high  # on no convex hull: no coefficient makes it optimal
    middle = np.sqrt(np.maximum(low * np.where(np.isfinite(high), high, 1.0), 1e-12))
    inside = np.clip(1.0, low * (1.0 + TIE), high * (1.0 - TIE))
    return np.asarray(np.where(broken, middle, inside).clip(LEAST, MOST))


@dataclass(frozen=True, eq=False)
class Regression:
    """Scores explained by errors and criteria."""

    features: FloatArray
    """Errors of the ordered axes, negative, then one column a level of the others (N, D)."""
    scores: FloatArray
    """(N,), with their mean removed."""
    prior: FloatArray
    """Prior mean of the weights (D,)."""
    common: float
    """Score lost per unit of error, over all layers."""
    space: SearchSpace

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, IntArray]:
        """From the posterior, per axis: a coefficient relative to the common one (1 without an order) and the level
        of most score (0 with an order), both (A,)."""
        weights = self._weights(rng)
        ordered = self.space.ordered
        coefficients = np.ones(len(ordered))
        coefficients[ordered] = (weights[: ordered.sum()] / self.common).clip(LEAST, MOST)
        choices = np.zeros(len(ordered), dtype=np.int64)
        ends = np.cumsum(self.space.sizes[~ordered])
        parts = np.split(weights[ordered.sum() :], ends[:-1])
        choices[~ordered] = [part.argmax() for part in parts if len(part)]
        return coefficients, choices

    def _weights(self, rng: np.random.Generator) -> FloatArray:
        """All weights (D,) under the prior of most evidence: the posterior mean plus a random share of a draw's
        distance to it (Matheron's rule), so some draws explore and some exploit."""
        covariance, noise, lower = self._fit()
        share = float(rng.uniform())
        root = np.linalg.cholesky(covariance)
        weights = self.prior + share * root @ rng.standard_normal(len(covariance))
        gap = self.scores - self.features @ weights - share * noise * rng.standard_normal(len(self.scores))
        weights += covariance @ (self.features.T @ np.linalg.solve(lower.T, np.linalg.solve(lower, gap)))
        return np.asarray(weights)

    def _fit(self) -> tuple[FloatArray, float, FloatArray]:
        """Prior covariance (D, D), the noise's deviation, and the Cholesky factor (N, N) of the scores' covariance:
        those under which the scores are most likely."""
        scale = max(float(self.scores.std()), 1e-9)
        residual = self.scores - self.features @ self.prior
        found: list[tuple[float, FloatArray, float, FloatArray]] = []
        for spread in SPREADS:
            covariance = self._prior_covariance(spread * self.common, CRITERION * scale)
            explained = self.features @ covariance @ self.features.T
            for noise in NOISES:
                lower = np.asarray(np.linalg.cholesky(explained + (noise * scale) ** 2 * np.eye(len(explained))))
                white = np.linalg.solve(lower, residual)
                evidence = -0.5 * float(white @ white) - float(np.log(np.diag(lower)).sum())
                found.append((evidence, covariance, noise * scale, lower))
        _, best, deviation, factor = max(found, key=lambda entry: entry[0])
        return best, deviation, factor

    def _prior_covariance(self, deviation: float, criterion: float) -> FloatArray:
        """Errors' weights vary by `deviation`, mostly together with their neighbours in depth; criteria each alone."""
        depth = self.space.layers[self.space.ordered] / max(len(self.space.facts.layers) - 1, 1)
        near = np.exp(-np.abs(depth[:, None] - depth) / REACH)
        count = len(depth)
        covariance = criterion**2 * np.eye(len(self.prior))
        covariance[:count, :count] = deviation**2 * (SMOOTH * near + (1.0 - SMOOTH) * np.eye(count))
        return covariance


def regression(problem: Problem, errors: list[FloatArray], points: list[IntArray], scores: list[float]) -> Regression:
    """The regression of told scores on the errors and criteria of their points."""
    chosen, target = np.array(points), np.array(scores)
    columns, prior = [], []
    for axis, error in enumerate(errors):
        if problem.space.ordered[axis]:
            columns.append(-error[chosen[:, axis]])
            prior.append(1.0)
    for axis in np.flatnonzero(~problem.space.ordered).tolist():
        for level in range(int(problem.space.sizes[axis])):
            columns.append((chosen[:, axis] == level).astype(np.float64))
            prior.append(0.0)
    features = np.stack(columns, axis=1)
    features -= features.mean(axis=0)
    target = target - target.mean()
    means = np.array(prior)
    common = _slope(features @ means, target)
    return Regression(features, target, means * common, common, problem.space)


def _slope(total: FloatArray, target: FloatArray) -> float:
    """Score per unit of total error; from the deviations where they do not go together."""
    spread = float(total @ total)
    slope = float(total @ target) / spread if spread > 0 else 0.0
    fallback = float(target.std()) / max(float(total.std()), 1e-9)
    return max(slope, 0.1 * fallback, 1e-9)
