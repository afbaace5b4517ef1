"""What the system says, read from trees that look like its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brd_edge.runtime.clocks import ClockState, ThermalZone, clock_warnings, read_clocks


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
    return read_clocks(system=root / "cpu", process=root, classes=root / "class")


def make_zone(root: Path, number: int, kind: str, millidegrees: str, **trips: str) -> None:
    place = root / f"class/thermal/thermal_zone{number}"
    place.mkdir(parents=True, exist_ok=True)
    points = [
        (f"trip_point_{i}_{part}", text)
        for i, (name, temp) in enumerate(trips.items())
        for part, text in (("type", name), ("temp", temp))
    ]
    for name, text in (("type", kind), ("temp", millidegrees), *points):
        (place / name).write_text(f"{text}\n")


def make_gpu_clock(root: Path, name: str, hertz: int) -> None:
    place = root / "class/devfreq" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "cur_freq").write_text(f"{hertz}\n")


def test_what_the_kernel_shows_is_read(tmp_path: Path) -> None:
    state = make_system(tmp_path, (1000, 2000), 3, "cpu  10 1 5 70 4 0 0 10 0 0\ncpu0 1 2 3\n")
    assert (state.frequency_mhz, state.throttled, state.ticks) == (1500, 6, (10, 100))
    assert state.busy_s is not None
    assert state.busy_s[0] == 16 / os.sysconf("SC_CLK_TCK")


def test_nothing_is_known_where_nothing_is_shown(tmp_path: Path) -> None:
    assert read_clocks(system=tmp_path, process=tmp_path, classes=tmp_path) == ClockState()
    (tmp_path / "stat").write_text("rubbish\n")
    (tmp_path / "thermal/thermal_zone0").mkdir(parents=True)
    (tmp_path / "devfreq/17000000.gpu").mkdir(parents=True)
    assert read_clocks(system=tmp_path, process=tmp_path, classes=tmp_path) == ClockState()


def test_temperatures_and_a_jetsons_clock_are_read(tmp_path: Path) -> None:
    make_zone(tmp_path, 0, "cpu-thermal", "51500", critical="104500", passive="99000", hot="-274000")
    make_zone(tmp_path, 1, "gpu-thermal", "48000")
    make_zone(tmp_path, 2, "cpu-thermal", "47000", active="60000")
    make_zone(tmp_path, 3, "sleeping", "")
    make_gpu_clock(tmp_path, "17000000.ga10b", 918_000_000)
    make_gpu_clock(tmp_path, "bwmgr", 3_199_000_000)
    state = make_system(tmp_path, (1000,), 0, "")
    assert state.zones == (
        ThermalZone("cpu-thermal", 51.5, 99),
        ThermalZone("gpu-thermal", 48),
        ThermalZone("cpu-thermal (thermal_zone2)", 47),
    )
    assert state.gpu_mhz == 918


def test_heat_and_the_gpus_clock_are_warned_of_at_any_moment() -> None:
    def state(degrees: float, mhz: float, limit: float | None = None) -> ClockState:
        return ClockState(zones=(ThermalZone("gpu-thermal", degrees, limit),), gpu_mhz=mhz)

    assert clock_warnings(state(50, 918, 99), state(59, 900, 99), [state(55, 910, 99)]) == []
    # what was over before the end
    assert clock_warnings(state(50, 918), state(52, 918), [state(63, 510)]) == [
        "gpu-thermal rose from 50 to 63 °C meanwhile",
        "the GPU's clock went between 510 and 918 MHz meanwhile",
    ]
    assert clock_warnings(state(90, 918, 95), state(95, 918, 95)) == [
        "gpu-thermal reached 95 °C; the system slows down from 95 °C on"
    ]
    assert clock_warnings(ClockState(), state(99, 300)) == []


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
