"""The runs of the pipeline that `benchmarks.distillation` starts: none outlives the command.

Told to end, it tells the runs; where it is killed and can tell nothing (SIGKILL, out of memory), a watcher does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from brd_edge.interrupt import handle_signals

__all__ = ["TRAINING_LOG", "PipelineRunError", "PipelineRuns", "pipeline_runs"]

TRAINING_LOG = "training.log"
_INTERRUPTED = 130
# Linux's PR_SET_PDEATHSIG would need no watcher, but tells a child again as each thread of its parent ends, and a run
# that is told twice ends without its checkpoint
_WATCH = """
import os, signal, sys
running = set()
for line in sys.stdin:
    what, number = line.split()
    (running.add if what == "begun" else running.discard)(int(number))
for number in running:
    try:
        os.kill(number, signal.SIGTERM)
    except ProcessLookupError:
        pass
"""
"""What the watcher does: its input ends with the process that writes it, however that ends."""


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

    def __init__(self, watcher: IO[bytes]) -> None:
        """Start without any; the input of the watcher gets a line when a run begins and when it has ended."""
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._watcher = watcher

    def run(
        self, recipe: Path, overrides: Sequence[str], directory: Path, until: str, *, name: str, jobs: int = 1
    ) -> None:
        """Run the pipeline as far as a stage and wait for it.

        Args:
            recipe: The recipe.
            overrides: What differs from it, as `KEY=VALUE`.
            directory: The run directory.
            until: The last stage.
            name: What an error calls it.
            jobs: How many such runs share the processors; of several, each writes its steps to `TRAINING_LOG`.

        Raises:
            PipelineRunError: It did not end with 0.
        """
        command = [sys.executable, "-m", "brd_edge.pipeline", str(recipe), "--run-dir", str(directory)]
        command += ["--until", until, *(part for override in overrides for part in ("--set", override))]
        directory.mkdir(parents=True, exist_ok=True)
        log, quiet = directory / TRAINING_LOG, jobs > 1
        with (
            log.open("a", encoding="utf-8") as file,
            # in a group of its own: a run ends at once when it is told twice, by a terminal and by `stop`
            subprocess.Popen(  # noqa: S603
                command, stderr=file if quiet else None, env=_environment(jobs), process_group=0
            ) as child,
        ):
            self._tell_watcher("begun", child)
            self._running.add(child)
            if self.stopped:
                child.terminate()
            code = child.wait()
            self._running.discard(child)
            self._tell_watcher("ended", child)
        if code:
            # one that was told to stop before it could listen has no exit code of its own
            code = _INTERRUPTED if self.stopped else code
            raise PipelineRunError(code, name, log if quiet else directory / "run.log")

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """Take a signal: the runs are told to save what they have and to end, and later ones end at once."""
        self.stopped = True
        for child in tuple(self._running):
            child.terminate()

    def _tell_watcher(self, what: str, child: subprocess.Popen[bytes]) -> None:
        # without the watcher, which somebody has killed, the runs go on unwatched
        with suppress(BrokenPipeError):
            self._watcher.write(f"{what} {child.pid}\n".encode())


@contextmanager
def pipeline_runs() -> Iterator[PipelineRuns]:
    """Take what ends a process (Ctrl-C, SIGTERM, a closed terminal) while the block runs.

    Raises:
        KeyboardInterrupt: At the end of the block, if there was such a signal and no run told of it.
    """
    with _watcher() as watcher:
        runs = PipelineRuns(watcher)
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            numbers.append(signal.SIGHUP)
        with handle_signals(runs.stop, *numbers):
            yield runs
    if runs.stopped:
        raise KeyboardInterrupt


@contextmanager
def _watcher() -> Iterator[IO[bytes]]:
    """Start what tells the runs to end if this process is killed, and give its input, which no other process has."""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", "-c", _WATCH],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # a line is written at once, and whole, whichever thread writes it
        bufsize=0,
        # what ends the group of this process leaves it
        start_new_session=True,
    ) as process:
        assert process.stdin is not None, "it is a pipe"
        yield process.stdin


def _environment(jobs: int) -> dict[str, str]:
    """Return the environment of one of `jobs` trainings, which divide the processors among themselves."""
    if jobs == 1:
        return dict(os.environ)
    # threads of trainings that run side by side would wait for each other
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
