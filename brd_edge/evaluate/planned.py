"""Engines that their device builds: `skipped` where the recipe runs, but their graph is bundled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from brd_edge.evaluate.gates import ACCURACY_GATES
from brd_edge.runtime.targets import TARGETS

__all__ = ["graph_gates", "is_planned", "status_reason", "status_text"]


def is_planned(entry: Mapping[str, Any]) -> bool:
    """Whether an engine's entry is of one that its device is to build from the bundled graph."""
    target = TARGETS.get(str(entry.get("target")))
    # without a graph in its precision the device has nothing to build from
    graph = entry.get("graph") is not None
    return entry.get("status") == "skipped" and graph and target is not None and target.built == "on device"


def status_text(entry: Mapping[str, Any], *, missing: str = "unknown") -> str:
    """Return an engine's status as people read it; that of one which its device builds is no failing."""
    return "to build on the device" if is_planned(entry) else str(entry.get("status") or missing)


def status_reason(entry: Mapping[str, Any], *, missing: str) -> str:
    """Return why an engine was not measured, or what is to be done about it where its device builds it."""
    if not is_planned(entry):
        return str(entry.get("reason") or missing)
    if entry.get("gates_broken"):
        return "its graph misses a gate, so it is not in the bundle"
    held = "; its graph held the gates of accuracy" if graph_gates(entry) == "held" else ""
    return (
        "in the bundle; `brd-edge ship` builds it on the device, or run "
        f"`python -m brd_edge.runtime build BUNDLE` there{held}"
    )


def graph_gates(entry: Mapping[str, Any]) -> Literal["held", "missed"] | None:
    """Say whether the int8 graph of an engine that was not measured holds its gates of accuracy.

    Args:
        entry: The engine's entry of `benchmark.json`.

    Returns:
        None where there is no such gate, or what the graph loses is not known.
    """
    asked = set(entry.get("gates") or ()) & set(ACCURACY_GATES)
    attempts = entry.get("attempts") or ()
    if not asked or not attempts or attempts[-1]["lost"] is None or entry.get("latency_ms") is not None:
        return None
    broken = {line.partition(":")[0] for line in entry.get("gates_broken") or ()}
    return "missed" if broken & asked else "held"
