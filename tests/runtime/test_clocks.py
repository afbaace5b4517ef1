"""What the system says, read from trees that look like its own."""

from __future__ import annotations

from pathlib import Path

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
    assert state == ClockState(frequency_mhz=1500, throttled=6, ticks=(10, 100))


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


def test_this_machine_can_be_asked() -> None:
    state = read_clocks()
    assert state.ticks is None or 0 <= state.ticks[0] <= state.ticks[1]
