"""The report: one HTML file that shows what a run measured, to people who were not there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brd_edge.evaluate.formats import (
    duration,
    engine_labels,
    latency_digits,
    megabytes,
    milliseconds,
    percent,
    points,
    quantity,
)
from brd_edge.evaluate.gallery import IGNORED, IGNORED_COLOR, ReportSample, draw_sample
from brd_edge.evaluate.plots import (
    SERIES,
    Curve,
    EnginePoint,
    curves_svg,
    latency_distribution_svg,
    latency_miou_svg,
)
from brd_edge.evaluate.verdict import best_engine, gap, judge_proof, p50_ms, verdict
from brd_edge.runtime.contract import SLIDING_WINDOW
from brd_edge.runtime.files import write_text_atomic

__all__ = ["Curve", "ReportSample", "write_report"]

_GALLERY_CHARACTERS = 6_000_000  # what the pictures may take of a file that is to stay below 8 MB
_DIFFERENCES_SHOWN = 20
_LEGEND_CLASSES = 40
_NO_DATASET: dict[str, Any] = {"name": "", "classes": [], "palette": [], "train": None, "val": None}
_STATUS_MARKS = {"measured": "✓", "built": "●", "skipped": "○", "failed": "✕"}
_MACHINE_NAMES = {"cpu": "CPU", "cores": "Cores", "os": "System", "python": "Python", "gpu": "GPU", "driver": "Driver"}


def write_report(
    path: Path,
    *,
    benchmark: Mapping[str, Any],
    samples: Sequence[ReportSample],
    curves: Mapping[str, Sequence[Curve]],
) -> None:
    """Write the report as one self-contained HTML file below 8 MB; it loads nothing from anywhere.

    The same arguments always give the same bytes. Names are escaped, so they may hold anything.

    Args:
        path: The file to write; it is replaced atomically.
        benchmark: The content of `benchmark.json`; every measured value may be null.
        samples: Validation images for the gallery. Where they would make the file too big, the
            last ones are left out, and the report says how many.
        curves: Training curves by the title of their chart, for example `"distill loss"`.

    Raises:
        DataError: A sample's array has another type or other dimensions than it should.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("brd_edge.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=duration, mb=megabytes, ms=milliseconds, percent=percent, points=points, quantity=quantity
    )
    template = environment.get_template("report.html.jinja")
    write_text_atomic(path, template.render(_page(benchmark, samples, curves)))


def _page(
    benchmark: Mapping[str, Any], samples: Sequence[ReportSample], curves: Mapping[str, Sequence[Curve]]
) -> dict[str, Any]:
    """Return everything that the template names."""
    engines = list(benchmark.get("engines") or [])
    dataset = _NO_DATASET | (benchmark.get("dataset") or {})
    labels = engine_labels(engines)
    gallery = _gallery(samples, dataset["palette"])
    return {
        "recipe": benchmark.get("recipe") or "unnamed",
        "created": benchmark.get("created") or "",
        "command": benchmark.get("command") or "",
        "dataset": dataset,
        "verdict": verdict(benchmark),
        "slides": (benchmark.get("contract") or {}).get("resize") == SLIDING_WINDOW,
        "engines": _engine_rows(engines, labels),
        "latency_decimals": latency_digits(p50_ms(engine) for engine in engines),
        "models": _model_rows(benchmark),
        "charts": _charts(benchmark, engines, labels),
        "training": _training(curves),
        "classes": _class_table(benchmark, engines, labels),
        "gallery": gallery,
        "left_out": len(samples) - len(gallery),
        "legend": _legend(dataset, samples[: len(gallery)]),
        "proof": judge_proof(benchmark.get("zero_cost")),
        "differences_shown": _DIFFERENCES_SHOWN,
        "durations": benchmark.get("duration_s") or {},
        "contract": _contract(benchmark.get("contract") or {}),
        "machine": _machine(benchmark.get("environment") or {}),
        "packages": (benchmark.get("environment") or {}).get("packages") or {},
        "series": SERIES,
    }


def _engine_rows(engines: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    rows, best = [], best_engine(engines)
    for engine, label in zip(engines, labels, strict=True):
        status = str(engine.get("status") or "unknown")
        latency = engine.get("latency_ms") or {}
        numbers = [latency.get("p50"), *(engine.get(key) for key in ("miou", "boundary_iou", "argmax_agreement"))]
        rows.append(
            {
                "label": label,
                "runtime": engine.get("runtime") or "?",
                "version": engine.get("runtime_version") or "",
                "precision": engine.get("precision") or "?",
                "target": engine.get("target") or "?",
                "status": status,
                "tone": status if status in _STATUS_MARKS else "skipped",
                "mark": _STATUS_MARKS.get(status, "○"),
                "reason": engine.get("reason") or ("" if status == "measured" else "No reason was given."),
                "measured": any(number is not None for number in numbers),
                "latency": latency,
                "miou": engine.get("miou"),
                "boundary_iou": engine.get("boundary_iou"),
                "agreement": engine.get("argmax_agreement"),
                "size_bytes": engine.get("size_bytes"),
                "best": engine is best,
            }
        )
    return rows


def _model_rows(benchmark: Mapping[str, Any]) -> list[dict[str, Any]]:
    teacher = benchmark.get("teacher") or {}
    rows = []
    for role in ("teacher", "compared", "student"):
        model = benchmark.get(role)
        if not model:
            continue
        rows.append(
            {
                "role": str(model.get("name") or "earlier run") if role == "compared" else role,
                "model": model.get("model") or "",
                "method": model.get("method") or "",
                "params": model.get("params"),
                "macs": model.get("macs"),
                "miou": model.get("miou"),
                "boundary_iou": model.get("boundary_iou"),
                "gap": None if role == "teacher" else gap(model, teacher, "miou"),
            }
        )
    return rows


def _charts(
    benchmark: Mapping[str, Any], engines: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    charts: list[dict[str, Any]] = []
    shown = [
        EnginePoint(label, latency, float(engine["miou"]), index)
        for index, (engine, label) in enumerate(zip(engines, labels, strict=True))
        if (latency := p50_ms(engine)) is not None and engine.get("miou") is not None
    ]
    if shown:
        models = [(row["role"], float(row["miou"])) for row in _model_rows(benchmark) if row["miou"] is not None]
        text = "; ".join(f"{point.label}: {point.latency_ms:.3g} ms, {percent(point.miou)} %" for point in shown)
        charts.append(
            {
                "title": "Latency against mIoU",
                "alt": f"Engines by p50 latency and mIoU. {text}.",
                "note": "Up and to the left is better. Dashed: the models in PyTorch, which have no engine latency."
                if models
                else "Up and to the left is better.",
                "legend": [],
                "svg": latency_miou_svg(shown, models),
            }
        )
    sampled = [
        (label, index, [float(value) for value in engine["samples_ms"]])
        for index, (engine, label) in enumerate(zip(engines, labels, strict=True))
        if engine.get("samples_ms")
    ]
    if sampled:
        text = "; ".join(f"{label}: {min(times):.3g} to {max(times):.3g} ms" for label, _, times in sampled)
        charts.append(
            {
                "title": "Latency distribution",
                "alt": f"Latency of single inferences. {text}.",
                "note": "Dots: single inferences. Bar: the middle half of them. Long line: median. Short line: p95.",
                "legend": [],
                "svg": latency_distribution_svg(sampled),
            }
        )
    return charts


def _training(curves: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    charts: list[dict[str, Any]] = []
    for index, (title, group) in enumerate(curves.items()):
        drawn = [curve for curve in group if any(math.isfinite(value) for value in curve.values)]
        if not drawn:
            continue
        ends = "; ".join(f"{curve.name} ends at {_last(curve):.4g}" for curve in drawn)
        charts.append(
            {
                "title": title,
                "alt": f"{title} by training step. {ends}.",
                "note": "",
                "legend": [curve.name for curve in drawn] if len(drawn) > 1 else [],
                "svg": curves_svg(f"curves{index}", drawn),
            }
        )
    return charts


def _last(curve: Curve) -> float:
    return next(value for value in reversed(curve.values) if math.isfinite(value))


def _class_table(
    benchmark: Mapping[str, Any], engines: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, Any]:
    dataset = benchmark.get("dataset") or {}
    names, palette = dataset.get("classes") or [], dataset.get("palette") or []
    columns: list[dict[str, Any]] = []
    for role, kind in (("teacher", "teacher"), ("compared", "compared"), ("student", "student")):
        model = benchmark.get(role) or {}
        if model.get("class_iou"):
            title = str(model.get("name") or "earlier run") if role == "compared" else role
            columns.append({"title": title, "kind": kind, "source": model})
    for engine, label in zip(engines, labels, strict=True):
        if engine.get("class_iou"):
            columns.append({"title": label, "kind": "engine", "source": engine})
    rows = [
        {
            "name": name,
            "color": _css_color(palette[index]) if index < len(palette) else _css_color(IGNORED_COLOR),
            "values": [_at(column["source"]["class_iou"], index) for column in columns],
        }
        for index, name in enumerate(names)
    ]
    return {"columns": columns, "rows": rows if columns else []}


def _at(values: Sequence[float | None], index: int) -> float | None:
    value = values[index] if index < len(values) else None
    return None if value is None or not math.isfinite(value) else float(value)


def _gallery(samples: Sequence[ReportSample], palette: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    left = _GALLERY_CHARACTERS
    for sample in samples:
        tiles, place = draw_sample(sample, palette)
        left -= sum(len(tile.whole.uri) + len(tile.close.uri) for tile in tiles)
        if left < 0:
            break
        rows.append({"name": sample.name, "tiles": tiles, "place": place})
    return rows


def _legend(dataset: Mapping[str, Any], samples: Sequence[ReportSample]) -> dict[str, Any]:
    """Name the colours: all of a small data set's, of a large one's only those that the gallery shows."""
    names, palette = dataset.get("classes") or [], dataset.get("palette") or []
    seen: set[int] = set()
    for sample in samples:
        for pixels in (sample.label, *sample.masks.values()):
            seen.update(set(pixels.ravel().tolist()))
    entries = [
        {"name": name, "color": _css_color(palette[index])}
        for index, name in enumerate(names[: len(palette)])
        if len(names) <= _LEGEND_CLASSES or index in seen
    ]
    return {"entries": entries, "hidden": len(names) - len(entries), "ignored": _css_color(IGNORED_COLOR)} | {
        "has_ignored": IGNORED in seen
    }


def _css_color(color: Sequence[int]) -> str:
    red, green, blue = (min(255, max(0, int(channel))) for channel in color)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _contract(contract: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if contract.get("height") and contract.get("width"):
        rows.append(("Frame", f"{contract['height']} × {contract['width']} pixels (height × width)"))  # noqa: RUF001
    for key, value in contract.items():
        if key in {"height", "width"}:
            continue
        text = ", ".join(f"{number:g}" for number in value) if isinstance(value, list | tuple) else str(value)
        rows.append((key.replace("_", " ").capitalize(), text))
    return rows


def _machine(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in environment.items():
        if key == "packages":
            continue
        text = str(value) if value is not None else "none" if key in {"gpu", "driver"} else "unknown"
        rows.append((_MACHINE_NAMES.get(key, key.replace("_", " ").capitalize()), text))
    return rows
