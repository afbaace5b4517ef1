"""Percentiles of times that were taken one after the other, with intervals that hold in the tails too.

The ends are order statistics: which of n independent samples lie around a percentile is a matter of the binomial
distribution alone, whatever the times are distributed like (David and Nagaraja, 2003, section 7.1). A bootstrap never
draws a value above the largest sample, so its interval of a tail percentile is too short where samples are few; this
one has no upper end there. Neighbours are not independent: n is first reduced to the number of independent samples
that would tell as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from brd_edge.runtime.statistics import FloatArray, Interval, inflation

__all__ = ["percentile_intervals"]


def percentile_intervals(
    samples: Sequence[float] | FloatArray, percents: Sequence[float], *, confidence: float = 0.95
) -> list[Interval]:
    """Return percentiles of a series with their intervals.

    Args:
        samples: The series, in the order taken; at least one value, none below 0.
        percents: Which percentiles, above 0 and below 100; linear between samples.
        confidence: Of the intervals, 0 to 1; they are conservative.

    Returns:
        One interval a percentile: its lower end is 0 and its upper end infinite where the samples are too few to
        have one. A 95 % interval's upper end takes 6 independent samples for the median, 36 for p90, 72 for p95 and
        368 for p99.
    """
    values = np.asarray(samples, np.float64)
    ordered = np.sort(values)
    # waits that last for many samples show in the tail, slow changes of all samples in the middle: the worse counts
    middle = _dependence(values, float(np.median(values)))
    found = []
    for percent, value in zip(percents, np.percentile(values, percents), strict=True):
        independent = max(1, int(len(values) / max(middle, _dependence(values, float(value)))))
        low, high = _places(independent, percent / 100, confidence)
        # both are moved outwards to the places among all samples
        first = math.floor(low * (len(values) + 1) / (independent + 1))
        last = math.ceil(high * len(values) / independent)
        found.append(
            Interval(
                float(value),
                min(float(value), float(ordered[first - 1])) if first > 0 else 0.0,
                max(float(value), float(ordered[last - 1])) if high <= independent else math.inf,
                confidence,
            )
        )
    return found


def _dependence(values: FloatArray, level: float) -> float:
    """Return how many samples tell as much as an independent one about how often the level is exceeded."""
    return inflation((values > level).astype(np.float64))


def _places(count: int, share: float, confidence: float) -> tuple[int, int]:
    """Return which of the ordered samples, from 1, enclose the quantile; 0 and count + 1 where there is none."""
    tail = (1 - confidence) / 2
    below = np.arange(count)
    steps = np.log((count - below) / (below + 1)) + math.log(share / (1 - share))
    mass = np.exp(np.concatenate([[0.0], np.cumsum(steps)]) + count * math.log1p(-share))
    # of so many samples below the quantile or fewer
    cumulated = np.cumsum(mass)
    return int(np.searchsorted(cumulated, tail, side="right")), int(np.searchsorted(cumulated, 1 - tail)) + 1
