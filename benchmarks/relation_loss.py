"""The streaming relation loss against the naive one: time, memory and gradients.

    python -m benchmarks.relation_loss [--n 8192] [--device cuda] [--output FILE]

Both are run forward and backward on the same unit features. Time is the median ratio of interleaved
pairs; memory is the peak over the inputs, measured in a fresh process on the CPU and by the allocator
on CUDA; the gradient's error is the largest difference over the largest gradient. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import argument_types
from benchmarks.output import output_file, publish
from brd_edge.distill.relation import streamed_relation, tile_operations
from brd_edge.environment import describe_environment
from brd_edge.progress import progress_bar

SIZES = (1024, 2048, 4096, 8192, 16384, 32768)
TEMPERATURE = 0.1
_NAIVE_MATRICES = 6
"""N x N float32 matrices that the naive loss holds at its peak, rounded up; to see whether it fits."""


def naive(teacher: Tensor, student: Tensor) -> Tensor:
    """Compute the loss as it is written down, with whole N x N matrices and autograd."""
    target = (teacher @ teacher.T / TEMPERATURE).log_softmax(1)
    found = (student @ student.T / TEMPERATURE).log_softmax(1)
    return F.kl_div(found, target, reduction="batchmean", log_target=True)


def streaming(teacher: Tensor, student: Tensor) -> Tensor:
    """Compute the same tile by tile."""
    return streamed_relation(teacher, student, temperature=TEMPERATURE)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"naive": naive, "streaming": streaming}


def gradient(name: str, teacher: Tensor, student: Tensor) -> Tensor:
    """Run one loss forward and backward and return the student's gradient."""
    return torch.autograd.grad(LOSSES[name](teacher, student), student)[0]


def inputs(count: int, channels: int, device: str) -> tuple[Tensor, Tensor]:
    """Return unit features of a teacher and a student: correlated within each, as those of images are."""
    generator = torch.Generator().manual_seed(count)
    rows = []
    for width in (channels, channels):
        # pixels of 20 regions around common centres
        centres = torch.randn(20, width, generator=generator)
        place = torch.randint(0, 20, (count,), generator=generator)
        rows.append(F.normalize(centres[place] + torch.randn(count, width, generator=generator), dim=1).to(device))
    return rows[0], rows[1].requires_grad_()


def measure_time(count: int, channels: int, device: str, pairs: int) -> dict[str, float]:
    """Time both losses in interleaved pairs (A B B A …) after one warm-up each.

    Returns:
        `naive_s`, `streaming_s` (medians), `time_ratio` (median of the pairs' ratios), and
        `max_relative_gradient_error`.
    """
    teacher, student = inputs(count, channels, device)
    reference, found = (gradient(name, teacher, student).clone() for name in LOSSES)
    error = float((found - reference).abs().max() / reference.abs().max())
    del reference, found
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    gc.collect()
    for pair in range(pairs):
        for name in LOSSES if pair % 2 == 0 else reversed(LOSSES):
            seconds[name].append(_timed(name, teacher, student))
    ratios = [ours / theirs for ours, theirs in zip(seconds["streaming"], seconds["naive"], strict=True)]
    return {
        "naive_s": statistics.median(seconds["naive"]),
        "streaming_s": statistics.median(seconds["streaming"]),
        "time_ratio": statistics.median(ratios),
        "max_relative_gradient_error": error,
    }


def _timed(name: str, teacher: Tensor, student: Tensor) -> float:
    _synchronise(teacher)
    start = time.perf_counter()
    gradient(name, teacher, student)
    _synchronise(teacher)
    return time.perf_counter() - start


def _synchronise(values: Tensor) -> None:
    if values.is_cuda:
        torch.cuda.synchronize(values.device)


def peak_bytes(name: str, count: int, channels: int, device: str) -> int:
    """Return the peak memory of one loss over its inputs, in a fresh process on the CPU."""
    if device == "cuda":
        teacher, student = inputs(count, channels, device)
        gradient(name, *inputs(256, channels, device))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient(name, teacher, student)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(_peak_resident, name, count, channels).result()


def _peak_resident(name: str, count: int, channels: int) -> int:
    teacher, student = inputs(count, channels, "cpu")
    # threads, kernels and their workspaces are there before the measurement begins
    gradient(name, *inputs(256, channels, "cpu"))
    gc.collect()
    # memory that was freed but not given back would be used again, and not be seen
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    gradient(name, teacher, student)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _fits(count: int, device: str) -> bool:
    needed = _NAIVE_MATRICES * 4 * count**2
    if device == "cuda":
        return needed < torch.cuda.mem_get_info()[0]
    return needed < 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def measure(count: int, channels: int, device: str, pairs: int) -> dict[str, Any]:
    """Measure one size; what the naive loss has no memory for is null."""
    row: dict[str, Any] = {"n": count, "channels": channels}
    streamed = peak_bytes("streaming", count, channels, device)
    row |= {"streaming_bytes": streamed, "naive_bytes": None, "memory_ratio": None}
    if not _fits(count, device):
        teacher, student = inputs(count, channels, device)
        alone = {"naive_s": None, "streaming_s": _timed("streaming", teacher, student), "time_ratio": None}
        return row | alone | {"max_relative_gradient_error": None}
    whole = peak_bytes("naive", count, channels, device)
    row |= {"naive_bytes": whole, "memory_ratio": streamed / whole}
    return row | measure_time(count, channels, device, pairs)


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Return the measurements as a table."""
    from tabulate import tabulate

    def show(value: float | None, unit: float = 1.0) -> str:
        return "too large" if value is None else f"{value / unit:.3g}"

    table = [
        [
            row["n"],
            show(row["naive_s"]),
            show(row["streaming_s"]),
            show(row["time_ratio"]),
            show(row["naive_bytes"], 2**20),
            show(row["streaming_bytes"], 2**20),
            show(row["memory_ratio"]),
            show(row["max_relative_gradient_error"]),
        ]
        for row in rows
    ]
    headers = [
        "pixels", "naive s", "streaming s", "ratio", "naive MiB", "streaming MiB", "ratio", "gradient error",
    ]  # fmt: skip
    return tabulate(table, headers, disable_numparse=True, stralign="right")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relation_loss", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--n", type=argument_types.count, action="append", help="pixels; all sizes from 1024 to 32768 when not given"
    )
    parser.add_argument("--channels", type=argument_types.count, default=256)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pairs", type=argument_types.count, default=7, help="interleaved pairs per size")
    parser.add_argument("--output", type=output_file, help="also write the JSON here")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("relation_loss: --device cuda: torch finds no GPU here", file=sys.stderr)
        return 2
    sizes, rows = options.n or SIZES, []
    with progress_bar(len(sizes), "relation loss", unit="size") as bar:
        for count in sizes:
            rows.append(measure(count, options.channels, options.device, options.pairs))
            bar.update(1)
    environment = describe_environment()
    operations = tile_operations(torch.empty(1, device=options.device)).name
    if options.device == "cuda":
        environment["gpu"] = torch.cuda.get_device_name()
    result = {
        "benchmark": "relation_loss",
        "device": options.device,
        "operations": operations,
        "threads": torch.get_num_threads(),
        "pairs": options.pairs,
        "environment": environment,
        "rows": rows,
    }
    print(format_rows(rows))
    return publish(result, options.output)


if __name__ == "__main__":
    sys.exit(main())
