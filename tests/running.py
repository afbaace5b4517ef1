"""Processes that tests start and kill: which of them go on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(there: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something is there, while a process that has to make it runs."""
    deadline = time.monotonic() + 240
    while not there():
        assert time.monotonic() < deadline, "it did not come so far"
        assert process is None or process.poll() is None, "it has ended"
        time.sleep(0.05)


def pipelines_in(directory: Path) -> list[int]:
    """Return the processes of pipelines with this run directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"brd_edge.pipeline" in words and str(directory).encode() in words:
            found.append(int(process.name))
    return found


def in_session(leader: int) -> list[int]:
    """Return the processes of a session that go on."""
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if (fields := _fields(int(process.name))) is not None and int(fields[3]) == leader
    ]


def goes_on(process: int) -> bool:
    """Return whether a process goes on."""
    return _fields(process) is not None


def _fields(process: int) -> list[str] | None:
    """Return state, parent, group, session and more of a process, if it goes on."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return None
    # what an orphan that has ended leaves until somebody asks for it
    return None if fields[0] == "Z" else fields
