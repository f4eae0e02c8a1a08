"""The test that stops candidates: closed forms, what may never change its mind, and how often it is wrong."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from automc.errors import TaskError
from automc.scoring import racing
from automc.scoring.racing import LEAST, compare

Floats = NDArray[np.float64]
RISK, LOOKS, REPEATS = 0.01, (256, 1024), 4000
TOLERATED = int(scipy.stats.binom.ppf(0.9999, REPEATS, RISK))
"""Wrong stops that a test of exactly this risk exceeds once in ten thousand runs."""


@st.composite
def differences(draw: st.DrawFn) -> Floats:
    count = draw(st.integers(LEAST, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    kind = draw(st.sampled_from(["normal", "signs", "equal", "skewed", "rare"]))
    found = {
        "normal": rng.normal(size=count),
        "signs": rng.integers(-1, 2, count).astype(np.float64),
        "equal": np.full(count, rng.normal()),
        "skewed": rng.exponential(size=count) - 1.0,
        "rare": (rng.random(count) < 0.02) * 1.0,
    }[kind]
    return np.asarray(found * draw(st.sampled_from([1e-9, 0.01, 1.0, 1e6])))


def test_without_skewness_it_is_students_bound_with_the_correction_for_a_finite_population() -> None:
    half = np.random.default_rng(0).normal(size=100)
    d = np.concatenate([half, -half]) - 0.3  # symmetric
    error = d.std(ddof=1) / math.sqrt(200) * math.sqrt(1 - 200 / 900)
    expected = d.mean() + scipy.stats.t.ppf(1 - 0.005, 199) * error
    found = compare(d, 900, 0.005)
    assert found.upper == pytest.approx(expected, rel=1e-9)
    assert found.mean == pytest.approx(-0.3) and found.lost == (expected < 0)


def test_skewness_towards_the_candidate_moves_the_quantile_by_halls_term() -> None:
    d = np.random.default_rng(0).exponential(size=400)
    skewness, t = scipy.stats.skew(d), scipy.stats.norm.ppf(0.995)
    plain = scipy.stats.t.ppf(0.995, 399) + skewness * (2 * t**2 + 1) / (6 * math.sqrt(400))
    large = 10**12  # as good as with replacement
    assert compare(d, large, 0.005).upper == pytest.approx(d.mean() + plain * d.std(ddof=1) / 20, rel=1e-6)
    mirrored = compare(-d, large, 0.005)
    students = scipy.stats.t.ppf(0.995, 399)
    assert mirrored.upper == pytest.approx(-d.mean() + students * d.std(ddof=1) / 20, rel=1e-6)


@given(differences(), st.floats(1e-6, 5.0), st.integers(1, 5000), st.sampled_from([1e-6, 0.005, 0.1, 0.4]))
def test_lower_differences_never_save_a_stopped_candidate(d: Floats, shift: float, rest: int, risk: float) -> None:
    before = compare(d, len(d) + rest, risk)
    after = compare(d - shift * np.abs(d).max(initial=1e-9), len(d) + rest, risk)
    assert after.lost or not before.lost


@given(differences(), st.integers(0, 5000), st.sampled_from([1e-6, 0.005, 0.1, 0.4]))
def test_the_bound_is_no_lower_than_the_mean_and_less_risk_never_stops_more(d: Floats, rest: int, risk: float) -> None:
    found = compare(d, len(d) + rest, risk)
    assert found.upper >= found.mean
    assert compare(d, len(d) + rest, risk / 3).upper >= found.upper
    assert not (found.lost and found.mean >= 0)


@given(differences(), st.integers(1, 5000), st.sampled_from([2.0**-20, 2.0**10]))
def test_the_unit_of_scores_makes_no_difference(d: Floats, rest: int, unit: float) -> None:
    assert compare(unit * d, len(d) + rest, 0.01).upper == pytest.approx(
        unit * compare(d, len(d) + rest, 0.01).upper, rel=1e-9, abs=1e-12 * unit * float(np.abs(d).max(initial=0))
    )


@given(differences())
def test_having_seen_everything_leaves_no_doubt(d: Floats) -> None:
    found = compare(d, len(d), 0.01)
    assert found.upper == found.mean


@given(st.floats(-1e3, 1e3), st.integers(LEAST, 500))
def test_equal_differences_stop_where_they_are_losses(value: float, count: int) -> None:
    found = compare(np.full(count, value), 10_000, 0.001)
    assert found.lost == (float(np.full(count, value).mean()) < 0)


def test_few_samples_stop_nobody_however_bad() -> None:
    assert compare(np.full(LEAST - 1, -1.0), 1000, 0.4).upper == math.inf
    assert compare(np.full(LEAST, -1.0), 1000, 0.4).lost


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e150])
def test_differences_of_any_size_are_told_apart(scale: float) -> None:
    d = np.random.default_rng(0).normal(size=100)
    assert compare(scale * (d - 2.0), 1000, 0.01).lost
    assert not compare(scale * (d + 0.1), 1000, 0.01).lost


@pytest.mark.parametrize(("count", "population", "risk"), [(0, 10, 0.1), (11, 10, 0.1), (40, 90, 0.5), (40, 90, 0.0)])
def test_what_cannot_be_compared_is_refused(count: int, population: int, risk: float) -> None:
    with pytest.raises(TaskError, match=r"must (see|lie)"):
        compare(np.zeros(count), population, risk)


def accuracies(size: int, rng: np.random.Generator, discordant: int) -> Floats:
    """Right or wrong, as often right as the incumbent."""
    d = np.zeros(size)
    d[: 2 * discordant] = np.repeat([1.0, -1.0], discordant)
    return rng.permutation(d)


POPULATIONS = {
    "accuracy, nearly the same model": lambda rng: accuracies(5000, rng, 40),
    "accuracy, another model": lambda rng: accuracies(5000, rng, 400),
    "likeness": lambda rng: rng.beta(8, 1, 5000) - rng.beta(8, 1, 5000),
    "normal": lambda rng: rng.normal(size=5000),
    "rarely much better": lambda rng: np.where(rng.random(5000) < 0.05, 0.5, -0.01) + 0.01 * rng.normal(size=5000),
}


def wrong_stops(population: Floats, shift: float = 0.0) -> int:
    """How many of REPEATS races stop a candidate whose mean difference over all samples is exactly `shift`."""
    rng = np.random.default_rng(1)
    d = population - population.mean() + shift
    return sum(
        any(compare(order[:n], len(d), RISK / len(LOOKS)).lost for n in LOOKS)
        for order in (rng.permutation(d) for _ in range(REPEATS))
    )


@pytest.mark.parametrize("name", list(POPULATIONS))
def test_candidates_that_are_no_worse_are_stopped_no_more_often_than_the_risk(name: str) -> None:
    population = POPULATIONS[name](np.random.default_rng(0))
    assert wrong_stops(population) <= TOLERATED
    assert wrong_stops(population, 0.05 * float(population.std())) < RISK * REPEATS


def test_the_simulation_would_notice_a_test_that_stops_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    population = POPULATIONS["rarely much better"](np.random.default_rng(0))
    monkeypatch.setattr(racing, "_skewness_term", lambda *_: 0.0)
    assert wrong_stops(population) > TOLERATED


def test_clear_losers_are_stopped_at_the_first_look() -> None:
    rng = np.random.default_rng(0)
    better, worse = (rng.random(5000) < p for p in (0.92, 0.80))
    d = worse.astype(np.float64) - better
    assert sum(compare(rng.permutation(d)[:256], 5000, RISK / 2).lost for _ in range(200)) > 150


def test_pairing_and_the_finite_population_both_stop_sooner() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(size=600)
    d = hardness - 0.02 + 0.1 * rng.normal(size=600) - hardness
    assert compare(d, 100_000, 0.01).lost
    unpaired = hardness - 0.02 - rng.permutation(hardness)
    assert not compare(unpaired, 100_000, 0.01).lost
    assert compare(d, 700, 0.01).upper < compare(d, 100_000, 0.01).upper


def wrong_looks(size: int, seen: int, risk: float, wins: int) -> float:
    """The exact chance to stop a candidate that wins as many samples as it loses, by one look."""
    likely = range(int(scipy.stats.hypergeom.ppf(1 - 1e-7, size, wins, seen)) + 1)
    chance, losses = 0.0, 1
    for won in likely:
        losses = max(losses, won + 1)
        while losses <= min(wins, seen - won) and not compare(signs(seen, won, losses), size, risk).lost:
            losses += 1
        here = scipy.stats.hypergeom.pmf(won, size, wins, seen)
        chance += here * scipy.stats.hypergeom.sf(losses - 1, size - wins, wins, seen - won)
    return float(chance)


def signs(seen: int, won: int, lost: int) -> Floats:
    return np.repeat([1.0, -1.0, 0.0], [won, lost, seen - won - lost])


@pytest.mark.parametrize(("size", "seen", "risk"), [(1000, 256, 0.005), (5000, 256, 0.005), (5000, 60, 0.01)])
def test_right_and_wrong_keep_the_risk_in_every_population_by_enumeration(size: int, seen: int, risk: float) -> None:
    populations = sorted({int(w) for w in np.geomspace(1, 0.3 * size, 30)})
    assert max(wrong_looks(size, seen, risk, wins) for wins in populations) <= 1.2 * risk


def test_wins_too_rare_to_be_seen_are_beyond_the_test() -> None:
    """What the docstring owns up to."""
    rng = np.random.default_rng(0)
    population = rng.permutation(np.r_[np.full(25, 1.0), rng.normal(-0.005, 0.002, 4975)])
    d = population - population.mean()
    stopped = sum(compare(rng.permutation(d)[:256], len(d), RISK / 2).lost for _ in range(1000))
    assert stopped == pytest.approx(1000 * 0.995**256, rel=0.2)
