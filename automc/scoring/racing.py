"""When a candidate may be stopped: a one-sided t test on paired differences, sampled without replacement.

The racing of Maron and Moore (1994) with the paired t test of F-Race's relatives (Birattari 2009, section 3.3): what
is compared is d_i = s_i(candidate) - s_i(incumbent), sample by sample, which takes out how hard a sample is. The target
is the mean over all N samples of one fixed validation set, of which n were seen: the standard error has the finite
population correction sqrt(1 - n / N) (Cochran 1977, section 2.6).

Deviations from the plain test, each towards stopping less:
* Differences with a tail in the candidate's favour (rarely much better, mostly a little worse) make Student's quantile
  too small. Where their skewness g is positive, the quantile is moved by the first Cornish-Fisher term of the
  studentised mean (Hall 1983), here for sampling without replacement: g (3 (1-f) + (2-f) (t^2-1)) / (6 sqrt(n (1-f))),
  f = n / N; never below nought, which it would be at large risks.
* Fewer than LEAST samples stop nobody.
* All differences equal leave no error to estimate. That happens with scores of two values, where as much can be won on
  a sample as lost: a mean of at least 0 then means that half the samples win, and the chance to see n losses is at most
  2^-n. With n >= LEAST that is below any risk allowed here, so equal differences count as their own bound: a negative
  one stops, nought does not.

How far the risk is kept, of candidates that are no worse on all N samples:
* Right or wrong on each sample: by all of them. Enumerated, the worst population is stopped 1.2 times as often as
  stated by one look, and no more often than stated by two that share the risk.
* Any other score: on average, not by each. Skewness that n samples do not show is not allowed for. A candidate that
  wins much on 0.5 % of the samples and loses a little on all others shows no win in 256 of them one time in four, and
  is stopped then. Between candidates for the digits task that are equals by kl, 0.5 % of races were stopped, and 5.5 %
  of those of the worst pair. A bound that holds for each would have to reckon with the largest win possible on every
  sample not seen; a longer first stage, or more that are kept, costs less.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from automc.errors import TaskError

LEAST = 30
"""Samples below which nothing is tested: the means of fewer are too far from normal."""
SMALLEST_RISK = 2.0**-LEAST


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against an incumbent on the samples seen so far."""

    seen: int
    population: int
    mean: float
    """Mean paired difference on the samples seen, candidate minus incumbent."""
    upper: float
    """Upper confidence bound of the mean paired difference over the whole population; infinite where nothing can be
    said yet."""

    @property
    def lost(self) -> bool:
        """Whether the candidate is worse, save for about the risk that was taken."""
        return self.upper < 0.0


def compare(differences: NDArray[np.float64], population: int, risk: float) -> Comparison:
    """Compares on paired differences (n,) of n samples, drawn at random without replacement from `population`.

    `risk` is the chance that `upper` lies below the population's mean (how nearly: see above), for this one look:
    divide it by the number of looks (Bonferroni). Raises TaskError unless the risk lies in [2^-30, 0.5) and
    0 < n <= population.
    """
    check_risk(risk)
    seen = len(differences)
    if not 0 < seen <= population:
        raise TaskError(f"A comparison must see 1 to {population} samples; it was given {seen}: give those scored.")
    mean = float(differences.mean())
    return Comparison(seen, population, mean, mean + _margin(differences, population, risk))


def _margin(differences: NDArray[np.float64], population: int, risk: float) -> float:
    """How far the population's mean may lie above the mean seen; the same for differences shifted by a constant."""
    seen = len(differences)
    if seen == population:
        return 0.0
    if seen < LEAST:
        return math.inf
    spread = float(np.ptp(differences))
    if spread == 0.0:
        return 0.0
    scaled = (differences - differences.mean()) / spread  # squares of tiny numbers would vanish
    left = 1.0 - seen / population
    quantile = -float(stdtrit(seen - 1, risk)) + _skewness_term(scaled, left, risk)
    return quantile * spread * float(scaled.std(ddof=1)) * math.sqrt(left / seen)


def _skewness_term(centred: NDArray[np.float64], left: float, risk: float) -> float:
    """What skewness in the candidate's favour adds to the quantile; `left` is the share not seen, 1 - n / N."""
    skewness = float((centred**3).mean() / (centred**2).mean() ** 1.5)
    term = 3.0 * left + (1.0 + left) * (float(ndtri(risk)) ** 2 - 1.0)
    return max(skewness, 0.0) * max(term, 0.0) / (6.0 * math.sqrt(len(centred) * left))


def check_risk(risk: float) -> None:
    """Raises TaskError unless `risk` is a usable error rate."""
    if not SMALLEST_RISK <= risk < 0.5:
        raise TaskError(f"A risk must lie in [{SMALLEST_RISK:.0e}, 0.5); it is {risk}: 0.01 is usual.")
