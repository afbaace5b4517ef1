"""Means, deviations and paired differences over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["paired_difference", "summarise"]


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return `mean` (null without values), `deviation` (of a sample; null below two values) and `count`."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "count": len(values),
    }


def paired_difference(
    values: Mapping[int, float], control: Mapping[int, float], confidence: float = 0.95
) -> dict[str, Any] | None:
    """Return the mean difference over common seeds with Student's interval for paired samples.

    Args:
        values: Score by seed.
        control: The control's score by seed.
        confidence: Of the interval, 0 to 1.

    Returns:
        `mean`, `low`, `high` (null with fewer than two common seeds) and `seeds`; nothing without a common seed.
    """
    from scipy.stats import t

    seeds = sorted(values.keys() & control.keys())
    if not seeds:
        return None
    differences = [values[seed] - control[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(seeds) < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": seeds}
    spread = statistics.stdev(differences) / math.sqrt(len(seeds))
    half = float(t.ppf((1 + confidence) / 2, len(seeds) - 1)) * spread
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": seeds}
