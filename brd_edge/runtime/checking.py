"""Checks that an engine does on this machine what it did at home: golden frames, and the latency protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.bundle import Bundle
from brd_edge.runtime.engine import open_engine
from brd_edge.runtime.errors import BrdEdgeError
from brd_edge.runtime.latency import Latency, Narrow, in_rotation, measure_latency
from brd_edge.runtime.power import measure_energy
from brd_edge.runtime.throughput import measure_throughput

__all__ = ["Bench", "Checked", "check_engine"]

_ENERGY_S = 1.0
_NARROW_P95 = 0.02


@dataclass(frozen=True)
class Bench:
    """How an engine is timed.

    Attributes:
        threads: Threads of the runtime; None leaves the choice to it.
        samples_min: Fewest timed inferences.
        samples_max: Most timed inferences.
        budget_s: Seconds after which timing stops once `samples_min` is reached.
        engine_alone: Whether to time the engine without what lies around it too.
        streams: Streams for saturated throughput, each with one thread; 0 leaves it out.
        gated: Whether p95 has a limit: then its interval has to be narrow too before timing ends sooner.
    """

    threads: int | None = None
    samples_min: int = 50
    samples_max: int = 10_000
    budget_s: float = 10.0
    engine_alone: bool = False
    streams: int = 0
    gated: bool = False


@dataclass(frozen=True)
class Checked:
    """What came of checking one engine.

    Attributes:
        name: The engine.
        agreement: Smallest share (0 to 1) of a golden frame's pixels that agreed.
        latency_ms: The latency protocol's entry, or None where it was not timed.
        samples_ms: Every sample, in the order taken.
        energy_mj_per_frame: Millijoules of the device per frame, or None where it shows no power rails.
        problem: Why the engine must not be used, or an empty text.
        engine_latency_ms: The latency protocol's entry of the engine alone, or None where that was not wanted.
        throughput: Saturated throughput, or None where that was not wanted.
    """

    name: str
    agreement: float | None
    latency_ms: dict[str, Any] | None
    samples_ms: tuple[float, ...]
    energy_mj_per_frame: float | None
    problem: str
    engine_latency_ms: dict[str, Any] | None = None
    throughput: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome without the single samples, as JSON types."""
        return {
            "name": self.name,
            "agreement": self.agreement,
            "latency_ms": self.latency_ms,
            "engine_latency_ms": self.engine_latency_ms,
            "throughput": self.throughput,
            "energy_mj_per_frame": self.energy_mj_per_frame,
            "problem": self.problem,
        }


def check_engine(
    bundle: Bundle, name: str, directory: Path, *, bench: Bench | None, say: Callable[[str], None] = lambda _line: None
) -> Checked:
    """Run an engine on the golden frames and time it.

    Args:
        bundle: The verified bundle.
        name: The engine.
        directory: Its directory; an engine that was built here does not lie in the bundle.
        bench: How to time it, or None to run the golden frames only.
        say: Is told what happens.

    Returns:
        The outcome; what fails is a `problem` in it, not an exception.
    """
    say(f"{name}: golden frames")
    golden = [bundle.golden(frame) for frame in bundle.manifest.golden_frames]
    agreement: float | None = None
    try:
        threads = bench.threads if bench is not None else None
        with open_engine(directory, contract=bundle.manifest.contract, threads=threads) as runner:
            shares = [float(np.mean(runner.infer(frame) == expected)) for frame, expected in golden]
            agreement = min(shares)
            required = bundle.manifest.engines[name].agreement_min
            if agreement < required:
                worst = bundle.manifest.golden_frames[int(np.argmin(shares))]
                problem = (
                    f"golden frame {worst}: {100 * agreement:.3f} % of the pixels agree, "
                    f"{100 * required:g} % are required"
                )
                return Checked(name, agreement, None, (), None, problem)
            if bench is None:
                return Checked(name, agreement, None, (), None, "")
            say(f"{name}: timing, up to {bench.budget_s:.0f} s")
            frames = [frame for frame, _ in golden]
            # a class map may take longer the more boundaries a picture has
            call = in_rotation([partial(runner.infer, frame) for frame in frames])
            latency = _time(call, bench, frames=len(frames), p95=_NARROW_P95 if bench.gated else None)
            count = max(1, int(_ENERGY_S * 1000 / latency.p50_ms))
            energy = measure_energy(lambda: _repeat(call, count))
            alone = _time(runner.bind(frames[0]), bench).to_json() if bench.engine_alone else None
        throughput = _saturate(directory, frames, bench) if bench.streams else None
    except BrdEdgeError as error:
        return Checked(name, agreement, None, (), None, str(error))
    per_frame = None if energy is None else 1000 * energy.joules / count
    return Checked(
        name,
        agreement,
        latency.to_json(),
        latency.samples_ms,
        per_frame,
        "",
        engine_latency_ms=alone,
        throughput=throughput,
    )


def _time(call: Callable[[], object], bench: Bench, *, frames: int = 1, p95: float | None = None) -> Latency:
    return measure_latency(
        call,
        samples_min=bench.samples_min,
        samples_max=bench.samples_max,
        budget_s=bench.budget_s,
        narrow=Narrow(p95=p95),
        frames=frames,
    )


def _saturate(directory: Path, frames: Sequence[npt.NDArray[np.uint8]], bench: Bench) -> dict[str, Any]:
    @contextmanager
    def opened() -> Iterator[Callable[[], object]]:
        with open_engine(directory, threads=1) as runner:
            yield in_rotation([partial(runner.infer, frame) for frame in frames])

    return measure_throughput(opened, streams=bench.streams, budget_s=bench.budget_s).to_json()


def _repeat(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()
