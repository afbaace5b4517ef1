"""The command `brd-edge compare`: what changed from one run to another, for people and for a team's CI."""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from brd_edge.data.dataset import read_frame
from brd_edge.data.index import load_contents, load_dataset
from brd_edge.evaluate.benchmark.entries import EngineEntry
from brd_edge.evaluate.benchmark.file import read_benchmark
from brd_edge.evaluate.benchmark.images import FILE_NAME, read_image_counts
from brd_edge.evaluate.changes.latency import SESSION_ALLOWANCE, LatencyChange, recorded_change, timed_change
from brd_edge.evaluate.changes.runs import Changes, RunRecord, compare_runs, require_comparable
from brd_edge.evaluate.changes.table import format_changes, verdict_line
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import BrdEdgeError, DataError, RunError
from brd_edge.runtime.targets import TARGETS

__all__ = ["compare"]

log = logging.getLogger("brd_edge")

SCHEMA_VERSION = 1

_BUDGET_S = 30.0
_SEED = 20240131
_MACHINE = ("cpu", "cores", "gpu")
_RECORDED = (
    "recorded by each run: the sessions were not paired, so the intervals are wider by the "
    f"{100 * SESSION_ALLOWANCE:g} % that sessions of one engine may differ by; without --recorded both are timed now, "
    "in turns, which sees smaller differences"
)
_EPILOG = """\
exit codes: 0 nothing is worse, 3 something is worse, slower or newly failing (with --undecided fail also
what could not be decided), 1 a run cannot be used, 2 the command line is wrong
"""


@dataclass(frozen=True)
class _Timing:
    """How engines are timed: on what, and with how many threads."""

    frames: Sequence[NDArray[np.uint8]]
    told: str
    threads: int | None


def compare(arguments: Sequence[str]) -> int:
    """Compare two runs and print what changed from A to B.

    Args:
        arguments: The command line after `brd-edge compare`.

    Returns:
        The exit code: 0 where nothing is worse, 3 where something is.

    Raises:
        RunError: A run cannot be used, or the two cannot be compared.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.recorded and options.budget is not None:
        parser.error("--budget is for timing, and --recorded times nothing; give one of them")
    before, after = (_read_run(path) for path in (options.run_a, options.run_b))
    require_comparable(before, after)
    latencies, told = _latencies(before, after, options)
    changes = compare_runs(before, after, margin=options.margin_points / 100, latencies=latencies)
    failing = changes.overall == "worse" or (options.undecided == "fail" and bool(changes.undecided))
    code = 3 if failing else 0
    if options.json:
        print(json.dumps(_to_json(changes, before, after, told, code), indent=2, allow_nan=False))
    else:
        names = tuple(f"{run.name} ({run.benchmark.recipe}, {run.benchmark.created})" for run in (before, after))
        print(format_changes(changes, names=(names[0], names[1]), latency=told))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brd-edge compare",
        description="Tell what changed from run A to run B: settings, accuracy, latency, size, gates, proof.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="run directory that is compared with")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="run directory that is judged")
    parser.add_argument(
        "--margin-points", type=_positive, default=0.5, metavar="M", help="change of a score that counts as none (0.5)"
    )
    parser.add_argument(
        "--margin-percent", type=_positive, default=3.0, metavar="M", help="change of latency that counts as none (3)"
    )
    parser.add_argument(
        "--budget", type=_positive, metavar="S", help=f"seconds of timing an engine ({_BUDGET_S:g}); it may end earlier"
    )
    parser.add_argument(
        "--recorded", action="store_true", help="time nothing, compare the latencies that were recorded"
    )
    parser.add_argument(
        "--undecided", choices=("pass", "fail"), default="pass", help="whether what is undecided fails (pass)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _read_run(directory: Path) -> RunRecord:
    if directory.is_file():
        raise RunError(f"{directory}: expected a run directory, such as runs/quickstart, got a file")
    benchmark = read_benchmark(directory / "benchmark.json")
    counts = read_image_counts(directory / FILE_NAME)
    return RunRecord(str(directory), benchmark, counts, _read_recipe(directory / "recipe.yaml"), _contents(directory))


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: not found; expected the resolved recipe, which every run leaves there") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a mapping with name, data, teacher, …; got {type(content).__name__}")
    return content


def _contents(directory: Path) -> dict[str, str] | None:
    """Return what tells every validation image and its label from others; None where the run's index is not there."""
    try:
        return load_contents(directory / "data")
    except DataError:
        return None


def _latencies(
    before: RunRecord, after: RunRecord, options: argparse.Namespace
) -> tuple[dict[str, LatencyChange], str]:
    """Compare the latency of every engine that both runs built; return the changes by name, and how it was done."""
    margin = options.margin_percent / 100
    mine, theirs = ({engine.name: engine for engine in run.benchmark.engines} for run in (before, after))
    pairs = {
        name: (engine, theirs[name])
        for name, engine in mine.items()
        if name in theirs and {engine.status, theirs[name].status} <= {"measured", "built"}
    }
    if options.recorded:
        machine = _machine_differences(before, after)
        return {name: recorded_change(*pair, margin=margin, machine=machine) for name, pair in pairs.items()}, _RECORDED
    timing = _timing(options.run_b, before, after)
    found = {}
    for name, (engine, _) in pairs.items():
        problem = _cannot_be_timed(engine, before, after)
        if problem is not None:
            found[name] = LatencyChange(None, reason=problem)
            continue
        print(f"timing {name} of both runs", file=sys.stderr, flush=True)
        directories = [path / "engines" / name for path in (options.run_a, options.run_b)]
        found[name] = _timed(directories, timing, margin=margin, budget_s=options.budget or _BUDGET_S)
    return found, timing.told


def _machine_differences(before: RunRecord, after: RunRecord) -> str:
    a, b = before.benchmark.environment, after.benchmark.environment
    pairs = {key: (getattr(a, key), getattr(b, key)) for key in _MACHINE}
    found = [f"{key} {mine} against {theirs}" for key, (mine, theirs) in pairs.items() if mine != theirs]
    if before.benchmark.timed_images != after.benchmark.timed_images:
        found.append("on other images")
    threads = [_threads(run) for run in (before, after)]
    if threads[0] != threads[1]:
        found.append(f"threads {threads[0]} against {threads[1]}")
    return f"recorded in other circumstances ({'; '.join(found)})" if found else ""


def _timing(directory: Path, before: RunRecord, after: RunRecord) -> _Timing:
    """Return the frames, the validation images that B was timed on or else noise, and B's number of threads."""
    contract = InputContract.from_json(after.benchmark.contract.model_dump())
    try:
        wanted = set(after.benchmark.timed_images)
        frames = [read_frame(item, contract) for item in load_dataset(directory / "data").val if item.id in wanted]
    except DataError:
        frames = []
    what = f"{len(frames)} of B's validation images" if len(frames) != 1 else "one of B's validation images"
    if not frames:
        shape = (contract.height, contract.width, 3)
        frames = [np.random.default_rng(_SEED).integers(0, 256, shape, np.uint8)]
        what = "a random frame, as B's validation images are not there"
    threads = _threads(after)
    told = f"timed now, in turns A B B A, on {what}, {threads or 'as many as the runtime takes'} threads"
    if _threads(before) != threads:
        told += f" (A was measured with {_threads(before) or 'as many as the runtime takes'})"
    return _Timing(frames, told, threads)


def _threads(run: RunRecord) -> int | None:
    """Return the threads that a run was measured with; of files that do not say so, those of its recipe."""
    if "threads" in run.benchmark.model_fields_set:
        return run.benchmark.threads
    section = run.recipe.get("benchmark")
    threads = section.get("threads") if isinstance(section, dict) else None
    return threads if isinstance(threads, int) else None


def _cannot_be_timed(engine: EngineEntry, before: RunRecord, after: RunRecord) -> str | None:
    sizes = [(run.benchmark.contract.height, run.benchmark.contract.width) for run in (before, after)]
    if sizes[0] != sizes[1]:
        (height, width), (other_height, other_width) = sizes
        return f"the frames have other sizes, {height}x{width} against {other_height}x{other_width}"
    target = TARGETS.get(engine.target)
    if target is None:
        return f"its target {engine.target} is not known here"
    if platform.machine() not in target.machines:
        return f"it is for {' or '.join(target.machines)}, this machine is {platform.machine()}"
    return None


def _timed(directories: Sequence[Path], timing: _Timing, *, margin: float, budget_s: float) -> LatencyChange:
    before, after = directories
    try:
        return timed_change(before, after, timing.frames, threads=timing.threads, margin=margin, budget_s=budget_s)
    except BrdEdgeError as error:
        return LatencyChange(None, reason=str(error))
    except Exception as error:
        # a vendor's library may raise anything; the other engines do not depend on it
        log.exception("%s and %s cannot be timed", before, after)
        return LatencyChange(None, reason=f"{type(error).__name__}: {error}")


def _to_json(changes: Changes, before: RunRecord, after: RunRecord, told: str, code: int) -> dict[str, Any]:
    runs = {
        side: {"directory": run.name, "recipe": run.benchmark.recipe, "created": run.benchmark.created}
        for side, run in (("a", before), ("b", after))
    }
    return {
        "schema_version": SCHEMA_VERSION,
        **runs,
        **changes.to_json(),
        "latency_method": told,
        "verdict": verdict_line(changes).removeprefix("verdict: "),
        "exit_code": code,
    }
