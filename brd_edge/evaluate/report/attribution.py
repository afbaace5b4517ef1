"""The report's section on where accuracy went, from the `attribution` entry of `benchmark.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brd_edge.evaluate.formats import agreement_percent, percent, points
from brd_edge.evaluate.report.engines import chart
from brd_edge.evaluate.report.waterfall import WaterfallStep, waterfall_svg

__all__ = ["attribution_section"]

_SCORES = (("miou", "mIoU"), ("boundary_iou", "Boundary IoU"))


def attribution_section(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the template shows: the number of images, a chart a score, and a row a step; None without steps."""
    if not found or not found.get("steps"):
        return None
    charts = [item for key, title in _SCORES if (item := _chart(found, key, title)) is not None]
    return {"images": found["images"], "charts": charts, "rows": [_row(step) for step in found["steps"]]}


def _row(step: Mapping[str, Any]) -> dict[str, Any]:
    lost = step.get("lost") or {}
    return {
        "title": step["to"],
        "differs": step["title"],
        "reason": step.get("reason") or "",
        "cells": [
            (percent(step.get(key), digits=2), _change(lost.get(key)), _change_interval(lost.get(key)))
            for key, _ in _SCORES
        ],
        "agreement": agreement_percent(step.get("agreement")),
        "worst": [f"{item['image']} ({_share(item['changed'])} % of the pixels)" for item in step.get("worst") or ()],
    }


def _share(changed: float) -> str:
    # what did change must not look as if it had not
    return percent(changed, digits=2) if changed >= 0.00005 else "<0.01"


def _change(lost: Mapping[str, float] | None) -> str:
    return points(None if lost is None else -lost["value"], digits=2)


def _change_interval(lost: Mapping[str, float] | None) -> str:
    # an interval of nothing says no more than the value
    if lost is None or lost["low"] == lost["high"]:
        return ""
    return f"{points(-lost['high'], digits=2)} to {points(-lost['low'], digits=2)}"


def _chart(found: Mapping[str, Any], key: str, title: str) -> dict[str, Any] | None:
    steps = _waterfall(found["start"], found["steps"], key)
    if all(step.after is None for step in steps):
        return None
    words = [
        f"{step.label}: {percent(step.after, digits=2)} %" if step.after is not None else f"{step.label}: not measured"
        for step in steps
    ]
    return chart(
        f"Where accuracy went: {title}",
        waterfall_svg(f"attribution-{key.replace('_', '-')}", steps, score=title),
        alt=f"{title} after each step. {'; '.join(words)}.",
        note="Each bar goes from the score before a step to the score after it. Thin lines: 95 % intervals of the "
        "difference. Every engine begins at the exported graph; its last row is the engine itself.",
    )


def _waterfall(start: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], key: str) -> list[WaterfallStep]:
    level = start.get(key)
    rows, engine = [WaterfallStep(str(start["title"]), None, level)], None
    for step in steps:
        after, lost = step.get(key), (step.get("lost") or {}).get(key)
        before = level if after is None or lost is None else after + lost["value"]
        # of a single image nothing is known, and an interval of everything would leave no room for the bars
        interval = None
        if before is not None and lost is not None and lost["high"] - lost["low"] < 1:
            interval = (before - lost["high"], before - lost["low"])
        measured = after is not None and before is not None
        apart, engine = step.get("engine") != engine, step.get("engine")
        rows.append(WaterfallStep(str(step["to"]), before, after if measured else None, interval, apart))
        if after is not None and not step.get("engine"):
            level = after
    return rows
