"""Saturated throughput: as many streams at once as it takes to keep the machine busy.

Latency is of one frame at a time; a server or a multi-camera device wants frames a second instead. Every stream
has an engine of its own, because engines are not thread-safe; the runtimes let go of the interpreter while they work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError, Thread
from typing import Any

import numpy as np

from brd_edge.runtime.clocks import clock_warnings, read_clocks
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.gpus import gpu_warnings, read_gpus
from brd_edge.runtime.latency import collector_off, warm_up
from brd_edge.runtime.statistics import Interval, mean_interval

__all__ = ["Throughput", "measure_throughput"]

_WARMUP_MIN = 5
_WARM_S = 1.0
_WINDOWS = 20


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        rate_hz: Frames a second of all streams together, with its 95 % interval over windows of time.
        streams: Streams at once.
        frames: Frames that were done.
        duration_s: Seconds that it took.
        windows_hz: Frames a second in each window of time, in order.
        warnings: What may have disturbed the measurement, a sentence each.
    """

    rate_hz: Interval
    streams: int
    frames: int
    duration_s: float
    windows_hz: tuple[float, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the `throughput` entry of a benchmark."""
        return {
            "rate_hz": self.rate_hz.value,
            "interval": [self.rate_hz.low, self.rate_hz.high if math.isfinite(self.rate_hz.high) else None],
            "streams": self.streams,
            "frames": self.frames,
            "duration_s": self.duration_s,
            "warnings": list(self.warnings),
        }


def measure_throughput(
    open_call: Callable[[], AbstractContextManager[Callable[[], object]]],
    *,
    streams: int,
    budget_s: float = 10.0,
) -> Throughput:
    """Run streams side by side, each again and again, and count what all of them do.

    Args:
        open_call: Opens an engine anew and yields a call that returns only when its work is done; it is called
            once in the thread of each stream. Engines with one thread each leave the choice of what runs to us.
        streams: Streams at once, at least 1.
        budget_s: Seconds to run for, above 0; warm-up comes before.

    Raises:
        EngineError: An argument is out of its range; or whatever opening and calling raise.

    Example:
        >>> measure_throughput(open_student, streams=8).rate_hz.value
        412.7
    """
    if streams < 1 or budget_s <= 0:
        raise EngineError(f"throughput: expected streams >= 1 and budget_s > 0, got {streams} and {budget_s}")
    start = Barrier(streams + 1)
    done: list[list[float]] = [[] for _ in range(streams)]
    failed: list[BaseException] = []

    def run(ends: list[float]) -> None:
        try:
            with open_call() as call:
                warm_up(call, least=_WARMUP_MIN, budget_s=_WARM_S)
                start.wait()
                until = time.perf_counter() + budget_s
                while time.perf_counter() < until:
                    call()
                    ends.append(time.perf_counter())
        except BrokenBarrierError:
            return
        except BaseException as error:  # a thread cannot raise; the caller's thread does
            failed.append(error)
            start.abort()

    threads = [Thread(target=run, args=(ends,), daemon=True) for ends in done]
    with collector_off():
        for thread in threads:
            thread.start()
        before = read_clocks()
        with suppress(BrokenBarrierError):
            start.wait()
        begun = time.perf_counter()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    warnings = clock_warnings(before, read_clocks()) + gpu_warnings(read_gpus())
    return _summarise(done, begun, budget_s, warnings)


def _summarise(done: list[list[float]], begun: float, budget_s: float, warnings: list[str]) -> Throughput:
    """Count what was done in windows of the time in which all streams ran."""
    ends = np.sort(np.concatenate([np.asarray(times) for times in done])) - begun
    # the window is as long as several frames: a frame that ends just outside of it must not change the rate
    windows = max(1, min(_WINDOWS, int(len(ends) / (4 * len(done)))))
    counts, _ = np.histogram(ends[ends <= budget_s], bins=windows, range=(0.0, budget_s))
    windows_hz = counts * windows / budget_s
    return Throughput(
        mean_interval(windows_hz), len(done), len(ends), float(ends[-1]), tuple(windows_hz.tolist()), tuple(warnings)
    )
