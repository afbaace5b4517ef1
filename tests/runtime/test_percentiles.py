"""Percentiles against numpy, their intervals against scipy's binomial distribution, and how often they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal, stats

from brd_edge.runtime.percentiles import percentile_intervals

PERCENTS = (50.0, 90.0, 95.0, 99.0)


def series(seed: int, count: int, correlation: float = 0.0) -> np.ndarray:
    """Latencies around 10 ms with a long tail to the right; each is like the last one."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, math.sqrt(1 - correlation**2), count)
    noise[0] = rng.normal()
    found: np.ndarray = 10 * np.exp(0.05 * signal.lfilter([1.0], [1.0, -correlation], noise))
    return found


def mixed(count: int) -> np.ndarray:
    """1 to count in an order in which neighbours are not alike, in the middle nor in the tail."""
    found: np.ndarray = np.arange(1.0, count + 1)[np.argsort((np.arange(count) * 0.618034) % 1)]
    return found


@pytest.mark.parametrize("count", [1, 4, 57, 1000])
def test_percentiles_are_those_of_numpy(count: int) -> None:
    samples = series(0, count)
    found = percentile_intervals(samples, PERCENTS)
    assert [item.value for item in found] == list(np.percentile(samples, PERCENTS))
    assert all(item.low <= item.value <= item.high for item in found)


@pytest.mark.parametrize("percent", PERCENTS)
@pytest.mark.parametrize("count", [20, 300, 2000])
def test_independent_samples_give_the_ends_of_the_binomial_test(percent: float, count: int) -> None:
    """scipy's `quantile_test` interval is one of order statistics as well."""
    samples = mixed(count)
    (found,) = percentile_intervals(samples, (percent,))
    theirs = stats.quantile_test(samples, q=float(np.percentile(samples, percent)), p=percent / 100)
    expected = theirs.confidence_interval(confidence_level=0.95)
    assert found.low == (expected.low if not math.isnan(expected.low) else 0.0)
    assert found.high == (expected.high if not math.isnan(expected.high) else math.inf)


@pytest.mark.parametrize(("percent", "least"), [(50.0, 6), (90.0, 36), (95.0, 72), (99.0, 368)])
def test_few_samples_have_no_upper_end(percent: float, least: int) -> None:
    assert (percent / 100) ** least <= 0.025 < (percent / 100) ** (least - 1)
    for count in (least - 1, least):
        (found,) = percentile_intervals(mixed(count), (percent,))
        assert math.isinf(found.high) == (count < least)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("count", [50, 300, 1000])
def test_intervals_hold_as_often_as_they_say(count: int, correlation: float) -> None:
    """Conservative: at least 95 % of the intervals hold the percentile, less what chance takes off."""
    found = [percentile_intervals(series(seed, count, correlation), PERCENTS) for seed in range(200)]
    # of 50 samples that are worth fewer than two, even the correlation cannot be told
    share = 0.90 if correlation == 0.95 or (count == 50 and correlation == 0.8) else 0.95
    if count == 50 and correlation == 0.95:
        share = 0.85
    for place, percent in enumerate(PERCENTS):
        truth = 10 * math.exp(0.05 * stats.norm.ppf(percent / 100))
        held = sum(item[place].low <= truth <= item[place].high for item in found)
        assert held >= stats.binom(200, share).ppf(0.001), percent


def test_bursts_count_although_the_middle_is_quiet() -> None:
    """Every wait lasts for ten calls: there are a tenth as many waits as slow calls."""
    rng = np.random.default_rng(4)
    slow = np.repeat(rng.random(60) < 0.1, 10)
    samples = np.where(slow, rng.uniform(20, 30, 600), rng.uniform(10, 11, 600))
    burst, mixed = (percentile_intervals(times, (90.0,))[0] for times in (samples, rng.permutation(samples)))
    assert burst.high - burst.low > 1.5 * (mixed.high - mixed.low)


def test_a_slow_drift_counts_although_the_tail_is_quiet() -> None:
    """Calls above p99 do not come in bursts, but most of them come in the two slow halves of a wave."""
    rng = np.random.default_rng(4)
    wave = 0.7 * np.sin(np.linspace(0, 4 * np.pi, 2000))
    samples = 10 * np.exp(0.05 * (wave + rng.normal(0, 1, 2000)))
    drifting, mixed = (percentile_intervals(times, (99.0,))[0] for times in (samples, rng.permutation(samples)))
    assert drifting.value == mixed.value < mixed.high < samples.max()
    # worth fewer than the 368 independent samples that an upper end takes
    assert math.isinf(drifting.high)
