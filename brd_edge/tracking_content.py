"""What of a run directory is tracked: parameters, curves, figures, tags and files, without any tracking tool."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brd_edge.evaluate.proof import judge_proof

__all__ = [
    "TRAININGS",
    "Point",
    "benchmark_figures",
    "benchmark_tags",
    "curve_points",
    "environment_tags",
    "flat_parameters",
    "measured_at_ms",
    "training_mark",
    "wanted_files",
]

TRAININGS = ("teacher", "distill")
"""Stages that leave curves."""

Point = tuple[str, int, float]
"""Name of a curve, step, value."""

_VALUE_LENGTH_MAX = 6000
_NAME_LENGTH_MAX = 250
_TAG_LENGTH_MAX = 5000
# where results go does not say how they came about
_NOT_PARAMETERS = ("ship", "tracking")
_SCORES = ("miou", "boundary_iou", "boundary_f", "connectivity_error", "pixel_accuracy")
_MODEL_FIGURES = (*_SCORES, "params", "macs")
_ENGINE_FIGURES = (*_SCORES, "argmax_agreement", "size_bytes")
_LATENCIES = ("p50", "p95", "p99")


def flat_parameters(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return a resolved recipe as flat parameters, such as `distill.train.lr` and `engines.0.runtime`.

    Args:
        recipe: The recipe as JSON types; its sections `ship` and `tracking` are left out.

    Returns:
        Names of at most 250 characters and values of at most 6000; a list of plain values is one value.
    """
    return {
        _name(key): _cut(value if isinstance(value, str) else json.dumps(value), _VALUE_LENGTH_MAX)
        for key, value in _flat({key: value for key, value in recipe.items() if key not in _NOT_PARAMETERS})
    }


def curve_points(training: str, records: str) -> list[Point]:
    """Return every point of a training, under the names that TensorBoard shows.

    Args:
        training: `teacher` or `distill`; the names begin with it.
        records: The text of its `metrics.jsonl`; the last line may be incomplete.
    """
    points = []
    for entry in _entries(records):
        found: dict[str, float] = {name: entry[name] for name in ("lr", "miou") if name in entry}
        found |= {f"loss/{name}": value for name, value in entry.get("loss", {}).items()}
        points += [(_name(f"{training}/{name}"), entry["step"], value) for name, value in found.items()]
    return [point for point in points if math.isfinite(point[2])]


def training_mark(records: str) -> str | None:
    """Return a digest of a training's first entry: one that goes on keeps it, a new one has another as a rule."""
    first = next(_entries(records), None)
    return None if first is None else hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16]


def benchmark_figures(benchmark: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of `benchmark.json`, such as `engine/onnxruntime-fp32-x86-cpu/miou`; nulls are left out."""
    figures: dict[str, Any] = {}
    for role in ("teacher", "student", "compared"):
        model = benchmark.get(role) or {}
        figures |= {f"benchmark/{role}/{name}": model.get(name) for name in _MODEL_FIGURES}
    for engine in benchmark["engines"]:
        prefix, latency = f"engine/{engine['name']}", engine.get("latency_ms") or {}
        figures |= {f"{prefix}/{name}": engine.get(name) for name in _ENGINE_FIGURES}
        alone, saturated = engine.get("engine_latency_ms") or {}, engine.get("throughput") or {}
        figures |= {f"{prefix}/latency_ms_{name}": latency.get(name) for name in _LATENCIES}
        figures |= {f"{prefix}/engine_latency_ms_{name}": alone.get(name) for name in _LATENCIES}
        figures |= {f"{prefix}/throughput_hz": latency.get("throughput_hz")}
        figures |= {f"{prefix}/saturated_rate_hz": saturated.get("rate_hz")}
    for engine in (benchmark.get("zero_cost") or {}).get("engines") or ():
        compared = (engine.get("latency") or {}).get("comparison")
        if compared is not None:
            figures[f"engine/{engine['name']}/latency_ratio_to_undistilled"] = compared["ratio"]["value"]
    return {_name(key): float(value) for key, value in figures.items() if value is not None and math.isfinite(value)}


def benchmark_tags(benchmark: Mapping[str, Any]) -> dict[str, str]:
    """Return the verdicts of `benchmark.json`: `zero_cost`, `gates`, and every engine's status with its reason."""
    held = judge_proof(benchmark.get("zero_cost")).held
    broken = any(engine.get("gates_broken") for engine in benchmark["engines"])
    judged = any(engine["status"] in ("measured", "built") for engine in benchmark["engines"])
    tags = {
        "zero_cost": "undecided" if held is None else "held" if held else "not held",
        "gates": "not held" if broken else "held" if judged else "not measured",
    }
    for engine in benchmark["engines"]:
        tags[f"engine.{engine['name']}.status"] = engine["status"]
        tags[f"engine.{engine['name']}.reason"] = engine.get("reason") or ""
    return {_name(key): _cut(value, _TAG_LENGTH_MAX) for key, value in tags.items()}


def environment_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the content of `environment.json` as tags; what is not known is left out."""
    known = {key: value for key, value in _flat(environment) if value is not None}
    return {_name(f"environment.{key}"): _cut(str(value), _TAG_LENGTH_MAX) for key, value in known.items()}


def measured_at_ms(benchmark: Mapping[str, Any]) -> int:
    """Return when a benchmark was made, in milliseconds since 1970: the same figures always get the same time."""
    made = datetime.strptime(benchmark["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return int(made.timestamp() * 1000)


def wanted_files(directory: Path, stages: Collection[str], *, bundle: bool) -> list[Path]:
    """Return the files of a run directory to keep, as far as their stages are done and they are there.

    Args:
        directory: The run directory.
        stages: The stages that are done.
        bundle: Whether `bundle.tar.gz` is wanted.
    """
    names = ["recipe.yaml", "environment.json"]
    names += ["export/student.onnx"] if "export" in stages else []
    # attribution.json is there where `brd-edge explain` was run
    names += ["benchmark.json", "images.npz", "report.html", "attribution.json"] if "benchmark" in stages else []
    names += ["bundle.tar.gz"] if bundle and "bundle" in stages else []
    return [path for name in names if (path := directory / name).is_file()]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{path}.{number}")
    else:
        yield path, value


def _entries(records: str) -> Iterator[dict[str, Any]]:
    for line in records.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            # it is being written, or its process was killed
            continue


def _name(text: str) -> str:
    # names may hold letters, digits and these everywhere
    return re.sub(r"[^A-Za-z0-9_./ -]", "_", text)[:_NAME_LENGTH_MAX]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
