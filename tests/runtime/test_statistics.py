"""Intervals against scipy's bootstrap, their coverage, and the verdicts on made-up pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal, stats

from brd_edge.runtime import statistics
from brd_edge.runtime.statistics import (
    Interval,
    bootstrap_percentiles,
    compare_ratios,
    drift_ratio,
    inflation,
    judge_ratio,
    mean_interval,
    ratio_of_medians,
    resample_blocks,
    widening,
)


def make_series(seed: int, count: int, correlation: float = 0.0) -> np.ndarray:
    """Latencies around 10 ms with a long tail to the right; neighbours may be alike."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=count)
    for i in range(1, count):
        noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
    series: np.ndarray = 10 * np.exp(0.05 * noise)
    return series


@pytest.mark.parametrize("percent", [50.0, 90.0])
def test_intervals_are_those_of_scipy(percent: float) -> None:
    samples = make_series(1, 400)
    (found,) = bootstrap_percentiles(samples, (percent,))

    def statistic(values: np.ndarray, axis: int) -> np.ndarray:
        return np.percentile(values, percent, axis=axis)

    theirs = stats.bootstrap(
        (samples,), statistic, n_resamples=4000, method="percentile", rng=np.random.default_rng(0), vectorized=True
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.value == np.percentile(samples, percent)
    assert found.low == pytest.approx(theirs.low, abs=0.25 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.25 * width)


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    found = [bootstrap_percentiles(make_series(seed, 120), (50.0,))[0] for seed in range(200)]
    covered = sum(item.low <= 10 <= item.high for item in found)
    # 190 expected; a binomial of that rate lies outside these bounds once in a thousand times
    assert stats.binom(200, 0.95).ppf(0.0005) <= covered <= 200


@pytest.mark.parametrize(("count", "correlation"), [(30, 0.0), (300, 0.0), (1000, 0.8)])
def test_the_interval_of_a_mean_covers_it(count: int, correlation: float) -> None:
    truth = 10 * math.exp(0.05**2 / 2)
    found = [mean_interval(make_series(seed, count, correlation)) for seed in range(200)]
    # a bootstrap of blocks comes near to its 95 % from below
    assert stats.binom(200, 0.92).ppf(0.001) <= sum(item.low <= truth <= item.high for item in found)


def test_intervals_of_means_of_independent_times_are_those_of_student() -> None:
    samples = make_series(1, 300)
    found = mean_interval(samples)
    theirs = stats.t.interval(0.95, 299, loc=samples.mean(), scale=stats.sem(samples))
    assert found.value == samples.mean()
    assert (found.low, found.high) == pytest.approx(theirs, abs=0.15 * (theirs[1] - theirs[0]))
    assert mean_interval([4.0]) == Interval(4.0, 0.0, math.inf)
    assert mean_interval([4.0] * 9) == Interval(4.0, 4.0, 4.0)


def test_inflation_is_that_of_the_known_correlation() -> None:
    # of a series in which each value is r times the last and new noise: (1 + r) / (1 - r)
    rng = np.random.default_rng(0)
    series = signal.lfilter([1.0], [1.0, -0.8], rng.normal(size=40_000))
    assert inflation(series) == pytest.approx(9, rel=0.15)
    assert inflation(rng.normal(size=40_000)) == pytest.approx(1, abs=0.1)
    assert inflation(np.full(5, 3.0)) == 1
    assert inflation(np.array([1.0])) == 1


def test_neighbours_that_are_alike_make_the_interval_wider() -> None:
    series = make_series(3, 1000, correlation=0.8)
    (found,) = bootstrap_percentiles(series, (50.0,))
    (shuffled,) = bootstrap_percentiles(np.random.default_rng(0).permutation(series), (50.0,))
    assert found.relative_width > 1.5 * shuffled.relative_width


def test_blocks_are_neighbours_and_every_place_is_as_likely() -> None:
    indices = resample_blocks(10, 5000, 4)
    assert indices.shape == (5000, 10)
    assert set(np.unique((indices[:, 1:4] - indices[:, :3]) % 10)) == {1}
    counts = np.bincount(indices.ravel(), minlength=10)
    assert stats.chisquare(counts[:]).pvalue > 1e-6 or np.abs(counts / 5000 - 1).max() < 0.05
    assert resample_blocks(1, 3, 7).tolist() == [[0]] * 3


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [
        (1.0, 0.02, "equivalent"),
        (1.004, 0.02, "equivalent"),
        (1.03, 0.02, "slower"),
        (0.97, 0.02, "faster"),
        (1.0, 0.5, "undecided"),
    ],
)
def test_verdicts(shift: float, spread: float, verdict: str) -> None:
    ratios = shift * np.exp(np.random.default_rng(5).normal(0, spread, (8, 25)))
    found = compare_ratios(ratios, margin=0.01)
    assert found.verdict == verdict
    assert found.pairs == 200
    assert found.ratio.value == pytest.approx(np.median(ratios), rel=1e-3)
    assert found.ratio.low <= found.equivalence.low <= found.ratio.value <= found.equivalence.high <= found.ratio.high
    assert found.describe().startswith(found.verdict)


@pytest.mark.parametrize("rounds", [4, 8])
def test_wrong_verdicts_are_rare_where_rounds_differ(rounds: int) -> None:
    """Ratios of 1 in rounds that differ from each other: missed about as often as a 95 % interval may be."""
    rng = np.random.default_rng(9)
    missed = 0
    for _ in range(100):
        ratios = np.exp(rng.normal(0, 0.02, (rounds, 1)) + rng.normal(0, 0.02, (rounds, 20)))
        found = compare_ratios(ratios, margin=0.01).ratio
        missed += not found.low <= 1 <= found.high
    assert missed <= stats.binom(100, 0.07).ppf(0.999)


def test_intervals_of_many_rounds_are_those_of_independent_ratios() -> None:
    ratios = np.exp(np.random.default_rng(2).normal(0, 0.05, (100, 10)))
    found = compare_ratios(ratios, margin=0.01).ratio
    theirs = stats.bootstrap(
        (ratios.ravel(),), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    # rounds are drawn as well: a little wider
    assert 0.9 < (found.high - found.low) / (theirs.high - theirs.low) < 1.7


@pytest.mark.parametrize("freedom", [3, 5, 11, 40])
@pytest.mark.parametrize("probability", [0.95, 0.975])
def test_student_quantiles_are_those_of_scipy(freedom: int, probability: float) -> None:
    found = statistics._student_quantile(stats.norm.ppf(probability), freedom)
    assert found == pytest.approx(stats.t.ppf(probability, freedom), rel=0.01)


def test_drift_is_last_third_over_first() -> None:
    assert drift_ratio([1.0] * 30 + [2.0] * 30 + [1.5] * 30) == 1.5
    assert drift_ratio([1.0, 5.0]) == 1.0


@pytest.mark.parametrize("count", [63, 100, 303, 1000])
def test_frames_that_take_turns_are_no_drift(count: int) -> None:
    steady = np.resize([12.0] * 4 + [10.0] * 4, count)
    assert drift_ratio(steady, 8) == 1.0
    # a machine that becomes slower by a seventh on the way
    assert drift_ratio(steady * np.linspace(1, 1.15, count), 8) == pytest.approx(1.1, abs=0.015)
    assert drift_ratio(steady[:20], 8) == 1.0


def test_the_ratio_of_two_medians_is_that_of_scipy() -> None:
    a, b = make_series(1, 400), 1.1 * make_series(2, 300)

    def statistic(mine: np.ndarray, theirs: np.ndarray, axis: int) -> np.ndarray:
        return np.median(theirs, axis=axis) / np.median(mine, axis=axis)

    for found, confidence in zip(ratio_of_medians(a, b), (0.95, 0.90), strict=True):
        theirs = stats.bootstrap(
            (a, b),
            statistic,
            n_resamples=4000,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert found.value == np.median(b) / np.median(a)
        assert found.confidence == confidence
        # neighbours are drawn together, which these samples do not need
        assert found.low == pytest.approx(theirs.low, abs=0.25 * width)
        assert found.high == pytest.approx(theirs.high, abs=0.25 * width)


def test_the_two_series_are_drawn_apart() -> None:
    series = make_series(1, 200)
    found, _ = ratio_of_medians(series, series)
    assert found.value == 1
    assert found.low < 1 < found.high
    (alone,) = bootstrap_percentiles(series, (50.0,))
    assert found.relative_width > 1.2 * alone.relative_width


def test_the_ratio_of_series_whose_neighbours_are_alike_is_seldom_taken_for_a_difference() -> None:
    pairs = [[make_series(2 * seed + side, 500, correlation=0.95) for side in range(2)] for seed in range(60)]
    held = sum(ratio.low <= 1 <= ratio.high for ratio, _ in (ratio_of_medians(*pair) for pair in pairs))
    # 57 expected; blocks of the cube root of 500 hold 43
    assert held >= stats.binom(60, 0.95).ppf(0.001)


@pytest.mark.parametrize(
    ("ends", "inner", "verdict"),
    [
        ((0.98, 1.02), (0.985, 1.015), "equivalent"),
        ((1.01, 1.025), (1.012, 1.024), "equivalent"),
        ((1.01, 1.05), (1.012, 1.045), "slower"),
        ((0.90, 0.98), (0.91, 0.975), "faster"),
        ((0.99, 1.05), (0.995, 1.045), "undecided"),
    ],
)
def test_verdicts_on_ratios(ends: tuple[float, float], inner: tuple[float, float], verdict: str) -> None:
    assert judge_ratio(Interval(1.0, *ends), Interval(1.0, *inner, 0.9), margin=0.03) == verdict


@pytest.mark.parametrize("count", [2, 3, 4, 24, 200])
@pytest.mark.parametrize("confidence", [0.90, 0.95])
def test_widening_is_students_against_the_normal_distribution(count: int, confidence: float) -> None:
    level = 0.5 + confidence / 2
    expected = stats.t(count - 1).ppf(level) / stats.norm.ppf(level) * math.sqrt(count / (count - 1))
    assert widening(count, confidence) == pytest.approx(expected, rel=0.01)
