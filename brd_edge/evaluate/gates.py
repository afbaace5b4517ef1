"""Gates: limits that an engine must hold before it may be bundled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from brd_edge.runtime.limits import judge_limit

__all__ = ["ACCURACY_GATES", "Limits", "broken_accuracy_gates", "broken_gates", "gate_excess", "present_limits"]

ACCURACY_GATES = ("miou_drop_max", "boundary_iou_drop_max")
"""The gates that hold an engine to its losses against PyTorch."""


@dataclass(frozen=True)
class Limits:
    """The limits; nothing means that there is no such gate.

    Attributes:
        miou_drop_max: Points of mIoU (0 to 100) that an engine may lose against PyTorch.
        boundary_iou_drop_max: The same for Boundary IoU.
        latency_ms_p95_max: Milliseconds.
        size_bytes_max: Bytes of the engine's files.
        added_cost_max_percent: By how much slower than the undistilled student's engine it may be.
        uncertain: What a gate is whose limit lies within the 95 % interval of what was measured.
    """

    miou_drop_max: float | None = None
    boundary_iou_drop_max: float | None = None
    latency_ms_p95_max: float | None = None
    size_bytes_max: int | None = None
    added_cost_max_percent: float | None = None
    uncertain: Literal["broken", "held"] = "broken"


def present_limits(limits: Limits) -> dict[str, Any]:
    """Return the gates that there are, by name, and `uncertain`: an engine's entry `gates` in `benchmark.json`."""
    return {name: value for name, value in asdict(limits).items() if value is not None}


@dataclass(frozen=True)
class _Measured:
    """What was measured for a gate: the value, the upper end of its interval if it has one, and how to write it.

    With a `doubt`, the sentence that says why nothing can be concluded from it.
    """

    gate: str
    limit: float | None
    value: float | None
    high: float | None
    text: str
    doubt: str = ""


def broken_gates(limits: Limits, *, engine: Mapping[str, Any], cost: Mapping[str, Any] | None = None) -> list[str]:
    """Return which gates an engine does not hold, and by how much.

    An engine that was not measured is held to its size and, in int8, to what its graph is known to lose: `attempts`
    of the stage `build` has that of the graph, against the fp32 graph and as another runtime executes it.

    Args:
        limits: The gates.
        engine: The engine's entry of `benchmark.json`; IoU values are fractions.
        cost: The engine's entry of `zero_cost.engines`, if it has one.

    Returns:
        One line per broken gate; empty when all hold.
    """
    found = []
    size_bytes = engine["size_bytes"]
    if limits.size_bytes_max is not None and size_bytes is not None and size_bytes > limits.size_bytes_max:
        found.append(f"size_bytes_max: {size_bytes:,} bytes, the limit is {limits.size_bytes_max:,}")
    if engine["latency_ms"] is None:
        return found + _known_misses(limits, engine)
    measured = [*_losses(limits, engine.get("lost")), _latency(limits, engine), _added(limits, cost)]
    return found + [line for line in (_judge(item, limits.uncertain) for item in measured) if line is not None]


def broken_accuracy_gates(limits: Limits, losses: Mapping[str, Any]) -> list[str]:
    """Return which gates of accuracy do not hold; see `broken_gates`.

    Args:
        limits: The gates.
        losses: An engine's `lost` of `benchmark.json`.
    """
    return [line for line in (_judge(item, limits.uncertain) for item in _losses(limits, losses)) if line is not None]


def _known_misses(limits: Limits, engine: Mapping[str, Any]) -> list[str]:
    attempts = engine.get("attempts") or ()
    losses = attempts[-1]["lost"] if attempts else None
    if losses is None:
        return []
    way = next(iter(engine.get("agreement") or ()), "another runtime")
    return [
        f"{line} (its graph as executed here by {way}; the engine itself was not measured)"
        for line in broken_accuracy_gates(limits, losses)
    ]


def _judge(item: _Measured, uncertain: str) -> str | None:
    if item.limit is None:
        return None
    if item.value is None:
        return f"{item.gate}: could not be measured, the limit is {item.limit:g}"
    if item.doubt:
        return None if uncertain == "held" else f"{item.gate}: {item.doubt}, the limit is {item.limit:g}"
    judged = judge_limit(item.value, item.high, item.limit, uncertain=uncertain)
    if judged == "held":
        return None
    found = item.text.format(item.value)
    if judged == "uncertain" and item.high is None:
        found += ", but the samples are too few to tell how much more it may be (raise benchmark.budget_s)"
    elif judged == "uncertain":
        found += f", but up to {item.high:.2f} within the 95 % interval"
    return f"{item.gate}: {found}, the limit is {item.limit:g}"


def _losses(limits: Limits, losses: Mapping[str, Any] | None) -> list[_Measured]:
    found = []
    for key, limit in (("miou", limits.miou_drop_max), ("boundary_iou", limits.boundary_iou_drop_max)):
        lost = (losses or {}).get(key)
        value, high = (None, None) if lost is None else (100 * lost["value"], 100 * lost["high"])
        found.append(_Measured(f"{key}_drop_max", limit, value, high, "lost {:.2f} points"))
    return found


def _latency(limits: Limits, engine: Mapping[str, Any]) -> _Measured:
    latency = engine["latency_ms"]
    high = latency["intervals"]["p95"][1]
    return _Measured("latency_ms_p95_max", limits.latency_ms_p95_max, latency["p95"], high, "p95 is {:.1f} ms")


def _added(limits: Limits, cost: Mapping[str, Any] | None) -> _Measured:
    latency = (cost or {}).get("latency")
    ratio = None if latency is None else latency["comparison"]["ratio"]
    value, high = (None, None) if ratio is None else (100 * (ratio["value"] - 1), 100 * (ratio["high"] - 1))
    text = "{:.2f} % slower than the undistilled engine"
    control = ((latency or {}).get("control") or {}).get("verdict")
    doubt = f"the undistilled engine was {control} than itself, so nothing can be concluded"
    doubt = doubt if control in ("faster", "slower") else ""
    return _Measured("added_cost_max_percent", limits.added_cost_max_percent, value, high, text, doubt)


_UNITS = {
    "miou_drop_max": "pt",
    "boundary_iou_drop_max": "pt",
    "latency_ms_p95_max": "ms",
    "size_bytes_max": "MB",
    "added_cost_max_percent": "%",
}


def gate_excess(limits: Limits, *, engine: Mapping[str, Any], cost: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return by how much an engine is beyond each of its limits, in a word or two for a table.

    Args:
        limits: The gates.
        engine: The engine's entry of `benchmark.json`; IoU values are fractions.
        cost: The engine's entry of `zero_cost.engines`, if it has one.

    Returns:
        Value minus limit by gate, such as `{"miou_drop_max": "+1.50 pt"}`; `"≤+0.30 pt"` where only the interval
        reaches beyond the limit, which is then its upper end minus the limit. A gate that holds, or of which this is
        not known, is left out.
    """
    measured = [*_losses(limits, engine.get("lost"))]
    if engine["latency_ms"] is not None:
        measured += [_latency(limits, engine), _added(limits, cost)]
    elif engine.get("attempts"):
        # int8 that does not run here: what its graph is known to lose
        measured = _losses(limits, engine["attempts"][-1]["lost"])
    if engine["size_bytes"] is not None and limits.size_bytes_max is not None:
        size = engine["size_bytes"] / 1e6
        measured.append(_Measured("size_bytes_max", limits.size_bytes_max / 1e6, size, size, ""))
    found = {}
    for item in measured:
        if item.limit is None or item.value is None or item.doubt:
            continue
        for mark, value in (("", item.value), ("≤", item.high)):
            if value is not None and value > item.limit:
                over = value - item.limit
                found[item.gate] = f"{mark}+{over:.{2 if over < 10 else 1}f} {_UNITS[item.gate]}"
                break
    return found
