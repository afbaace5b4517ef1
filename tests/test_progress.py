"""Progress bars in a terminal and in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import time

import pytest

import brd_edge.progress
from brd_edge.progress import progress_bar


def test_a_log_has_no_line_of_what_is_done_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(1, "prepare", unit="image") as bar:
        bar.update(1)
        bar.set_postfix_str("mIoU 0.5")
    assert capsys.readouterr().err == ""


def test_a_log_has_lines_of_what_takes_longer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brd_edge.progress, "_SECONDS_BETWEEN_LINES", 0.01)
    with progress_bar(3, "build", unit="engine") as bar:
        for _ in range(2):
            time.sleep(0.05)
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("build:") for line in lines)
    assert any("1/3" in line or "2/3" in line for line in lines), lines
    assert not any("\r" in line for line in lines)


def test_a_terminal_has_the_bar_at_once() -> None:
    program = "from brd_edge.progress import progress_bar\nwith progress_bar(3, 'build') as bar: pass"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True)
    shown = os.read(ours, 4096).decode()
    for end in (ours, theirs):
        os.close(end)
    assert "build" in shown
    assert "0/3" in shown
