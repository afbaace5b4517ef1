"""How fast an engine is; part of the stage `benchmark`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brd_edge.runtime.engine import Runner, open_engine
from brd_edge.runtime.latency import Latency, Narrow, in_rotation, measure_latency
from brd_edge.runtime.throughput import measure_throughput

if TYPE_CHECKING:
    import numpy.typing as npt

    from brd_edge.recipe import BenchmarkSection

__all__ = ["time_engine"]

_NARROW_P95 = 0.02


def time_engine(
    directory: Path, runner: Runner, frames: Sequence[npt.NDArray[np.uint8]], settings: BenchmarkSection, *, gated: bool
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float64]]]:
    """Time an engine from frame to class map, the engine alone, and, where the recipe asks for it, many at once.

    A class map may take longer the more boundaries a picture has: the frames take turns, call by call. The engine alone
    does the same whatever it sees, and has the first one.

    Args:
        directory: The engine's directory.
        runner: The engine, opened.
        frames: At least one, uint8 (H, W, 3) of the contract's size.
        settings: How the recipe wants it measured.
        gated: Whether p95 has a limit: then its interval has to be narrow too before the timing ends.

    Returns:
        The entries `latency_ms`, `samples_ms`, `engine_latency_ms` and `throughput` of `benchmark.json`, and every
        time as `latency.npz` names it.
    """

    def measured(call: Callable[[], object], *, count: int, p95: float | None) -> Latency:
        return measure_latency(
            call,
            samples_min=settings.samples_min,
            samples_max=settings.samples_max,
            budget_s=settings.budget_s,
            narrow=Narrow(settings.narrow_after_s, settings.narrow_after_samples, p95=p95),
            frames=count,
        )

    calls = [partial(runner.infer, frame) for frame in frames]
    whole = measured(in_rotation(calls), count=len(frames), p95=_NARROW_P95 if gated else None)
    alone = measured(runner.bind(frames[0]), count=1, p95=None)
    throughput = None
    if settings.saturated:

        @contextmanager
        def opened() -> Iterator[Callable[[], object]]:
            with open_engine(directory, threads=1) as own:
                yield in_rotation([partial(own.infer, each) for each in frames])

        throughput = measure_throughput(opened, streams=settings.threads, budget_s=settings.budget_s)
    times = {"frame_to_class_map": np.array(whole.samples_ms), "engine_alone": np.array(alone.samples_ms)}
    if throughput is not None:
        times["throughput"] = np.array(throughput.windows_hz)
    entries = {
        "latency_ms": whole.to_json(),
        "samples_ms": whole.samples_ms,
        "engine_latency_ms": alone.to_json(),
        "throughput": None if throughput is None else throughput.to_json(),
    }
    return entries, times
