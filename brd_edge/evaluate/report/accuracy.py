"""The report's table of every score: models and engines, with intervals and with what changed against PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brd_edge.evaluate.formats import MISSING, agreement_percent, percent, points

__all__ = ["ACCURACY_HEADERS", "accuracy_rows", "change_text", "interval_text"]

_SCORES = {
    "miou": "mIoU",
    "boundary_iou": "Boundary IoU",
    "boundary_f": "Boundary F",
    "connectivity_error": "Connectivity error",
    "pixel_accuracy": "Pixel accuracy",
    "argmax_agreement": "Agreement",
}
ACCURACY_HEADERS = tuple(_SCORES.values())
"""What stands above the cells of `accuracy_rows`."""

# engines differ from the student in the second decimal of these, if at all
_DIGITS = {"argmax_agreement": 2}


def accuracy_rows(
    benchmark: Mapping[str, Any], engines: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for each model and each engine that was scored.

    Args:
        benchmark: The content of `benchmark.json`; every measured value may be null.
        engines: Its engines.
        labels: Their names.

    Returns:
        `label`, `what` it is, and `cells` in the order of `ACCURACY_HEADERS`: value, interval, and change against the
        student in PyTorch, as texts that may be empty.
    """
    entries = []
    for role, what in (("teacher", "PyTorch"), ("compared", "ONNX Runtime"), ("student", "PyTorch")):
        model = benchmark.get(role) or {}
        label = str(model.get("name") or "earlier run") if role == "compared" else role
        entries.append((label, what, model))
    entries += [(label, str(engine.get("target") or ""), engine) for label, engine in zip(labels, engines, strict=True)]
    return [
        {"label": label, "what": what, "cells": [_cell(entry, key) for key in _SCORES]}
        for label, what, entry in entries
        if any(entry.get(key) is not None for key in _SCORES)
    ]


def _cell(entry: Mapping[str, Any], key: str) -> tuple[str, str, str]:
    digits = _DIGITS.get(key, 1)
    write = agreement_percent if key == "argmax_agreement" else percent
    value = write(entry.get(key))
    if value == MISSING:
        return value, "", ""
    return value, interval_text(entry, key, digits=digits), change_text((entry.get("lost") or {}).get(key))


def interval_text(entry: Mapping[str, Any], key: str, *, digits: int = 1) -> str:
    """Return the interval of an entry's score in percent, such as `"63.9 to 66.1"`; an empty text without one."""
    ends = (entry.get("intervals") or {}).get(key)
    if ends is None:
        return ""
    return f"{percent(ends[0], digits=digits)} to {percent(ends[1], digits=digits)}"


def change_text(lost: Mapping[str, float] | None) -> str:
    """Return a paired loss as a change in points, such as `"−0.12 (−0.30 to +0.05)"`; an empty text without one."""  # noqa: RUF002
    if lost is None:
        return ""
    if lost["value"] == lost["low"] == lost["high"]:
        # an interval of nothing says no more than the value
        return points(-lost["value"], digits=2)
    value, low, high = (points(-lost[end], digits=2) for end in ("value", "high", "low"))
    return f"{value} ({low} to {high})"
