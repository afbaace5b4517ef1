"""What the system says about clocks and heat before and after a measurement, and what of it is a warning.

Linux only, and only what it shows to an ordinary user; elsewhere nothing is known and nothing is said.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ClockState", "clock_warnings", "read_clocks"]

_FREQUENCY_CHANGE = 0.05
_BUSY_SHARE = 0.1


@dataclass(frozen=True)
class ClockState:
    """A moment.

    Attributes:
        frequency_mhz: Mean clock of the processor's cores; None where it is not shown.
        throttled: How often the processor slowed down because of heat, over all cores; None where it is not shown.
        ticks: Time of all cores together that the host gave to other machines, and all time, in ticks of the
            kernel; None where it is not shown.
        busy_s: Seconds in which all cores together were busy, and those of them for this process; None where it is
            not shown.
    """

    frequency_mhz: float | None = None
    throttled: int | None = None
    ticks: tuple[int, int] | None = None
    busy_s: tuple[float, float] | None = None


def read_clocks(*, system: Path = Path("/sys/devices/system/cpu"), process: Path = Path("/proc")) -> ClockState:
    """Read what the system shows at this moment.

    Args:
        system: Where the kernel describes the processor.
        process: Where the kernel counts time.
    """
    frequencies = _numbers(sorted(system.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")))
    throttles = _numbers(sorted(system.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")))
    ticks = _ticks(process / "stat")
    return ClockState(
        frequency_mhz=sum(frequencies) / len(frequencies) / 1000 if frequencies else None,
        throttled=round(sum(throttles)) if throttles else None,
        ticks=(ticks[7], sum(ticks[:8])) if len(ticks) > 7 else None,
        # user, nice, system, irq and softirq
        busy_s=(sum(ticks[:3] + ticks[5:7]) / _ticks_hz(), time.process_time()) if len(ticks) > 7 else None,
    )


def clock_warnings(before: ClockState, after: ClockState) -> list[str]:
    """Return what changed between two moments and makes times doubtful, a sentence each."""
    found = []
    if before.frequency_mhz and after.frequency_mhz:
        change = after.frequency_mhz / before.frequency_mhz - 1
        if abs(change) > _FREQUENCY_CHANGE:
            found.append(
                f"the processor's clock went from {before.frequency_mhz:.0f} to {after.frequency_mhz:.0f} MHz meanwhile"
            )
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        found.append(f"the processor slowed down because of heat {after.throttled - before.throttled} times meanwhile")
    if before.ticks is not None and after.ticks is not None:
        stolen, span = (late - early for early, late in zip(before.ticks, after.ticks, strict=True))
        if span > 0 and stolen / span > _BUSY_SHARE:
            found.append(
                f"the host took {100 * stolen / span:.0f} % of the processor's time for other machines meanwhile"
            )
        if before.busy_s is not None and after.busy_s is not None:
            busy_s, own_s = (late - early for early, late in zip(before.busy_s, after.busy_s, strict=True))
            others = (busy_s - own_s) * _ticks_hz() / span if span > 0 else 0.0
            if others > _BUSY_SHARE:
                found.append(f"other programs took {100 * others:.0f} % of the processor's time meanwhile")
    return found


def _ticks_hz() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _ticks(path: Path) -> list[int]:
    """Return the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal and more."""
    try:
        words = path.read_text(encoding="ascii").splitlines()[0].split()
        return [int(word) for word in words[1:]] if words[0] == "cpu" else []
    except (OSError, ValueError, IndexError):
        return []


def _numbers(paths: list[Path]) -> list[float]:
    found = []
    for path in paths:
        try:
            found.append(float(path.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return found
