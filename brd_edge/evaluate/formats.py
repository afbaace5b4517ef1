"""How numbers and names are written for people, in the report and in the terminal alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "MISSING",
    "agreement_percent",
    "duration",
    "engine_labels",
    "latency_digits",
    "megabytes",
    "milliseconds",
    "milliseconds_interval",
    "one_line",
    "percent",
    "points",
    "quantity",
    "target_of",
]

MISSING = "–"  # noqa: RUF001 (an en dash, not a hyphen: it stands in columns of numbers)


def percent(fraction: float | None, *, digits: int = 1, missing: str = MISSING) -> str:
    """Write a fraction (0 to 1) as a percentage without its sign: `0.6123` gives `"61.2"`."""
    return missing if _absent(fraction) else f"{100 * float(fraction or 0):.{digits}f}"


def agreement_percent(fraction: float | None, *, missing: str = MISSING) -> str:
    """Write an agreement as a percentage with two digits; what is not all does not look as if it were.

    Example:
        >>> agreement_percent(0.9999992)
        '>99.99'
    """
    almost = fraction is not None and 0.99995 <= fraction < 1
    return ">99.99" if almost else percent(fraction, digits=2, missing=missing)


def points(difference: float | None, *, digits: int = 1, missing: str = MISSING) -> str:
    """Write a difference of two fractions in percentage points, with a plus or a minus sign: `0.052` gives `"+5.2"`."""
    if _absent(difference):
        return missing
    rounded = round(100 * float(difference or 0), digits)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"  # noqa: RUF001 (a minus sign as wide as the plus)
    return f"{sign}{abs(rounded):.{digits}f}"


def latency_digits(latencies_ms: Iterable[float | None]) -> int:
    """Return how many decimals a column of latencies needs, so that the smallest keeps three digits."""
    smallest = min((float(value) for value in latencies_ms if not _absent(value) and value is not None), default=10.0)
    return 1 if smallest >= 10 else 2 if smallest >= 1 else 3


def milliseconds(latency_ms: float | None, *, digits: int = 1, missing: str = MISSING) -> str:
    """Write a latency in milliseconds, without its unit."""
    return missing if _absent(latency_ms) else f"{float(latency_ms or 0):.{digits}f}"


def milliseconds_interval(ends: Sequence[float | None] | None, *, digits: int = 1) -> str:
    """Write the interval of a latency, such as `"4.41 to 4.60"`, without its unit.

    An upper end that the samples cannot show gives `"from 4.41"`; an interval that is not known, nothing.
    """
    if ends is None or _absent(ends[0]):
        return ""
    low, high = (milliseconds(end, digits=digits) for end in ends)
    return f"from {low}" if high == MISSING else f"{low} to {high}"


def megabytes(size_bytes: float | None, *, missing: str = MISSING) -> str:
    """Write a size in megabytes (10^6 bytes), without its unit: `4_410_000` gives `"4.4"`."""
    if _absent(size_bytes):
        return missing
    megabyte = float(size_bytes or 0) / 1e6
    return f"{megabyte:.1f}" if megabyte >= 1 else f"{megabyte:.2f}"


def quantity(count: float | None, *, missing: str = MISSING) -> str:
    """Write a large count with three digits and its magnitude: `1_130_000` gives `"1.13 M"`."""
    if _absent(count):
        return missing
    value = float(count or 0)
    for magnitude, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= magnitude:
            scaled = value / magnitude
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float | None, *, missing: str = MISSING) -> str:
    """Write a length of time: `"0.4 s"`, `"12 s"`, `"1 min 20 s"`, `"2 h 05 min"`."""
    if _absent(seconds):
        return missing
    value = float(seconds or 0)
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def target_of(engine: Mapping[str, Any]) -> str:
    """Return an engine's target, with how many frames it takes at once where that are several."""
    target = str(engine.get("target") or "?")
    batch_max = engine.get("batch_max") or 1
    return target if batch_max == 1 else f"{target}, batch {batch_max}"


def engine_labels(engines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each engine by runtime and precision, and by its target where that alone is ambiguous."""
    short = [f"{engine.get('runtime', '?')} {engine.get('precision', '?')}" for engine in engines]
    times = Counter(short)
    return [
        f"{label} ({target_of(engine)})" if times[label] > 1 else label
        for label, engine in zip(short, engines, strict=True)
    ]


def one_line(text: object) -> str:
    """Return `text` on one line, without control characters, so that it cannot disturb a terminal or a table."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _absent(value: float | None) -> bool:
    return value is None or not math.isfinite(value)
