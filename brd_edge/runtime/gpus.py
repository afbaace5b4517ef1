"""What `nvidia-smi` says of the NVIDIA GPUs: clock, temperature, and why they are slower than they could be.

Only where the tool is; elsewhere nothing is known and nothing is said.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["GpuState", "gpu_warnings", "read_gpus"]

_TIMEOUT_S = 2.0
_FIELDS = ("index", "clocks.sm", "temperature.gpu")
# the second is what drivers before 535 call the first; an unknown field makes the tool refuse all of them
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_SLOWDOWNS = {
    0x4: "it reached its power limit",
    0x8: "the hardware slows it down",
    0x20: "the driver slows it down because of heat",
    0x40: "the hardware slows it down because of heat",
    0x80: "the power supply asks it to slow down",
}
"""Bits of NVML's `nvmlClocksEventReasons` that mean less than what was asked for; idle and wanted clocks do not."""


@dataclass(frozen=True)
class GpuState:
    """A GPU at a moment.

    Attributes:
        index: Its number.
        clock_mhz: Clock of its multiprocessors; None where it is not shown.
        temperature_c: In degrees Celsius; None where it is not shown.
        slowdowns: Why it is slower than it could be, in words.
    """

    index: int
    clock_mhz: float | None
    temperature_c: float | None
    slowdowns: tuple[str, ...]


def read_gpus(busy: Callable[[], object] | None = None) -> tuple[GpuState, ...]:
    """Ask `nvidia-smi`, for two seconds at most.

    Args:
        busy: Is called again and again until the answer is there: a GPU that has nothing to do shows neither its
            clock nor what slows it down.

    Returns:
        A state a GPU; none where there is no tool, no GPU or no answer.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    for reasons in _REASONS:
        lines = _ask([tool, f"--query-gpu={','.join((*_FIELDS, reasons))}", "--format=csv,noheader,nounits"], busy)
        if lines is not None:
            return tuple(state for line in lines if (state := _parse(line)) is not None)
    return ()


def gpu_warnings(gpus: tuple[GpuState, ...]) -> list[str]:
    """Return what slows GPUs down, a sentence each."""
    return [
        f"GPU {gpu.index} was slower than it could be ({'; '.join(gpu.slowdowns)}) "
        f"at {_written(gpu.clock_mhz)} MHz and {_written(gpu.temperature_c)} °C"
        for gpu in gpus
        if gpu.slowdowns
    ]


def _ask(command: list[str], busy: Callable[[], object] | None) -> list[str] | None:
    """Return the lines of the answer, none where it takes too long; None where the tool refuses."""
    try:
        with subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                end = time.monotonic() + _TIMEOUT_S
                while busy is not None and process.poll() is None and time.monotonic() < end:
                    busy()
                output, _ = process.communicate(timeout=max(0.0, end - time.monotonic()))
            except BaseException:
                process.kill()
                raise
    except (OSError, ValueError):
        return None
    except subprocess.SubprocessError:
        return []
    return output.splitlines() if process.returncode == 0 else None


def _parse(line: str) -> GpuState | None:
    words = [word.strip() for word in line.split(",")]
    if len(words) != len(_FIELDS) + 1 or not words[0].isdecimal():
        return None
    try:
        bits = int(words[3], 16)
    except ValueError:
        bits = 0  # [N/A]
    slowdowns = tuple(text for bit, text in _SLOWDOWNS.items() if bits & bit)
    return GpuState(int(words[0]), _number(words[1]), _number(words[2]), slowdowns)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _written(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"
