"""What the system says, read from trees that look like its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brd_edge.runtime.clocks import ClockState, clock_warnings, read_clocks


def make_system(root: Path, mhz: tuple[int, ...], throttled: int, stat: str) -> ClockState:
    for i, frequency in enumerate(mhz):
        for name, value in (
            ("cpufreq/scaling_cur_freq", frequency * 1000),
            ("thermal_throttle/core_throttle_count", throttled),
        ):
            path = root / f"cpu/cpu{i}/{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
    (root / "stat").write_text(stat)
    return read_clocks(system=root / "cpu", process=root)


def test_what_the_kernel_shows_is_read(tmp_path: Path) -> None:
    state = make_system(tmp_path, (1000, 2000), 3, "cpu  10 1 5 70 4 0 0 10 0 0\ncpu0 1 2 3\n")
    assert (state.frequency_mhz, state.throttled, state.ticks) == (1500, 6, (10, 100))
    assert state.busy_s is not None
    assert state.busy_s[0] == 16 / os.sysconf("SC_CLK_TCK")


def test_nothing_is_known_where_nothing_is_shown(tmp_path: Path) -> None:
    assert read_clocks(system=tmp_path, process=tmp_path) == ClockState()
    (tmp_path / "stat").write_text("rubbish\n")
    assert read_clocks(system=tmp_path, process=tmp_path) == ClockState()


def test_changes_are_warned_of() -> None:
    before = ClockState(2000, 5, (10, 1000))
    assert clock_warnings(before, ClockState(2050, 5, (12, 2000))) == []
    assert clock_warnings(before, ClockState(1500, 7, (300, 2000))) == [
        "the processor's clock went from 2000 to 1500 MHz meanwhile",
        "the processor slowed down because of heat 2 times meanwhile",
        "the host took 29 % of the processor's time for other machines meanwhile",
    ]
    assert clock_warnings(ClockState(), ClockState(1, 1, (1, 1))) == []
    hz = os.sysconf("SC_CLK_TCK")
    quiet, start = ClockState(ticks=(0, 20 * hz), busy_s=(10.5, 10)), ClockState(ticks=(0, 0), busy_s=(0, 0))
    assert clock_warnings(start, quiet) == []
    assert clock_warnings(start, ClockState(ticks=(0, 20 * hz), busy_s=(15, 10))) == [
        "other programs took 25 % of the processor's time meanwhile"
    ]


def test_another_program_is_noticed() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("this system does not show how busy it is")
    endless = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(endless) for _ in range(os.cpu_count() or 1)]
    try:
        before = read_clocks()
        time.sleep(1)
        found = clock_warnings(before, read_clocks())
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert any("other programs took" in line for line in found)


def test_this_machine_can_be_asked() -> None:
    state = read_clocks()
    assert state.ticks is None or 0 <= state.ticks[0] <= state.ticks[1]
