"""Gates: limits that a measured engine must hold before it may be bundled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Limits", "broken_gates"]


@dataclass(frozen=True)
class Limits:
    """The limits; nothing means that there is no such gate.

    Attributes:
        miou_drop_max: Points of mIoU (0 to 100) that an engine may lose against PyTorch.
        boundary_iou_drop_max: The same for Boundary IoU.
        latency_ms_p95_max: Milliseconds.
        size_bytes_max: Bytes of the engine's files.
    """

    miou_drop_max: float | None = None
    boundary_iou_drop_max: float | None = None
    latency_ms_p95_max: float | None = None
    size_bytes_max: int | None = None


def broken_gates(limits: Limits, *, engine: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """Return which gates an engine does not hold, and by how much.

    An engine that was built but not measured is held to its size alone.

    Args:
        limits: The gates.
        engine: The engine's entry of `benchmark.json`; IoU values are fractions.
        reference: `miou` and `boundary_iou` of the PyTorch student, as fractions.

    Returns:
        One line per broken gate; empty when all hold.
    """
    found = []
    if limits.size_bytes_max is not None and engine["size_bytes"] > limits.size_bytes_max:
        found.append(f"size_bytes_max: {engine['size_bytes']:,} bytes, the limit is {limits.size_bytes_max:,}")
    if engine["latency_ms"] is None:
        return found
    for key, name, limit in (
        ("miou", "miou_drop_max", limits.miou_drop_max),
        ("boundary_iou", "boundary_iou_drop_max", limits.boundary_iou_drop_max),
    ):
        if limit is None:
            continue
        if engine[key] is None or reference[key] is None:
            found.append(f"{name}: {key} could not be measured, the limit is {limit:g}")
        elif 100 * (reference[key] - engine[key]) > limit:
            found.append(f"{name}: lost {100 * (reference[key] - engine[key]):.2f} points, the limit is {limit:g}")
    p95_ms = engine["latency_ms"]["p95"]
    if limits.latency_ms_p95_max is not None and p95_ms > limits.latency_ms_p95_max:
        found.append(f"latency_ms_p95_max: p95 is {p95_ms:.1f} ms, the limit is {limits.latency_ms_p95_max:g} ms")
    return found
