"""Latency of one call: warm-up until stable, samples until the interval is narrow; every sample is kept.

The clock is the process's own (`time.perf_counter_ns`) around a call that returns only when its
result is ready, as every runner's `infer` does. The garbage collector is off while timing.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import numpy as np

from brd_edge.runtime.clocks import ClockState, clock_warnings, read_clocks
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.gpus import gpu_warnings, read_gpus
from brd_edge.runtime.percentiles import percentile_intervals
from brd_edge.runtime.statistics import Interval, drift_ratio, mean_interval

__all__ = ["Latency", "Narrow", "Stopped", "collector_off", "in_rotation", "latency_of", "measure_latency", "warm_up"]

Stopped = Literal["interval", "samples", "budget"]

_PERCENTS = (50.0, 90.0, 95.0, 99.0)
_WARM_WINDOW = 5
_WARM_TOLERANCE = 0.02
_WARM_SHARE = 0.2
_WARM_LEAST_S = 0.3
_CHECK_EVERY = 25
_READ_EVERY_NS = 1_000_000_000
_SLOW_MEDIAN = 1.5
_DRIFT = 0.05


@dataclass(frozen=True)
class Latency:
    """What was measured, in milliseconds a call.

    Attributes:
        p50: Median, with its 95 % interval, as the other percentiles; linear between samples. An upper end is infinite
            where the samples are too few to have one.
        p90: 90th percentile.
        p95: 95th percentile.
        p99: 99th percentile.
        mean: Mean, with its 95 % interval.
        min_ms: Smallest sample.
        n: Number of samples.
        warmup_n: Calls made before the first sample.
        warm: Whether the warm-up ended because calls took alike, not because its time was over.
        drift: Median of the last third of the samples over that of the first third.
        samples_ms: Every sample, in the order taken.
        frames: Number of frames that took turns, call by call.
        stopped: Why sampling ended: the `"interval"` was narrow enough, the wanted number of `"samples"` was taken, or
            the time `"budget"` was spent.
        warnings: What may have disturbed the measurement, a sentence each.
    """

    p50: Interval
    p90: Interval
    p95: Interval
    p99: Interval
    mean: Interval
    min_ms: float
    n: int
    warmup_n: int
    warm: bool
    drift: float
    samples_ms: tuple[float, ...]
    frames: int
    stopped: Stopped
    warnings: tuple[str, ...]

    @property
    def p50_ms(self) -> float:
        """The median."""
        return self.p50.value

    @property
    def p95_ms(self) -> float:
        """The 95th percentile."""
        return self.p95.value

    @property
    def throughput_hz(self) -> Interval:
        """Calls a second, one after the other, with the interval that follows from the mean's."""
        value, high, low = (
            1000 / ms if ms > 0 else math.inf for ms in (self.mean.value, self.mean.low, self.mean.high)
        )
        return Interval(value, low, high, self.mean.confidence)

    def to_json(self) -> dict[str, Any]:
        """Return the `latency_ms` entry of a benchmark: figures, their intervals, and how they came about.

        An upper end that there is none of is None.
        """
        percentiles = {"p50": self.p50, "p90": self.p90, "p95": self.p95, "p99": self.p99}
        figures = {**percentiles, "mean": self.mean, "throughput_hz": self.throughput_hz}
        return {
            **{name: item.value for name, item in figures.items()},
            "min": self.min_ms,
            "intervals": {
                name: [item.low, item.high if math.isfinite(item.high) else None] for name, item in figures.items()
            },
            "n": self.n,
            "frames": self.frames,
            "warmup_n": self.warmup_n,
            "warm": self.warm,
            "drift": self.drift,
            "stopped": self.stopped,
            "warnings": list(self.warnings),
        }


def latency_of(
    samples_ms: Sequence[float],
    *,
    warmup_n: int,
    stopped: Stopped,
    frames: int = 1,
    warm: bool = True,
    warnings: Sequence[str] = (),
) -> Latency:
    """Summarise samples.

    Args:
        samples_ms: Milliseconds a call, in the order taken; at least one.
        warmup_n: Calls made before the first sample.
        stopped: Why sampling ended.
        frames: Number of frames that took turns, at least 1.
        warm: Whether calls took alike at the end of the warm-up.
        warnings: What is known to have disturbed the measurement.

    Raises:
        EngineError: There is no sample.
    """
    if not samples_ms:
        raise EngineError("latency: expected at least 1 sample, got none")
    p50, p90, p95, p99 = percentile_intervals(samples_ms, _PERCENTS)
    drift = drift_ratio(samples_ms, frames)
    found = list(warnings)
    if not warm:
        found.append("the calls still became faster or slower when the time for warming up was over")
    if abs(drift - 1) > _DRIFT:
        direction = "slower" if drift > 1 else "faster"
        found.append(f"the last third of the samples was {100 * abs(drift - 1):.0f} % {direction} than the first")
    slow = _median_over_fastest(samples_ms, frames)
    if slow > _SLOW_MEDIAN:
        found.append(f"the median is {slow:.1f} times the fastest call: something else may have run")
    return Latency(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        mean=mean_interval(samples_ms),
        min_ms=float(min(samples_ms)),
        n=len(samples_ms),
        warmup_n=warmup_n,
        warm=warm,
        drift=drift,
        samples_ms=tuple(float(sample) for sample in samples_ms),
        frames=frames,
        stopped=stopped,
        warnings=tuple(found),
    )


@dataclass(frozen=True)
class Narrow:
    """When intervals are narrow enough to end a measurement before its time.

    What happens every few seconds only does not show in a few fast calls, however alike they are: so many seconds and
    samples are taken first.

    Attributes:
        after_s: Seconds of samples before which no interval ends it.
        after_samples: Samples before which no interval ends it.
        p50: Half the width of the median's interval, as a share of the median, that is narrow enough; 0 never is.
        p95: The same of the 95th percentile, which has to be narrow as well; None: it is not looked at.
    """

    after_s: float = 3.0
    after_samples: int = 300
    p50: float = 0.005
    p95: float | None = None

    def holds(self, samples_ms: Sequence[float]) -> bool:
        """Tell whether the intervals of these samples, in the order taken, are narrow enough."""
        if not self.p50 or len(samples_ms) < self.after_samples or sum(samples_ms) < 1000 * self.after_s:
            return False
        middle, late = percentile_intervals(samples_ms, (50.0, 95.0))
        return middle.relative_width < self.p50 and (self.p95 is None or late.relative_width < self.p95)


def measure_latency(
    call: Callable[[], object],
    *,
    warmup_min: int = 5,
    samples_min: int = 30,
    samples_max: int = 10_000,
    budget_s: float = 10.0,
    narrow: Narrow | None = None,
    frames: int = 1,
) -> Latency:
    """Time `call` again and again.

    Warm-up goes on until calls take alike, for 0.3 s at least and a fifth of the budget at most, but at least
    `warmup_min` calls.
    Sampling ends when the intervals are narrow enough, at `samples_max`, or when the budget is spent; in each case
    `samples_min` are taken, so that a slow call may exceed the budget.

    Args:
        call: What to time; it must return only when its work is done.
        warmup_min: Calls before the first sample, at least 0.
        samples_min: Samples that are taken whatever they cost, at least 1.
        samples_max: Samples after which to stop, at least `samples_min`.
        budget_s: Seconds for warm-up and samples together, above 0.
        narrow: Which intervals are narrow enough; `Narrow()` when not given.
        frames: Number of frames that take turns in `call`, at least 1 (`in_rotation`): how long a call takes may
            depend on the frame, and is compared with that of the same frames.

    Raises:
        EngineError: An argument is out of its range.

    Example:
        >>> latency = measure_latency(lambda: runner.infer(frame))
        >>> latency.p50_ms
        12.3
    """
    if warmup_min < 0 or not 1 <= samples_min <= samples_max or budget_s <= 0 or frames < 1:
        raise EngineError(
            "latency: expected warmup_min >= 0, 1 <= samples_min <= samples_max, budget_s > 0 and frames >= 1, "
            f"got {warmup_min}, {samples_min}, {samples_max}, {budget_s} and {frames}"
        )
    end = time.perf_counter_ns() + int(budget_s * 1e9)
    with collector_off():
        warmup_n, warm = warm_up(
            call, least=warmup_min, least_s=_WARM_LEAST_S, budget_s=_WARM_SHARE * budget_s, frames=frames
        )
        before = read_clocks()
        between: list[ClockState] = []
        samples_ms, stopped = _sample(call, samples_min, samples_max, end, narrow or Narrow(), between)
        warnings = clock_warnings(before, read_clocks(), between) + gpu_warnings(read_gpus(busy=call))
    return latency_of(samples_ms, warmup_n=warmup_n, stopped=stopped, frames=frames, warm=warm, warnings=warnings)


def in_rotation(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a call that makes one of several calls, the next one each time.

    Args:
        calls: At least one, such as an engine's on different frames.
    """
    if len(calls) == 1:
        return calls[0]
    turns = cycle(calls)

    def call() -> object:
        return next(turns)()

    return call


def warm_up(
    call: Callable[[], object], *, least: int, budget_s: float, least_s: float = 0.0, frames: int = 1
) -> tuple[int, bool]:
    """Call until the medians of two windows of calls, one after the other, differ by less than 2 %.

    Args:
        call: What to warm up.
        least: Fewest calls; 0 makes none.
        budget_s: Seconds after which to stop all the same.
        least_s: Fewest seconds, where the budget allows them: what ran before leaves caches, clocks and threads
            as it wants them, and a few fast calls do not show it.
        frames: Number of frames that take turns in `call`; a window has all of them.

    Returns:
        The number of calls, and whether they took alike at the end.
    """
    if least == 0:
        return 0, True
    window = frames * -(-_WARM_WINDOW // frames)
    times: list[float] = []
    start = time.perf_counter()
    end, early = start + budget_s, start + least_s
    while True:
        before = time.perf_counter()
        call()
        now = time.perf_counter()
        times.append(now - before)
        if len(times) < least:
            continue
        if len(times) >= 2 * window and now >= early:
            last, earlier = np.median(times[-window:]), np.median(times[-2 * window : -window])
            if abs(last - earlier) <= _WARM_TOLERANCE * earlier:
                return len(times), True
        if now >= end:
            return len(times), False


def _median_over_fastest(samples_ms: Sequence[float], frames: int) -> float:
    """Return how many times its fastest call the median of a frame is, in the median over the frames."""
    each = [np.asarray(samples_ms[place::frames]) for place in range(min(frames, len(samples_ms)))]
    return float(np.median([np.median(times) / times.min() if times.min() > 0 else 1.0 for times in each]))


def _sample(
    call: Callable[[], object],
    samples_min: int,
    samples_max: int,
    end_ns: int,
    narrow: Narrow,
    between: list[ClockState],
) -> tuple[list[float], Stopped]:
    samples_ms: list[float] = []
    clock = time.perf_counter_ns
    # looking takes the time of a call or so: less often where there are many samples
    look_at, read_at_ns = _CHECK_EVERY, clock() + _READ_EVERY_NS
    while len(samples_ms) < samples_max:
        before = clock()
        if len(samples_ms) >= samples_min:
            if before >= end_ns:
                return samples_ms, "budget"
            if len(samples_ms) >= look_at:
                if narrow.holds(samples_ms):
                    return samples_ms, "interval"
                look_at = len(samples_ms) + max(_CHECK_EVERY, len(samples_ms) // 10)
                if before >= read_at_ns:
                    between.append(read_clocks())
                    read_at_ns = before + _READ_EVERY_NS
                before = clock()
        call()
        samples_ms.append((clock() - before) / 1e6)
    return samples_ms, "samples"


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect once, then keep the collector from running inside a sample; leave it as it was found."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
