"""How far the verdicts on two engines can be trusted: sessions whose right answer is known.

    python -m benchmarks.verdicts ENGINE [--sessions 20] [--slowdowns 10] [--output FILE]

ENGINE is an engine's directory of a run. In some sessions it is compared with itself, in others with itself
made slower by a given share, by waiting after every call. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from brd_edge.environment import describe_environment
from brd_edge.progress import progress_bar
from brd_edge.runtime.compare import compare_latency
from brd_edge.runtime.engine import open_engine, read_engine


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
    contract = read_engine(engine).contract
    frame = np.random.default_rng(0).integers(0, 256, (contract.height, contract.width, 3), np.uint8)

    @contextmanager
    def opened() -> Iterator[Callable[[], object]]:
        with open_engine(engine, threads=threads) as runner:
            yield lambda: runner.infer(frame)

    @contextmanager
    def opened_slowed() -> Iterator[Callable[[], object]]:
        with opened() as call:
            yield slowed(call, share) if share else call

    found = compare_latency(opened, opened_slowed, margin=margin, budget_s=budget_s)
    rounds = found.samples_ms["a"]
    return {"slowdown": share, "p50_ms": float(np.median(rounds)), "rounds": len(rounds), **found.to_json()}


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
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    plan = [0.0] * options.sessions + [options.share] * options.slowdowns
    # neither kind has the quieter time of the day
    order = np.random.default_rng(0).permutation(len(plan))
    sessions = []
    with progress_bar(len(plan), "verdicts", unit="session") as bar:
        for place in order:
            sessions.append(
                run_session(
                    options.engine,
                    plan[place],
                    threads=options.threads,
                    margin=options.margin,
                    budget_s=options.budget,
                )
            )
            bar.update(1)
    headers = ["slowdown", "sessions", "equivalent", "slower", "faster", "undecided", "half width", "pairs"]
    print(tabulate(summarise(sessions), headers))
    result = {
        "benchmark": "verdicts",
        "engine": options.engine.name,
        "threads": options.threads,
        "margin": options.margin,
        "sessions": sessions,
        "environment": describe_environment(),
    }
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
