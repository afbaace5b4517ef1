"""What the system says about clocks and heat before and after a measurement, and what of it is a warning.

Linux only, and only what it shows to an ordinary user; elsewhere nothing is known and nothing is said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ClockState", "ThermalZone", "clock_warnings", "read_clocks"]

_FREQUENCY_CHANGE = 0.05
_BUSY_SHARE = 0.1
_WARMER_C = 10.0
_LIMIT_LEAST_C = 30.0
"""Trip points below are none: firmware writes 0 or -274 where it has none."""
# the Jetsons' integrated GPUs: by its role, or by the chip in earlier systems
_GPU_CLOCKS = ("*gpu*", "*.gp10b", "*.gv11b", "*.ga10b")


@dataclass(frozen=True)
class ThermalZone:
    """A sensor at a moment.

    Attributes:
        name: The kernel's name for it, such as `cpu-thermal`.
        temperature_c: In degrees Celsius.
        limit_c: From where on the system slows down what it cools; None where that is not shown.
    """

    name: str
    temperature_c: float
    limit_c: float | None = None


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
        zones: The temperature sensors.
        gpu_mhz: Clock of an integrated GPU, such as a Jetson's; None where it is not shown.
    """

    frequency_mhz: float | None = None
    throttled: int | None = None
    ticks: tuple[int, int] | None = None
    busy_s: tuple[float, float] | None = None
    zones: tuple[ThermalZone, ...] = ()
    gpu_mhz: float | None = None


def read_clocks(
    *,
    system: Path = Path("/sys/devices/system/cpu"),
    process: Path = Path("/proc"),
    classes: Path = Path("/sys/class"),
) -> ClockState:
    """Read what the system shows at this moment.

    Args:
        system: Where the kernel describes the processor.
        process: Where the kernel counts time.
        classes: Where the kernel lists sensors (`thermal`) and devices whose clock it sets (`devfreq`).
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
        zones=_zones(classes / "thermal"),
        gpu_mhz=_gpu_mhz(classes / "devfreq"),
    )


def clock_warnings(before: ClockState, after: ClockState, between: Sequence[ClockState] = ()) -> list[str]:
    """Return what changed between two moments and makes times doubtful, a sentence each.

    Args:
        before: The first moment.
        after: The last one.
        between: Moments between them, of which temperatures and the GPU's clock count.
    """
    found = [*_processor_warnings(before, after), *_heat_warnings([before, *between, after])]
    clocks = [state.gpu_mhz for state in (before, *between, after) if state.gpu_mhz]
    if clocks and min(clocks) < (1 - _FREQUENCY_CHANGE) * max(clocks):
        found.append(f"the GPU's clock went between {min(clocks):.0f} and {max(clocks):.0f} MHz meanwhile")
    return found


def _heat_warnings(states: Sequence[ClockState]) -> list[str]:
    found, first = [], {zone.name: zone.temperature_c for zone in states[0].zones}
    hottest: dict[str, ThermalZone] = {}
    for zone in (zone for state in states for zone in state.zones):
        if zone.name not in hottest or zone.temperature_c > hottest[zone.name].temperature_c:
            hottest[zone.name] = zone
    for name, zone in hottest.items():
        if zone.limit_c is not None and zone.temperature_c >= zone.limit_c:
            found.append(
                f"{name} reached {zone.temperature_c:.0f} °C; the system slows down from {zone.limit_c:.0f} °C on"
            )
        elif name in first and zone.temperature_c - first[name] >= _WARMER_C:
            found.append(f"{name} rose from {first[name]:.0f} to {zone.temperature_c:.0f} °C meanwhile")
    return found


def _processor_warnings(before: ClockState, after: ClockState) -> list[str]:
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


def _zones(root: Path) -> tuple[ThermalZone, ...]:
    found: list[ThermalZone] = []
    for place in sorted(root.glob("thermal_zone[0-9]*")):
        temperature = _numbers([place / "temp"])
        if not temperature:
            continue  # a sensor that sleeps
        limits = [
            limit / 1000
            for kind in sorted(place.glob("trip_point_[0-9]*_type"))
            if _text(kind) in ("passive", "hot")
            for limit in _numbers([kind.with_name(kind.name.replace("_type", "_temp"))])
        ]
        plausible = [limit for limit in limits if limit >= _LIMIT_LEAST_C]
        name = _text(place / "type") or place.name
        # several sensors may have one name
        named = name if all(zone.name != name for zone in found) else f"{name} ({place.name})"
        found.append(ThermalZone(named, temperature[0] / 1000, min(plausible, default=None)))
    return tuple(found)


def _gpu_mhz(root: Path) -> float | None:
    paths = {path for pattern in _GPU_CLOCKS for path in root.glob(f"{pattern}/cur_freq")}
    return max((hertz / 1e6 for hertz in _numbers(sorted(paths))), default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


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
