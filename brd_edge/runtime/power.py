"""Energy of a stretch of work, where the device has power rails that can be read.

Two sources: Intel's RAPL counters (`/sys/class/powercap`), which count energy, and INA3221 sensors
of Jetson modules (`/sys/class/hwmon`), whose power is sampled while the work runs. A machine
without either, or one that lets only root read them, has no energy to report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Energy", "measure_energy"]

_SAMPLE_S = 0.02


@dataclass(frozen=True)
class Energy:
    """Energy of some work.

    Attributes:
        joules: Energy in all.
        source: The rails that were read.
    """

    joules: float
    source: str


def measure_energy(work: Callable[[], None], *, system: Path = Path("/sys/class")) -> Energy | None:
    """Run `work` and return the energy that the device took meanwhile.

    Where the device does not say, `work` is not run and None is returned. It is the energy of the
    whole device or processor package, idle power included.

    Args:
        work: What to run; at least some tenths of a second give a useful figure.
        system: Where the kernel shows its sensors.
    """
    counter, limit = _rapl(system)
    before = _number(counter) if counter is not None else None
    if counter is not None and before is not None:
        work()
        after = _number(counter)
        if after is None:
            return None
        # the counter starts again at 0 once it reaches its limit
        span = after - before if after >= before else after - before + limit
        return Energy(span / 1e6, f"RAPL {counter.parent.name}")
    rails = _ina_rails(system)
    return _sampled(work, rails) if rails else None


def _sampled(work: Callable[[], None], rails: list[tuple[Path, Path]]) -> Energy | None:
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            watts = [_watts(voltage, current) for voltage, current in rails]
            samples.append((time.monotonic(), sum(watts)))
            done.wait(_SAMPLE_S)

    thread = threading.Thread(target=sample, daemon=True)
    start = time.monotonic()
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    if not samples:
        return None
    mean_watts = sum(watts for _, watts in samples) / len(samples)
    return Energy(mean_watts * (time.monotonic() - start), f"INA3221, {len(rails)} rails")


def _rapl(system: Path) -> tuple[Path | None, float]:
    counter = system / "powercap" / "intel-rapl:0" / "energy_uj"
    limit = _number(counter.parent / "max_energy_range_uj")
    return (counter, limit or 0.0) if _number(counter) is not None else (None, 0.0)


def _ina_rails(system: Path) -> list[tuple[Path, Path]]:
    """Return (millivolt, milliampere) files of the rails that together are the whole module.

    On Orin NX and Nano that is its input, `VDD_IN`, of which the other rails are parts. AGX Orin has no such rail: its
    memory's, `VDDQ_VDD2_1V8AO`, is fed by `VIN_SYS_5V0`, and the others stand beside each other.
    """
    found: list[tuple[str, tuple[Path, Path]]] = []
    for chip in sorted(system.glob("hwmon/hwmon*")):
        if _text(chip / "name") != "ina3221":
            continue
        for number in (1, 2, 3):
            rail = (chip / f"in{number}_input", chip / f"curr{number}_input")
            if all(_number(path) is not None for path in rail):
                found.append((_text(chip / f"in{number}_label"), rail))
    whole = [rail for label, rail in found if label == "VDD_IN"]
    return whole or [rail for label, rail in found if label != "VDDQ_VDD2_1V8AO"]


def _watts(millivolts: Path, milliamperes: Path) -> float:
    return (_number(millivolts) or 0.0) * (_number(milliamperes) or 0.0) / 1e6


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
