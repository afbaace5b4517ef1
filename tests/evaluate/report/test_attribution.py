"""The chart of where accuracy went: chains of engines, and steps of which nothing is known."""

from __future__ import annotations

import re
from typing import Any

from brd_edge.evaluate.report.attribution import attribution_section


def a_step(title: str, after: float, lost: float, *, half: float = 0.001, engine: str | None = None) -> dict[str, Any]:
    interval = {"value": lost, "low": max(lost - half, -1), "high": min(lost + half, 1), "confidence": 0.95}
    return {
        **{"name": "runtime", "title": "runtime", "engine": engine, "from": "", "to": title, "reason": ""},
        **{"miou": after, "boundary_iou": None, "lost": {"miou": interval}, "agreement": 0.99, "worst": []},
    }


def drawn(*steps: dict[str, Any]) -> str:
    start = {"title": "start", "miou": 0.5, "boundary_iou": None}
    found = attribution_section({"images": 1, "start": start, "steps": list(steps)})
    assert found is not None
    (chart,) = found["charts"]
    return str(chart["svg"])


def test_an_interval_of_everything_leaves_room_for_the_bars() -> None:
    for half, known in ((0.001, True), (1.0, False)):
        ticks = [float(text) for text in re.findall(r">(\d+\.\d+)</text>", drawn(a_step("a", 0.49, 0.01, half=half)))]
        assert 48 < min(ticks) < max(ticks) < 51, known


def test_a_line_is_drawn_where_the_chain_of_an_engine_begins() -> None:
    one = [a_step("a: in float", 0.49, 0.01, engine="a"), a_step("a", 0.49, 0.0, engine="a")]
    two = [a_step("a", 0.49, 0.01, engine="a"), a_step("b", 0.49, 0.01, engine="b")]
    assert drawn(*two).count("<path") == drawn(*one).count("<path") + 1
