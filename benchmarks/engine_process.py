"""One engine timed in a process of its own, as a vendor's tool times it: for `benchmarks.engines`.

    python -m benchmarks.engine_process ENGINE [--call infer] [--threads 2] [--seconds 2]

Prints the median in milliseconds, of `infer` (frame to class map) or of `bind` (the engine alone).
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from brd_edge.runtime.engine import open_engine

_WARM_UP = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_process", description=description)
    parser.add_argument("engine", type=Path, help="the directory of an engine")
    parser.add_argument("--call", choices=("infer", "bind"), default="infer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args(arguments)
    with open_engine(options.engine, threads=options.threads) as runner:
        contract = runner.info.contract
        # what the vendors' tools feed too
        frame = np.random.default_rng(0).integers(0, 256, (contract.height, contract.width, 3), np.uint8)
        call = runner.bind(frame) if options.call == "bind" else lambda: runner.infer(frame)
        print(f"{median_ms(call, options.seconds)} ms")
    return 0


def median_ms(call: Callable[[], object], seconds: float) -> float:
    """Call over and over for some seconds and return the median time in milliseconds."""
    for _ in range(_WARM_UP):
        call()
    taken = []
    gc.disable()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - start) / 1e6)
    gc.enable()
    return float(np.median(taken))


if __name__ == "__main__":
    sys.exit(main())
