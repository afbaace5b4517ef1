"""Many small jobs: every result arrives, also when a job ends the process that does it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from brd_edge.data.workers import run_jobs

JOBS = 70

Results = dict[str, int | None]


def square(number: int, _: tuple[int, ...]) -> int:
    return number * number


def crash(number: int, crashing: tuple[int, ...]) -> int:
    """As a decoder that crashes, or a process that is killed when memory is short."""
    if number in crashing:
        # lets the other worker finish some jobs first
        time.sleep(0.05)
        os._exit(3) if number % 2 else os.kill(os.getpid(), signal.SIGSEGV)
    return square(number, ())


def fail(number: int, failing: tuple[int, ...]) -> int:
    if number in failing:
        raise LookupError(f"job {number}")
    return square(number, ())


def leave_a_trace(number: int, directory: str) -> int:
    with (Path(directory) / str(number)).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return number


def run(count: int, crashing: tuple[int, ...] = ()) -> tuple[Results, list[tuple[int, int]]]:
    found: Results = {}
    calls: list[tuple[int, int]] = []

    def collect(key: str, result: int | None) -> None:
        assert key not in found, "each job is told once"
        found[key] = result

    run_jobs(
        {f"job {i}": (i, crashing) for i in range(count)},
        crash if crashing else square,
        workers=2,
        collect=collect,
        progress=lambda *at: calls.append(at),
    )
    return found, calls


@pytest.mark.parametrize("count", [0, 1, 63, 64])
def test_all_results_come_with_their_keys(count: int) -> None:
    found, calls = run(count)
    assert found == {f"job {i}": i * i for i in range(count)}
    assert calls == [(i, count) for i in range(1, count + 1)]


@pytest.mark.parametrize("crashing", [(7,), (7, 8), (0, 69), (11, 33, 55)])
def test_a_job_that_ends_its_process_stops_no_other(crashing: tuple[int, ...]) -> None:
    found, calls = run(JOBS, crashing)
    assert found == {f"job {i}": None if i in crashing else i * i for i in range(JOBS)}
    assert calls == [(i, JOBS) for i in range(1, JOBS + 1)]


@pytest.mark.parametrize("count", [5, JOBS])
def test_an_exception_reaches_the_caller(count: int) -> None:
    with pytest.raises(LookupError, match="job 3"):
        run_jobs({str(i): (i, (3,)) for i in range(count)}, fail, workers=2, collect=lambda *_: None, progress=None)


@pytest.mark.parametrize(("count", "inside"), [(63, True), (64, False)])
def test_few_jobs_are_done_here_and_many_in_processes(tmp_path: Path, count: int, inside: bool) -> None:
    run_jobs(
        {str(i): (i, str(tmp_path)) for i in range(count)},
        leave_a_trace,
        workers=2,
        collect=lambda *_: None,
        progress=None,
    )
    lines = [path.read_text().splitlines() for path in tmp_path.iterdir()]
    assert len(lines) == count
    assert {len(found) for found in lines} == {1}
    processes = {int(found[0]) for found in lines}
    assert (processes == {os.getpid()}) is inside
    assert inside or os.getpid() not in processes
