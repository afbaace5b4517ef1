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
_WINDOW_FRAMES = 4
"""Frames of each stream that a window is as long as, at least."""
_FRAMES_MIN = 3 * _WINDOW_FRAMES
"""Frames that each stream does whatever they cost: fewer windows say next to nothing of how certain the rate is."""


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        rate_hz: Frames a second of all streams together, with its 95 % interval over windows of time.
        streams: Streams at once.
        frames: Frames that were done while all streams ran.
        duration_s: Seconds in which all streams ran.
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

    They run until the budget is spent and each has done several frames, so that a slow call may exceed the budget.

    Args:
        open_call: Opens an engine anew and yields a call that returns only when its work is done; it is called
            once in the thread of each stream. Engines with one thread each leave the choice of what runs to us.
        streams: Streams at once, at least 1.
        budget_s: Seconds to run for, above 0, unless frames are slow; warm-up comes before.

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

    def run(times: list[float]) -> None:
        try:
            with open_call() as call:
                warm_up(call, least=_WARMUP_MIN, budget_s=_WARM_S)
                start.wait()
                times.append(time.perf_counter())
                # none stops before all have enough: what the others do alone is not what they do side by side
                while not failed and (times[-1] < times[0] + budget_s or min(map(len, done)) <= _FRAMES_MIN):
                    call()
                    times.append(time.perf_counter())
        except BrokenBarrierError:
            return
        except BaseException as error:  # a thread cannot raise; the caller's thread does
            failed.append(error)
            start.abort()

    threads = [Thread(target=run, args=(times,), daemon=True) for times in done]
    with collector_off():
        for thread in threads:
            thread.start()
        before = read_clocks()
        with suppress(BrokenBarrierError):
            start.wait()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    warnings = clock_warnings(before, read_clocks()) + gpu_warnings(read_gpus())
    return _summarise(done, warnings)


def _summarise(done: list[list[float]], warnings: list[str]) -> Throughput:
    """Count what was done in windows of the time in which all streams ran; a frame counts where it was worked on.

    Counted where it ends, a frame that is under way when time is up would be lost, which matters where frames are few.

    Args:
        done: For each stream, when it began and when each of its frames ended, in seconds.
        warnings: What may have disturbed the measurement.
    """
    begun, ended = max(times[0] for times in done), min(times[-1] for times in done)
    windows = max(1, min(_WINDOWS, sum(len(times) - 1 for times in done) // (_WINDOW_FRAMES * len(done))))
    edges = np.linspace(begun, ended, windows + 1)
    work = np.sum([np.interp(edges, times, np.arange(len(times))) for times in done], axis=0)
    windows_hz = np.diff(work) / np.diff(edges)
    frames = sum(begun < end <= ended for times in done for end in times[1:])
    return Throughput(
        mean_interval(windows_hz), len(done), frames, ended - begun, tuple(windows_hz.tolist()), tuple(warnings)
    )
