"""The report: one HTML file that shows what a run measured, to people who were not there."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from brd_edge.evaluate.formats import (
    agreement_percent,
    duration,
    engine_labels,
    latency_digits,
    megabytes,
    milliseconds,
    percent,
    points,
    quantity,
)
from brd_edge.evaluate.proof import judge_proof
from brd_edge.evaluate.report.accuracy import ACCURACY_HEADERS, accuracy_rows, interval_text
from brd_edge.evaluate.report.attribution import attribution_section
from brd_edge.evaluate.report.engines import (
    added_cost_chart,
    chart,
    engine_charts,
    engine_rows,
    latency_rows,
    throughput_lines,
)
from brd_edge.evaluate.report.gallery import IGNORED, IGNORED_COLOR, PLAIN_TITLE, ReportSample, draw_sample
from brd_edge.evaluate.report.plots import Curve, curves_svg
from brd_edge.evaluate.report.svg import SERIES
from brd_edge.evaluate.report.verdict import gap, p50_ms, verdict
from brd_edge.runtime.contract import SLIDING_WINDOW
from brd_edge.runtime.files import write_text_atomic

__all__ = ["Curve", "ReportSample", "write_report"]

_GALLERY_CHARACTERS = 6_000_000  # what the pictures may take of a file that is to stay below 8 MB
_DIFFERENCES_SHOWN = 20
_LEGEND_CLASSES = 40
_NO_DATASET: dict[str, Any] = {"name": "", "classes": [], "palette": [], "train": None, "val": None, "unlabelled": 0}
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
        samples: Validation images for the gallery, the most telling first. Where they would make the file too big, the
            last ones are left out, and the report says how many.
        curves: Training curves by the title of their chart, for example `"distill loss"`.

    Raises:
        DataError: A sample's array has another type or other dimensions than it should.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("brd_edge.evaluate.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=duration,
        mb=megabytes,
        ms=milliseconds,
        percent=percent,
        points=points,
        agreement=agreement_percent,
        quantity=quantity,
    )
    script = (resources.files("brd_edge.evaluate.report") / "sort.js").read_text(encoding="utf-8").strip()
    # the page's policy lets this one script run, and no other
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html.jinja")
    page = template.render(_page(benchmark, samples, curves), script=script, script_sha256=allowed)
    write_text_atomic(path, page)


def _page(
    benchmark: Mapping[str, Any], samples: Sequence[ReportSample], curves: Mapping[str, Sequence[Curve]]
) -> dict[str, Any]:
    """Return everything that the template names."""
    engines = list(benchmark.get("engines") or [])
    dataset = _NO_DATASET | (benchmark.get("dataset") or {})
    labels = engine_labels(engines)
    gallery = _gallery(samples, dataset["palette"])
    digits = latency_digits(p50_ms(engine) for engine in engines)
    models, found = _model_rows(benchmark), benchmark.get("zero_cost") or {}
    proof = judge_proof(found)
    return {
        "recipe": benchmark.get("recipe") or "unnamed",
        "created": benchmark.get("created") or "",
        "command": benchmark.get("command") or "",
        "source": _source(benchmark.get("environment") or {}),
        "dataset": dataset,
        "verdict": verdict(benchmark),
        "slides": (benchmark.get("contract") or {}).get("resize") == SLIDING_WINDOW,
        "engines": engine_rows(engines, labels),
        "latency_decimals": digits,
        "latencies": latency_rows(engines, labels, digits),
        "throughput": throughput_lines(engines, labels),
        "models": models,
        "accuracy": accuracy_rows(benchmark, engines, labels),
        "accuracy_headers": ACCURACY_HEADERS,
        "charts": engine_charts(engines, labels, models),
        "attribution": attribution_section(benchmark.get("attribution")),
        "training": _training(curves),
        "classes": _class_table(benchmark, engines, labels),
        "gallery": gallery,
        # a student that was trained plainly is its own plain student
        "plain_missing": (benchmark.get("student") or {}).get("method") != "none"
        and not any(PLAIN_TITLE in sample.masks for sample in samples),
        "left_out": len(samples) - len(gallery),
        "legend": _legend(dataset, samples[: len(gallery)]),
        "proof": proof,
        "added_cost": added_cost_chart(proof, float(found.get("margin_percent") or 1.0) / 100),
        "differences_shown": _DIFFERENCES_SHOWN,
        "durations": benchmark.get("duration_s") or {},
        "contract": _contract(benchmark.get("contract") or {}),
        "machine": [*_machine(benchmark.get("environment") or {}), *_threads(benchmark)],
        "packages": (benchmark.get("environment") or {}).get("packages") or {},
        "series": SERIES,
    }


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
                "intervals": {key: interval_text(model, key) for key in ("miou", "boundary_iou")},
                "gap": None if role == "teacher" else gap(model, teacher, "miou"),
                # the teacher's loss against the student, image by image, is the student's distance to it
                "gap_interval": _gap_interval(teacher) if role == "student" else "",
            }
        )
    return rows


def _gap_interval(teacher: Mapping[str, Any]) -> str:
    lost = (teacher.get("lost") or {}).get("miou")
    return "" if lost is None else f"{points(lost['low'])} to {points(lost['high'])}"


def _training(curves: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    charts: list[dict[str, Any]] = []
    for index, (title, group) in enumerate(curves.items()):
        drawn = [curve for curve in group if any(math.isfinite(value) for value in curve.values)]
        if not drawn:
            continue
        ends = "; ".join(f"{curve.name} ends at {_last(curve):.4g}" for curve in drawn)
        charts.append(
            chart(
                title,
                curves_svg(f"curves{index}", drawn),
                alt=f"{title} by training step. {ends}.",
                legend=[curve.name for curve in drawn] if len(drawn) > 1 else (),
            )
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
    for column in columns:
        column["interval"] = interval_text(column["source"], "miou")
    rows = [
        {
            "name": name,
            "color": _css_color(palette[index]) if index < len(palette) else _css_color(IGNORED_COLOR),
            "cells": [_class_cell(column["source"], index) for column in columns],
        }
        for index, name in enumerate(names)
    ]
    return {"columns": columns, "rows": rows if columns else []}


def _class_cell(source: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the IoU of a class, and the ends of its interval; None for what is not there."""
    values, ends = source["class_iou"], (source.get("intervals") or {}).get("class_iou") or ()
    value = values[index] if index < len(values) else None
    if value is None or not math.isfinite(value):
        return {"value": None, "ends": None}
    return {"value": float(value), "ends": ends[index] if index < len(ends) else None}


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


def _source(environment: Mapping[str, Any]) -> str:
    """Say which source the command was run with; empty where the benchmark does not say."""
    if "commit" not in environment:
        return ""
    commit = environment["commit"]
    if not commit:
        return "brd_edge was not run from a checkout of its source; its version stands under Packages."
    sha, changed, _ = str(commit).partition(" with changes")
    if not changed:
        return f"Source: commit {sha}, without changes."
    return f"Source: commit {sha}, with changes that are in no commit: the commit alone does not repeat this."


def _threads(benchmark: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "threads" not in benchmark:
        return []
    return [("Threads of an engine", str(benchmark["threads"] or "as many as its runtime takes"))]


def _machine(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in environment.items():
        # the commit stands below the command
        if key in ("packages", "commit"):
            continue
        if key == "memory_bytes" and value:
            rows.append(("Memory", f"{float(value) / 1e9:.1f} GB"))
            continue
        text = str(value) if value is not None else "none" if key in {"gpu", "driver"} else "unknown"
        rows.append((_MACHINE_NAMES.get(key, key.replace("_", " ").capitalize()), text))
    return rows
