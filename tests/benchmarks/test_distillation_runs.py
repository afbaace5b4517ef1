"""A killed process can tell its children nothing: they end all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from running import goes_on, wait_for
from tiny import TINY

ROOT = Path(__file__).parents[2]

TRAINING = """
import sys
from pathlib import Path
from benchmarks.distillation_runs import pipeline_runs
with pipeline_runs() as runs:
    runs.run(Path("pipelines/quickstart.yaml"), sys.argv[2:], Path(sys.argv[1]), "distill", name="a training")
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")


def test_a_training_is_told_once_to_end(tmp_path: Path) -> None:
    run, told = tmp_path / "run", tmp_path / "stderr"
    command = [sys.executable, "-c", TRAINING, str(run), *TINY, "teacher.train.epochs=9999"]
    with told.open("w") as stderr, subprocess.Popen(command, cwd=ROOT, stderr=stderr) as parent:
        # from then on it listens
        wait_for((run / "run.log").exists, parent)
        children = _children(parent.pid)
        parent.kill()
    try:
        assert len(children) == 2, "the training and the watcher"
        wait_for(lambda: not any(map(goes_on, children)))
    finally:
        _kill(children)
    said = told.read_text(encoding="utf-8")
    assert said.count("run it again to go on") == 1, said
    assert "Traceback" not in said, said


def _children(parent: int) -> list[int]:
    lists = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for text in lists for child in text.read_text().split()]


def _kill(processes: list[int]) -> None:
    for process in filter(goes_on, processes):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
