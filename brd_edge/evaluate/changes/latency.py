"""The latency of an engine in two runs: timed now in turns, or taken from what both recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brd_edge.evaluate.benchmark.entries import EngineEntry
from brd_edge.runtime.compare import Open, compare_latency, frames_by_turn
from brd_edge.runtime.engine import open_engine
from brd_edge.runtime.percentiles import percentile_intervals
from brd_edge.runtime.statistics import Interval, Verdict, judge_ratio, ratio_of_medians

__all__ = ["SESSION_ALLOWANCE", "LatencyChange", "recorded_change", "timed_change"]

SESSION_ALLOWANCE = 0.1
"""By what share two sessions may differ that timed the same engine on the same machine.

Of the 190 pairs among 20 sessions of one engine in `benchmarks/results/verdicts.json`, nine in ten differ by less.
"""


@dataclass(frozen=True)
class LatencyChange:
    """What became of an engine's latency from A to B.

    Attributes:
        verdict: `"faster"`, `"slower"`, `"equivalent"` or `"undecided"`; None where it was not compared.
        before_ms: Median of A, in milliseconds.
        after_ms: Median of B.
        ratio: B / A with its 95 % interval; of what was recorded, with `SESSION_ALLOWANCE` in it.
        equivalence: The same with the 90 % interval, which two one-sided tests at 5 % compare with the margin.
        margin: Largest difference that counts as none, as a share.
        warnings: What may have disturbed the measurement, a sentence each.
        reason: Why it was not compared, or could not be judged.
    """

    verdict: Verdict | None
    before_ms: float | None = None
    after_ms: float | None = None
    ratio: Interval | None = None
    equivalence: Interval | None = None
    margin: float | None = None
    warnings: tuple[str, ...] = ()
    reason: str = ""


def timed_change(
    before: Path,
    after: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    threads: int | None,
    margin: float,
    budget_s: float,
) -> LatencyChange:
    """Time both engines in turns, with a control of A against itself (`brd_edge.runtime.compare`).

    Args:
        before: Directory of A's engine.
        after: Directory of B's.
        frames: What both are timed on, turn by turn: at least one, uint8 (H, W, 3) of the contracts' size.
        threads: Threads of the runtime; None leaves the choice to it.
        margin: Largest difference that counts as none, as a share above 0.
        budget_s: Seconds for all of it, above 0.

    Raises:
        EngineError: An engine is not valid or cannot be run.
        RuntimeMissingError: The runtime or its hardware is missing.
    """
    current, on_turn = frames_by_turn(frames)

    def opener(directory: Path) -> Open:
        @contextmanager
        def opened() -> Iterator[Callable[[], object]]:
            with open_engine(directory, threads=threads) as runner:
                yield lambda: runner.infer(current())

        return opened

    found = compare_latency(opener(before), opener(after), margin=margin, budget_s=budget_s, on_turn=on_turn)
    before_ms, after_ms = (float(np.median(np.concatenate(found.samples_ms[key]))) for key in ("a", "b"))
    comparison = found.comparison
    return LatencyChange(
        comparison.verdict,
        before_ms,
        after_ms,
        comparison.ratio,
        comparison.equivalence,
        margin,
        found.warnings,
    )


def recorded_change(before: EngineEntry, after: EngineEntry, *, margin: float, machine: str = "") -> LatencyChange:
    """Compare what both runs recorded; the sessions were not paired, so this sees less than `timed_change`.

    The intervals within the sessions do not know how sessions differ from each other: both their ends are moved
    outwards by `SESSION_ALLOWANCE` before anything is judged.

    Args:
        before: The engine's entry in A's benchmark.
        after: The same in B's.
        margin: Largest difference that counts as none, as a share above 0.
        machine: What differs in the machines; then nothing is judged.
    """
    if not before.samples_ms or not after.samples_ms:
        missing = "neither" if not before.samples_ms and not after.samples_ms else "only one"
        return LatencyChange(None, reason=f"{missing} of the runs recorded it")
    samples = {"A": before.samples_ms, "B": after.samples_ms}
    few = [side for side, times in samples.items() if not percentile_intervals(times, (50,))[0].finite]
    if few:
        counts = " and ".join(f"{side} recorded {len(samples[side])}" for side in few)
        return LatencyChange(None, reason=f"too few times to tell how sure their median is ({counts})")
    ratio, equivalence = map(_with_allowance, ratio_of_medians(before.samples_ms, after.samples_ms))
    warnings = [
        f"{side}: {text}"
        for side, entry in (("A", before), ("B", after))
        for text in (entry.latency_ms.warnings if entry.latency_ms else ())
    ]
    return LatencyChange(
        "undecided" if machine else judge_ratio(ratio, equivalence, margin=margin),
        float(np.median(before.samples_ms)),
        float(np.median(after.samples_ms)),
        ratio,
        equivalence,
        margin,
        tuple(warnings),
        machine,
    )


def _with_allowance(ratio: Interval) -> Interval:
    allowed = 1 + SESSION_ALLOWANCE
    return Interval(ratio.value, ratio.low / allowed, ratio.high * allowed, ratio.confidence)
