"""Runs of the pipeline in processes of their own, which stop when the benchmark that started them is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

__all__ = ["TRAINING_LOG", "PipelineRunError", "PipelineRuns", "pipeline_runs"]

TRAINING_LOG = "training.log"
_INTERRUPTED = 130


class PipelineRunError(Exception):
    """A run of the pipeline ended otherwise than well; `code` is its exit code."""

    def __init__(self, code: int, what: str, log: Path) -> None:
        """Tell of the run `what`, and of its log if there is one."""
        self.code = code
        see = f", see {log}" if log.exists() else ""
        how = "was interrupted; run it again to go on" if code == _INTERRUPTED else f"failed with code {code}{see}"
        super().__init__(f"{what} {how}")


class PipelineRuns:
    """The runs that are going on.

    Attributes:
        stopped: Whether this process was told to end.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._starting = 0

    def run(self, recipe: Path, overrides: Sequence[str], directory: Path, until: str, *, jobs: int = 1) -> None:
        """Run the pipeline as far as a stage and wait for it.

        Args:
            recipe: The recipe.
            overrides: What differs from it, as `KEY=VALUE`.
            directory: The run directory.
            until: The last stage.
            jobs: How many such runs share the processors; of several, each writes its steps to `TRAINING_LOG`.

        Raises:
            PipelineRunError: It did not end with 0.
        """
        command = [sys.executable, "-m", "brd_edge.pipeline", str(recipe), "--run-dir", str(directory)]
        command += ["--until", until, *(part for override in overrides for part in ("--set", override))]
        directory.mkdir(parents=True, exist_ok=True)
        log, quiet = directory / TRAINING_LOG, jobs > 1
        with log.open("a", encoding="utf-8") as file:
            child = self._start(command, file if quiet else None, _environment(jobs))
            with child:
                code = child.wait()
                self._running.discard(child)
        if code:
            # one that was told to stop before it could listen has no exit code of its own
            code = _INTERRUPTED if self.stopped else code
            raise PipelineRunError(code, directory.name, log if quiet else directory / "run.log")

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Take a signal and pass it on: the runs save what they have and end, and `run` tells of it.

        Raises:
            KeyboardInterrupt: There is no run to wait for.
        """
        self.stopped = True
        for child in tuple(self._running):
            child.send_signal(number)
        if not self._running and not self._starting:
            raise KeyboardInterrupt

    def _start(
        self, command: Sequence[str], log: IO[str] | None, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        self._starting += 1
        try:
            # in a group of its own: what a terminal sends to this process's group is passed on once, and not twice,
            # which would end a run at once
            child = subprocess.Popen(command, stderr=log, env=environment, process_group=0)  # noqa: S603
            self._running.add(child)
        finally:
            self._starting -= 1
        if self.stopped:
            child.terminate()
        return child


@contextmanager
def pipeline_runs() -> Iterator[PipelineRuns]:
    """Take SIGINT and SIGTERM while the block runs, then restore the handlers that were there."""
    runs = PipelineRuns()
    before = {number: signal.signal(number, runs.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield runs
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(jobs: int) -> dict[str, str]:
    """Return the environment of one of `jobs` trainings, which divide the processors among themselves."""
    if jobs == 1:
        return dict(os.environ)
    # threads of trainings that run side by side would wait for each other
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
