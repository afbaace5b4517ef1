"""The report's sections on engines: their table, their latencies, their charts, and what distillation added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brd_edge.evaluate.formats import milliseconds, milliseconds_interval, percent, target_of
from brd_edge.evaluate.planned import status_reason, status_text
from brd_edge.evaluate.proof import Proof
from brd_edge.evaluate.report.accuracy import interval_text
from brd_edge.evaluate.report.plots import EnginePoint, latency_distribution_svg, pareto_front, ratios_svg, tradeoff_svg
from brd_edge.evaluate.report.verdict import best_engine, p50_ms

__all__ = [
    "added_cost_chart",
    "chart",
    "engine_charts",
    "engine_rows",
    "latency_rows",
    "throughput_lines",
]

_STATUS_MARKS = {"measured": "✓", "built": "●", "skipped": "○", "failed": "✕"}
_STOPPED = {
    "interval": "the intervals were narrow enough",
    "samples": "the wanted number of samples was reached",
    "budget": "the time was over",
}
_SCORES = (("miou", "mIoU"), ("boundary_iou", "Boundary IoU"))


def chart(title: str, svg: str, *, alt: str, note: str = "", legend: Sequence[str] = ()) -> dict[str, Any]:
    """Return a chart as the template draws it."""
    return {"title": title, "alt": alt, "note": note, "legend": list(legend), "svg": svg}


def _how_made(engine: Mapping[str, Any]) -> list[str]:
    """Say what is special about how an engine was made."""
    found = []
    if engine.get("output") == "sparse":
        ratio = engine.get("output_ratio")
        ends = "" if ratio is None else f"{ratio['value']:.2f} × dense, {ratio['low']:.2f} to {ratio['high']:.2f}"  # noqa: RUF001
        faster = f" ({ends})" if ends else ""
        found.append(f"coarse logits{faster}")
    if engine.get("kept"):
        found.append(f"in floating point: {', '.join(engine['kept'])}")
    return found


def engine_rows(engines: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the engine table, in the order of the recipe."""
    rows, best = [], best_engine(engines)
    for place, (engine, label) in enumerate(zip(engines, labels, strict=True)):
        status = str(engine.get("status") or "unknown")
        latency = engine.get("latency_ms") or {}
        scores = {key: engine.get(key) for key in ("miou", "boundary_iou", "argmax_agreement")}
        rows.append(
            {
                "label": label,
                "runtime": engine.get("runtime") or "?",
                "version": engine.get("runtime_version") or "",
                "precision": engine.get("precision") or "?",
                "target": target_of(engine),
                "status": status_text(engine),
                "tone": status if status in _STATUS_MARKS else "skipped",
                "mark": _STATUS_MARKS.get(status, "○"),
                "how": _how_made(engine),
                "reason": status_reason(engine, missing="" if status == "measured" else "No reason was given."),
                "gates_broken": list(engine.get("gates_broken") or ()),
                "measured": any(number is not None for number in (latency.get("p50"), *scores.values())),
                "latency": latency,
                **scores,
                "intervals": {key: interval_text(engine, key) for key in scores},
                "size_bytes": engine.get("size_bytes"),
                "best": engine is best,
                # what the browser sorts by; null goes last
                "sort": {
                    "name": place,
                    **{key: latency.get(key) for key in ("p50", "p95", "p99")},
                    **scores,
                    "size": engine.get("size_bytes"),
                },
            }
        )
    return rows


def latency_rows(engines: Sequence[Mapping[str, Any]], labels: Sequence[str], digits: int) -> list[dict[str, Any]]:
    """Return the rows of the table of latencies: each measured engine end to end, and alone where that was timed."""
    rows = []
    for engine, label in zip(engines, labels, strict=True):
        for key, what in (("latency_ms", "frame to class map"), ("engine_latency_ms", "engine alone")):
            latency = engine.get(key) or {}
            if latency.get("p50") is None:
                continue
            intervals = latency.get("intervals") or {}
            cells = [
                (
                    milliseconds(latency.get(name), digits=digits),
                    milliseconds_interval(intervals.get(name), digits=digits),
                )
                for name in ("p50", "p90", "p95", "p99")
            ]
            mean = milliseconds_interval(intervals.get("mean"), digits=digits)
            cells += [(milliseconds(latency.get("mean"), digits=digits), mean)]
            cells += [(milliseconds(latency.get("min"), digits=digits), "")]
            how = _STOPPED.get(str(latency.get("stopped") or ""), "")
            rows.append(
                {
                    "label": label,
                    "what": what,
                    "cells": cells,
                    "n": latency.get("n"),
                    "how": how,
                    "warnings": list(latency.get("warnings") or ()),
                }
            )
    return rows


def throughput_lines(engines: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[str]:
    """Return a sentence for each engine whose saturated throughput was measured."""
    lines = []
    for engine, label in zip(engines, labels, strict=True):
        found = engine.get("throughput")
        if found:
            low, high = found["interval"]
            ends = f"from {low:.1f}" if high is None else f"{low:.1f} to {high:.1f}"
            lines.append(
                f"{label}: {found['rate_hz']:.1f} frames a second ({ends}) with {found['streams']} streams at once"
            )
    return lines


def engine_charts(
    engines: Sequence[Mapping[str, Any]], labels: Sequence[str], models: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return latency against each score, and the latencies' distributions; of what was measured.

    Args:
        engines: The entries of `benchmark.json`.
        labels: Their names.
        models: Rows with `role` and scores, for the dashed levels.
    """
    charts = [
        item for key, title in _SCORES if (item := _tradeoff(engines, labels, models, key=key, title=title)) is not None
    ]
    sampled = [
        (label, index, [float(value) for value in engine["samples_ms"]])
        for index, (engine, label) in enumerate(zip(engines, labels, strict=True))
        if engine.get("samples_ms")
    ]
    if sampled:
        text = "; ".join(f"{label}: {min(times):.3g} to {max(times):.3g} ms" for label, _, times in sampled)
        charts.append(
            chart(
                "Latency distribution",
                latency_distribution_svg(sampled),
                alt=f"Latency of single inferences. {text}.",
                note="Dots: single inferences. Bar: the middle half of them. Long line: median. Short line: p95.",
            )
        )
    return charts


def added_cost_chart(proof: Proof, margin: float) -> dict[str, Any] | None:
    """Return the chart of each engine's latency against the undistilled one's, or None where none was timed."""
    timed = [
        (engine.name, index, engine.ratio) for index, engine in enumerate(proof.engines) if engine.ratio is not None
    ]
    if not timed:
        return None
    words = [f"{engine.name}: {engine.verdict}" for engine in proof.engines if engine.ratio is not None]
    return chart(
        "Latency against the undistilled engine",
        ratios_svg(timed, margin=margin),
        alt=f"{'; '.join(words)}.",
        note=f"Median of the paired ratios with its 95 % interval. Shaded: ±{100 * margin:g} %, which counts as none.",
    )


def _tradeoff(
    engines: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    models: Sequence[Mapping[str, Any]],
    *,
    key: str,
    title: str,
) -> dict[str, Any] | None:
    shown = [
        EnginePoint(
            label,
            latency,
            float(engine[key]),
            index,
            _ends((engine.get("latency_ms") or {}).get("intervals"), "p50"),
            _ends(engine.get("intervals"), key),
        )
        for index, (engine, label) in enumerate(zip(engines, labels, strict=True))
        if (latency := p50_ms(engine)) is not None and engine.get(key) is not None
    ]
    if not shown:
        return None
    levels = [(str(model["role"]), float(model[key])) for model in models if model[key] is not None]
    text = "; ".join(f"{point.label}: {point.latency_ms:.3g} ms, {percent(point.score)} %" for point in shown)
    note = "Up and to the left is better."
    if any(point.score_interval for point in shown):
        note += " Thin lines: 95 % intervals."
    if len(pareto_front(shown)) > 1:
        note += " Steps: the best that can be had within a latency."
    if levels:
        note += " Dashed: the models in PyTorch, which have no engine latency."
    return chart(
        f"Latency against {title}",
        tradeoff_svg(f"latency-{key.replace('_', '-')}", shown, levels, score=title),
        alt=f"Engines by p50 latency and {title}. {text}.",
        note=note,
    )


def _ends(intervals: Mapping[str, Sequence[float]] | None, key: str) -> tuple[float, float] | None:
    ends = (intervals or {}).get(key)
    # without its upper end an interval cannot be drawn
    return None if ends is None or ends[1] is None else (float(ends[0]), float(ends[1]))
