"""Intervals for measured times and scores, and the verdict on two engines; numpy only, the same everywhere.

The intervals here are percentile bootstrap intervals (Efron and Tibshirani, 1993); those of a latency's percentiles are
in `brd_edge.runtime.percentiles`. Times that are taken one after the
other are not independent, because clocks and other processes change slowly: they are drawn in blocks of
neighbours (circular block bootstrap, Politis and Romano, 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Comparison",
    "FloatArray",
    "Interval",
    "Verdict",
    "bootstrap_percentiles",
    "compare_ratios",
    "drift_ratio",
    "inflation",
    "judge_ratio",
    "mean_interval",
    "ratio_of_medians",
    "resample_blocks",
    "widening",
]

Verdict = Literal["faster", "slower", "equivalent", "undecided"]
FloatArray = npt.NDArray[np.float64]

_DRAWS = 2000
_SEED = 20240131
_BLOCK_INFLATION = 3
"""How many times the length over which neighbours are alike a block is long."""


@dataclass(frozen=True)
class Interval:
    """An interval around an estimate.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end; either end is infinite where what was seen is too little to have one.
        confidence: Of the interval, 0 to 1.
    """

    value: float
    low: float
    high: float
    confidence: float = 0.95

    @property
    def relative_width(self) -> float:
        """Half the width as a share of the value."""
        return (self.high - self.low) / 2 / self.value if self.value else math.inf

    @property
    def finite(self) -> bool:
        """Whether value and both ends are numbers: it was counted, and there was enough of it to have ends."""
        return math.isfinite(self.value + self.low + self.high)

    def to_json(self) -> dict[str, float]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """What came of comparing B with A, pair by pair.

    Attributes:
        verdict: `"equivalent"`: the ratio lies within the margin (two one-sided tests at 5 %). Else `"faster"` or
            `"slower"`: B is, the 95 % interval does not hold 1. Else `"undecided"`.
        ratio: Median of the paired ratios B / A over all rounds, with its 95 % interval.
        equivalence: The same with the 90 % interval, which the two one-sided tests compare with the margin.
        margin: Largest difference that counts as none, as a share (0.01 is 1 %).
        pairs: Number of ratios.
    """

    verdict: Verdict
    ratio: Interval
    equivalence: Interval
    margin: float
    pairs: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    def describe(self) -> str:
        """Return one sentence fragment, such as `equivalent within ±1 % (ratio 1.002 [0.997, 1.006])`."""
        found = f"ratio {self.ratio.value:.3f} [{self.ratio.low:.3f}, {self.ratio.high:.3f}], {self.pairs} pairs"
        if self.verdict == "equivalent":
            return f"equivalent within ±{100 * self.margin:g} % ({found})"
        return f"{self.verdict} ({found})"


def resample_blocks(count: int, draws: int, block: int, seed: int = _SEED) -> npt.NDArray[np.intp]:
    """Return indices of bootstrap samples made of blocks of neighbours.

    Args:
        count: Length of the series, at least 1.
        draws: Number of samples, at least 1.
        block: Length of the blocks, 1 for independent values.
        seed: Of the draws.

    Returns:
        Integers (draws, count), 0 to count - 1; a block that reaches the end goes on at the beginning.
    """
    block = min(max(1, block), count)
    blocks = -(-count // block)
    starts = np.random.default_rng(seed).integers(0, count, (draws, blocks, 1))
    indices: npt.NDArray[np.intp] = ((starts + np.arange(block)) % count).reshape(draws, -1)[:, :count]
    return indices


def bootstrap_percentiles(
    samples: Sequence[float] | FloatArray, percents: Sequence[float], *, confidence: float = 0.95
) -> list[Interval]:
    """Return percentiles of a series with their intervals.

    Args:
        samples: The series, in the order taken; at least one value.
        percents: Which percentiles, 0 to 100; linear between samples.
        confidence: Of the intervals, 0 to 1.

    Returns:
        One interval a percentile.
    """
    values = np.asarray(samples, np.float64)
    found = np.percentile(values[resample_blocks(len(values), _DRAWS, _block_length(len(values)))], percents, axis=1)
    return [
        _interval(float(value), drawn, confidence)
        for value, drawn in zip(np.percentile(values, percents), found, strict=True)
    ]


def mean_interval(samples: Sequence[float] | FloatArray, *, confidence: float = 0.95) -> Interval:
    """Return the mean of times that were taken one after the other, with its interval.

    Blocks are longer where neighbours are more alike, and the interval is widened as Student's is for as few
    independent values as the series is worth.

    Args:
        samples: The series, in the order taken; at least one value, none below 0.
        confidence: Of the interval, 0 to 1.

    Returns:
        The interval; from 0 to infinity where there is only one value.
    """
    values = np.asarray(samples, np.float64)
    count, middle = len(values), float(values.mean())
    if count < 2:
        return Interval(middle, 0.0, math.inf, confidence)
    alike = inflation(values)
    found = _interval(middle, _block_means(values, _series_block(count, alike)), confidence)
    factor = widening(max(2, int(count / alike)), confidence)
    low, high = (middle + factor * (end - middle) for end in (found.low, found.high))
    return Interval(middle, max(0.0, low), high, confidence)


def inflation(values: FloatArray) -> float:
    """Return how many values of a series tell as much about its mean as one independent value does, at least 1.

    The variance of the mean over that of independent values, by the initial monotone sequence of sums of two
    neighbouring autocorrelations (Geyer, 1992).

    Args:
        values: The series (N), in the order taken.
    """
    centred = values - values.mean()
    power = float(centred @ centred)
    if power == 0:
        return 1.0
    spectrum = np.fft.rfft(centred, 2 * len(values))
    correlations = np.fft.irfft(np.abs(spectrum) ** 2)[: len(values) // 2 * 2] / power
    sums = correlations.reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(sums <= 0)
    kept = sums[: ends[0]] if len(ends) else sums
    return max(1.0, float(2 * np.minimum.accumulate(kept).sum() - 1)) if len(kept) else 1.0


def compare_ratios(ratios: FloatArray, *, margin: float) -> Comparison:
    """Judge paired ratios B / A that were taken in rounds.

    Rounds are drawn with replacement, and in each its neighbouring ratios in blocks; the intervals are widened as
    Student's are against the normal distribution's, because a handful of rounds shows too little of how they differ.

    Args:
        ratios: Above 0, float64 (rounds, ratios), in the order taken; at least 2 rounds.
        margin: Largest difference that counts as none, as a share above 0.

    Returns:
        The verdict with what it rests on.
    """
    values = np.log(np.asarray(ratios, np.float64))
    rounds, count = values.shape
    chosen = np.random.default_rng(_SEED).integers(0, rounds, (_DRAWS, rounds))
    places = resample_blocks(count, _DRAWS * rounds, _block_length(count)).reshape(_DRAWS, rounds, count)
    drawn = np.median(values[chosen[..., None], places].reshape(_DRAWS, -1), axis=1)
    middle = float(np.median(values))
    ratio, inner = (
        _widened(middle, _interval(middle, drawn, confidence), rounds, confidence) for confidence in (0.95, 0.90)
    )
    return Comparison(judge_ratio(ratio, inner, margin=margin), ratio, inner, margin, values.size)


def judge_ratio(ratio: Interval, equivalence: Interval, *, margin: float) -> Verdict:
    """Judge a ratio B / A of times.

    Args:
        ratio: With its 95 % interval.
        equivalence: With its 90 % interval, whose ends are those of two one-sided tests at 5 %.
        margin: Largest difference that counts as none, as a share above 0.

    Returns:
        `"equivalent"` where the 90 % interval lies within the margin, else `"faster"` or `"slower"` where the 95 %
        interval does not hold 1, else `"undecided"`.
    """
    if equivalence.low > 1 - margin and equivalence.high < 1 + margin:
        return "equivalent"
    if ratio.high < 1:
        return "faster"
    return "slower" if ratio.low > 1 else "undecided"


def ratio_of_medians(
    samples_a: Sequence[float] | FloatArray, samples_b: Sequence[float] | FloatArray
) -> tuple[Interval, Interval]:
    """Return the ratio of two medians, B / A, of series that were taken apart from each other.

    Each series is drawn in blocks of its own neighbours. What differed between the two sessions (the machine, its
    clocks, its other work, where buffers lay in memory) is in the ratio and cannot be told from the engines.

    Args:
        samples_a: Above 0, in the order taken; at least one value.
        samples_b: The same of what is judged.

    Returns:
        The ratio with its 95 % interval, and with its 90 % interval.
    """
    medians = []
    for seed, samples in ((_SEED, samples_a), (_SEED + 1, samples_b)):
        values = np.asarray(samples, np.float64)
        block = _series_block(len(values), inflation((values > np.median(values)).astype(np.float64)))
        places = resample_blocks(len(values), _DRAWS, block, seed)
        medians.append((float(np.median(values)), np.median(values[places], axis=1)))
    (middle_a, drawn_a), (middle_b, drawn_b) = medians
    middle, drawn = middle_b / middle_a, drawn_b / drawn_a
    return _interval(middle, drawn, 0.95), _interval(middle, drawn, 0.90)


def widening(count: int, confidence: float) -> float:
    """Return the factor by which a percentile interval of few independent values has to be widened.

    Student's quantile over the normal one, and n over n - 1 in the variance (Hesterberg, 2015).

    Args:
        count: Independent values that the bootstrap drew from, at least 2.
        confidence: Of the interval, 0 to 1.
    """
    normal = _normal_quantile(0.5 + confidence / 2)
    return _student_quantile(normal, count - 1) / normal * math.sqrt(count / (count - 1))


def _widened(middle: float, interval: Interval, rounds: int, confidence: float) -> Interval:
    """Widen an interval of logarithms for few rounds, and return it as one of ratios."""
    factor = widening(rounds, confidence)
    low, high = (middle + factor * (end - middle) for end in (interval.low, interval.high))
    return Interval(math.exp(middle), math.exp(low), math.exp(high), confidence)


def _normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _student_quantile(normal: float, freedom: int) -> float:
    """Return Student's quantile from the normal one: of one and two degrees of freedom exactly, of more as a series.

    The series is Abramowitz and Stegun's, 26.7.5, four terms: too short for so few.
    """
    z, v = normal, freedom
    if v <= 2:
        p = NormalDist().cdf(z)
        return math.tan(math.pi * (p - 0.5)) if v == 1 else (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / v**power for power, term in enumerate(terms, 1)))


def drift_ratio(samples: Sequence[float] | FloatArray, frames: int = 1) -> float:
    """Return the median of the last third of a series over that of its first third; 1 without drift.

    Both have every frame equally often, since frames may take unlike times. Fewer than 9 samples say nothing: 1.

    Args:
        samples: In the order taken.
        frames: Number of frames that took turns, at least 1.
    """
    third = len(samples) // 3 // frames * frames
    if third < 3:
        return 1.0
    values = np.asarray(samples, np.float64)
    return float(np.median(values[-third:]) / np.median(values[:third]))


def _block_length(count: int) -> int:
    """Return how many neighbours are drawn together: the cube root, the order that is best for variances."""
    return max(1, int(np.cbrt(count).round()))


def _block_means(values: FloatArray, block: int) -> FloatArray:
    """Return the means of bootstrap samples made of blocks of neighbours, without laying the samples out."""
    count = len(values)
    starts = np.random.default_rng(_SEED).integers(0, count, (_DRAWS, -(-count // block)))
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[:block]]))])
    lengths = np.full(starts.shape[1], block)
    lengths[-1] = count - block * (len(lengths) - 1)
    means: FloatArray = (sums[starts + lengths] - sums[starts]).sum(axis=1) / count
    return means


def _series_block(count: int, alike: float) -> int:
    """Return how many neighbours are drawn together of a series whose `inflation` is known."""
    return max(_block_length(count), min(count // 4, math.ceil(_BLOCK_INFLATION * alike)))


def _interval(value: float, drawn: FloatArray, confidence: float) -> Interval:
    low, high = np.percentile(drawn, (50 * (1 - confidence), 50 * (1 + confidence)))
    return Interval(value, float(low), float(high), confidence)
