"""How far the verdicts on two engines can be trusted: sessions whose right answer is known.

    python -m benchmarks.verdicts ENGINE [--sessions 20] [--slowdowns 10] [--output FILE]

ENGINE is an engine's directory of a run, of any runtime that is here. In some sessions it is compared with itself, in
others with itself made slower by a given share, by waiting after every call. An engine whose class map is made from
coarse logits is timed alone, as in the zero-cost proof. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tabulate import tabulate

from benchmarks.output import output_file, publish
from brd_edge.environment import describe_environment
from brd_edge.progress import progress_bar
from brd_edge.runtime.compare import compare_latency
from brd_edge.runtime.engine import open_engine, read_engine
from brd_edge.runtime.errors import BrdEdgeError


def slowed(call: Callable[[], object], share: float) -> Callable[[], None]:
    """Return a call that takes longer by a share of what it takes."""

    def run() -> None:
        start = time.perf_counter_ns()
        call()
        end = start + (time.perf_counter_ns() - start) * (1 + share)
        while time.perf_counter_ns() < end:
            pass

    return run


def run_session(engine: Path, share: float, *, threads: int, margin: float, budget_s: float) -> dict[str, Any]:
    """Compare an engine with itself, slowed by a share."""
    info = read_engine(engine)
    contract, alone = info.contract, info.logits is not None
    frame = np.random.default_rng(0).integers(0, 256, (contract.height, contract.width, 3), np.uint8)

    @contextmanager
    def opened() -> Iterator[Callable[[], object]]:
        with open_engine(engine, threads=threads) as runner:
            # noise has boundaries everywhere: a class map from coarse logits would take longer than the engine
            yield runner.bind(frame) if alone else lambda: runner.infer(frame)

    @contextmanager
    def opened_slowed() -> Iterator[Callable[[], object]]:
        with opened() as call:
            yield slowed(call, share) if share else call

    found = compare_latency(opened, opened_slowed, margin=margin, budget_s=budget_s)
    rounds = found.samples_ms["a"]
    p50_ms = float(np.median(np.concatenate(rounds)))
    return {"slowdown": share, "p50_ms": p50_ms, "rounds": len(rounds), **found.to_json()}


def mean_ratio(ratios: Sequence[float]) -> dict[str, float] | None:
    """Return the geometric mean of ratios with its 95 % interval by Student's t; None of fewer than 2.

    Of an engine against itself the mean is 1 unless the protocol favours a place.
    """
    if len(ratios) < 2:
        return None
    logs = np.log(ratios)
    half = float(stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs))
    low, value, high = (float(np.exp(logs.mean() + shift)) for shift in (-half, 0.0, half))
    return {"value": value, "low": low, "high": high, "confidence": 0.95}


def summarise(sessions: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Return a row for each kind of session: slowdown, verdicts, largest half width of an interval, pairs."""
    rows = []
    for share in sorted({session["slowdown"] for session in sessions}):
        found = [session["comparison"] for session in sessions if session["slowdown"] == share]
        verdicts = Counter(item["verdict"] for item in found)
        widths = [(item["ratio"]["high"] - item["ratio"]["low"]) / 2 for item in found]
        rows.append(
            [
                f"{100 * share:g} %",
                len(found),
                *(verdicts[name] for name in ("equivalent", "slower", "faster", "undecided")),
                f"{100 * float(np.median(widths)):.2f} %",
                round(float(np.median([item["pairs"] for item in found]))),
            ]
        )
    return rows


def run_sessions(options: argparse.Namespace, plan: Sequence[float]) -> list[dict[str, Any]]:
    """Run a session for each slowdown of the plan, in random order: neither kind has the quieter time of the day."""
    sessions = []
    with progress_bar(len(plan), "verdicts", unit="session") as bar:
        for place in np.random.default_rng(0).permutation(len(plan)):
            settings = {"threads": options.threads, "margin": options.margin, "budget_s": options.budget}
            sessions.append(run_session(options.engine, plan[place], **settings))
            bar.update(1)
    return sessions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sessions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="such as runs/quickstart/engines/onnxruntime-…")
    parser.add_argument("--sessions", type=int, default=20, help="sessions of the engine with itself")
    parser.add_argument("--slowdowns", type=int, default=10, help="sessions with a planted slowdown")
    parser.add_argument("--share", type=float, default=0.03, help="the slowdown, 0.03 is 3 %%")
    parser.add_argument("--margin", type=float, default=0.01)
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="of one session")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=output_file, metavar="FILE")
    options = parser.parse_args(arguments)
    plan = [0.0] * options.sessions + [options.share] * options.slowdowns
    try:
        info = read_engine(options.engine)
        sessions = run_sessions(options, plan)
    except BrdEdgeError as error:
        print(f"verdicts: error: {error}", file=sys.stderr)
        return error.exit_code
    headers = ["slowdown", "sessions", "equivalent", "slower", "faster", "undecided", "half width", "pairs"]
    print(tabulate(summarise(sessions), headers))
    equal = [session["comparison"]["ratio"]["value"] for session in sessions if session["slowdown"] == 0]
    controls = [session["control"]["ratio"]["value"] for session in sessions]
    ratios = {"sessions": mean_ratio(equal), "controls": mean_ratio(controls)}
    for name, found in ratios.items():
        if found is not None:
            print(f"A/A, mean ratio of {name}: {found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]")
    result = {
        "benchmark": "verdicts",
        "engine": options.engine.name,
        "runtime": info.runtime,
        "runtime_version": info.runtime_version,
        "timed": "frame to class map" if info.logits is None else "engine alone",
        "threads": options.threads,
        "margin": options.margin,
        "budget_s": options.budget,
        "a_a_ratio": ratios,
        "sessions": sessions,
        "environment": describe_environment(),
    }
    return publish(result, options.output)


if __name__ == "__main__":
    sys.exit(main())
