"""Latency of one call: warm-up, samples, percentiles; every sample is kept.

The clock is the process's own (`time.perf_counter_ns`) around a call that returns only when its
result is ready, as every runner's `infer` does. The garbage collector is off while timing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from brd_edge.runtime.errors import EngineError

__all__ = ["Latency", "Stopped", "latency_of", "measure_latency"]

Stopped = Literal["samples", "budget"]


@dataclass(frozen=True)
class Latency:
    """What was measured, in milliseconds a call.

    Attributes:
        p50_ms: Median.
        p95_ms: 95th percentile, linear between samples.
        p99_ms: 99th percentile, linear between samples.
        mean_ms: Mean.
        min_ms: Smallest sample.
        n: Number of samples.
        warmup_n: Calls made before the first sample.
        samples_ms: Every sample, in the order taken.
        stopped: Why sampling ended: the wanted number of `"samples"`, or the time `"budget"`.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    n: int
    warmup_n: int
    samples_ms: tuple[float, ...]
    stopped: Stopped

    def to_json(self) -> dict[str, Any]:
        """Return the `latency_ms` entry of a benchmark: p50, p95, p99, mean and min in ms, and n."""
        return {
            "p50": self.p50_ms,
            "p95": self.p95_ms,
            "p99": self.p99_ms,
            "mean": self.mean_ms,
            "min": self.min_ms,
            "n": self.n,
        }


def latency_of(samples_ms: Sequence[float], *, warmup_n: int, stopped: Stopped) -> Latency:
    """Summarise samples.

    Args:
        samples_ms: Milliseconds a call, in the order taken; at least one.
        warmup_n: Calls made before the first sample.
        stopped: Why sampling ended.

    Raises:
        EngineError: There is no sample.
    """
    if not samples_ms:
        raise EngineError("latency: expected at least 1 sample, got none")
    p50, p95, p99 = (float(value) for value in np.percentile(samples_ms, [50, 95, 99]))
    return Latency(
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(np.mean(samples_ms)),
        min_ms=float(min(samples_ms)),
        n=len(samples_ms),
        warmup_n=warmup_n,
        samples_ms=tuple(float(sample) for sample in samples_ms),
        stopped=stopped,
    )


def measure_latency(
    call: Callable[[], object],
    *,
    warmup_min: int = 5,
    samples_min: int = 30,
    samples_max: int = 300,
    budget_s: float = 10.0,
) -> Latency:
    """Time `call` again and again.

    Warm-up goes on until `warmup_min` calls are made and a twentieth of the budget is spent, so
    that a fast engine reaches its steady clock too. Sampling ends at `samples_max`, or when the
    budget is spent and `samples_min` are taken: a slow call may therefore exceed the budget.

    Args:
        call: What to time; it must return only when its work is done.
        warmup_min: Calls before the first sample, at least 0.
        samples_min: Samples that are taken whatever they cost, at least 1.
        samples_max: Samples after which to stop, at least `samples_min`.
        budget_s: Seconds for warm-up and samples together, above 0.

    Raises:
        EngineError: An argument is out of its range.

    Example:
        >>> latency = measure_latency(lambda: runner.infer(frame))
        >>> latency.p50_ms
        12.3
    """
    if warmup_min < 0 or not 1 <= samples_min <= samples_max or budget_s <= 0:
        raise EngineError(
            "latency: expected warmup_min >= 0, 1 <= samples_min <= samples_max and budget_s > 0, "
            f"got {warmup_min}, {samples_min}, {samples_max} and {budget_s}"
        )
    samples_ms: list[float] = []
    clock = time.perf_counter_ns
    with _no_garbage_collection():
        start = clock()
        warm, end = start + int(budget_s * 1e9 / 20), start + int(budget_s * 1e9)
        warmup_n = 0
        while warmup_n < warmup_min or (warmup_min and clock() < warm):
            call()
            warmup_n += 1
        while len(samples_ms) < samples_max:
            before = clock()
            if before >= end and len(samples_ms) >= samples_min:
                break
            call()
            samples_ms.append((clock() - before) / 1e6)
    return latency_of(samples_ms, warmup_n=warmup_n, stopped="samples" if len(samples_ms) == samples_max else "budget")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect once, then keep the collector from running inside a sample; leave it as it was found."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
