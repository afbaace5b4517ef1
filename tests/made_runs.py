"""Run directories made without training: a benchmark, its counts, a recipe, and small engines."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from brd_edge.evaluate.benchmark.images import write_image_counts
from brd_edge.evaluate.intervals import score_intervals, score_losses
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.latency import latency_of
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.runtime.statistics import compare_ratios

CLASSES = ("road", "sky", "car")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 0, 142))
IMAGES = 24
ENGINE = "onnxruntime-fp32-x86-cpu"
UNMEASURED = "tensorrt-fp32-rtx"
CONTRACT = InputContract(height=48, width=64, mean=(0, 0, 0), std=(1, 1, 1))
RECIPE = {"name": "made", "distill": {"method": "brd"}, "engines": [{"runtime": "onnxruntime"}]}


@cache
def made_metrics(noise: float, *, images: int = IMAGES, seed: int = 0) -> SegmentationMetrics:
    """Predictions that are wrong in some blocks, the more noise the more; some images are harder for every noise."""
    metrics = SegmentationMetrics(len(CLASSES), keep_images=True)
    for index in range(images):
        rng = np.random.default_rng([seed, index])
        label = np.kron(rng.integers(0, len(CLASSES), (4, 6)), np.ones((6, 6), int)).astype(np.uint8)
        guess = label.copy()
        wrong = np.kron(rng.random((8, 12)) < noise * (1 + index % 3), np.ones((3, 3), bool))
        guess[wrong] = (guess[wrong] + 1) % len(CLASSES)
        label[0] = 255
        metrics.update(guess, label)
    return metrics


def made_samples(*, slower: float = 1.0, seed: int = 0, count: int = 300) -> list[float]:
    """Latencies around 10 ms that differ by 2 %."""
    samples: np.ndarray = slower * 10 * np.exp(np.random.default_rng(seed).normal(0, 0.02, count))
    return samples.tolist()


def made_session() -> dict[str, Any]:
    ratios = np.exp(np.random.default_rng(0).normal(0, 0.01, (4, 20)))
    found = compare_ratios(ratios, margin=0.01).to_json()
    return {"comparison": found, "control": found, "stopped": "interval", "warnings": ["a warning"]}


def made_cost() -> dict[str, Any]:
    """An engine that costs what the undistilled one does."""
    sizes = {"size_bytes": [5, 5], "layers": [7, 7], "differences": []}
    return {"name": ENGINE, "held": True, "reason": "", **sizes, "latency": made_session()}


@cache
def scores_of(metrics: SegmentationMetrics) -> dict[str, Any]:
    intervals = {name: [item.low, item.high] for name, item in score_intervals(metrics).items()}
    return {**metrics.to_json(), "intervals": intervals}


def made_benchmark(
    *, teacher: float = 0.02, student: float = 0.05, engine: float = 0.05, samples: Sequence[float] | None = None
) -> dict[str, Any]:
    """The content of a `benchmark.json` in which every optional part is there."""
    models = {"teacher": made_metrics(teacher), "student": made_metrics(student), ENGINE: made_metrics(engine)}
    scores = {name: copy.deepcopy(scores_of(metrics)) for name, metrics in models.items()}
    lost = {key: item.to_json() for key, item in score_losses(models[ENGINE], models["student"]).items()}
    taken = made_samples() if samples is None else list(samples)
    described = {"model": "FPN / small", "params": 400_000, "macs": 56_000_000}
    kinds = {
        "precision": "fp32",
        "size_bytes": 1_600_000,
        "build_s": 0.2,
        "plain": True,
        "graph": "export/student.onnx",
        "gates_broken": [],
    }
    kinds |= {"gates": {"miou_drop_max": 0.5, "uncertain": "broken"}}
    timed = latency_of(taken, warmup_n=10, stopped="samples").to_json()
    saturated = {"rate_hz": 400.0, "interval": [390.0, 410.0], "streams": 2, "frames": 4000, "duration_s": 10.0}
    empty = dict.fromkeys(
        (
            "latency_ms",
            "engine_latency_ms",
            "throughput",
            "miou",
            "boundary_iou",
            "class_iou",
            "argmax_agreement",
            "intervals",
            "lost",
        )
    )
    step = {"name": "onnx", "title": "ONNX graph", "engine": None, "from": "student", "to": "graph", "worst": []}
    return {
        "schema_version": 3,
        "recipe": "made",
        "created": "2026-01-01T12:00:00Z",
        "command": "python -m brd_edge.pipeline made.yaml",
        "duration_s": {"prepare": 12.3, "teacher": 80},
        "dataset": {"name": "made", "classes": [*CLASSES], "palette": [*map(list, PALETTE)], "train": 9, "val": IMAGES},
        "contract": CONTRACT.to_json(),
        "teacher": {**described, **scores["teacher"]},
        "student": {**described, "method": "brd", **scores["student"]},
        "compared": {"name": "plain (made)", "argmax_agreement": 0.9, "lost": lost, **scores["student"]},
        "engines": [
            {
                **{"name": ENGINE, "runtime": "onnxruntime", "target": "x86-cpu", **kinds, "status": "measured"},
                **{"reason": "", "runtime_version": "1.32.0", **scores[ENGINE], "argmax_agreement": 1, "lost": lost},
                **{"latency_ms": timed, "samples_ms": taken, "engine_latency_ms": timed},
                "throughput": {**saturated, "warnings": []},
            },
            {
                **{"name": UNMEASURED, "runtime": "tensorrt", "target": "rtx", **kinds, "status": "built"},
                **{"reason": "not measured: no GPU", "runtime_version": "tensorrt_rtx 1.7.1", **empty},
            },
        ],
        "zero_cost": {
            **{"equal": True, "nodes": 154, "params_equal": True, "macs_equal": True, "differences": []},
            "margin_percent": 1.0,
            "engines": [
                made_cost(),
                {
                    **{"name": UNMEASURED, "held": None, "reason": "not timed: the engine does not run here"},
                    **{"size_bytes": [9, 9], "layers": None, "differences": [], "latency": None},
                },
            ],
        },
        "attribution": {
            "images": IMAGES,
            "start": {"title": "student in PyTorch", "miou": 0.5, "boundary_iou": 0.4},
            "steps": [
                {**step, "miou": 0.5, "boundary_iou": 0.4, "lost": lost, "agreement": 1.0, "reason": ""},
                {**step, "miou": None, "boundary_iou": None, "lost": None, "agreement": None, "reason": "no GPU"},
                {
                    **{**step, "worst": [{"image": "000001", "changed": 0.1, "right": 0.5}]},
                    **{"engine": ENGINE, "miou": 0.4, "boundary_iou": 0.4, "lost": lost},
                    **{"agreement": 0.9, "reason": ""},
                },
            ],
        },
        "timed_images": ["000"],
        "environment": {
            **{"cpu": "A CPU", "cores": 2, "memory_bytes": 8_000_000_000, "os": "Linux", "python": "3.11.7"},
            **{"gpu": None, "driver": None, "commit": None, "packages": {"torch": "2.15.0"}},
        },
    }


def write_run(
    directory: Path,
    *,
    teacher: float = 0.02,
    student: float = 0.05,
    engine: float = 0.05,
    samples: Sequence[float] | None = None,
    threads: int = 1,
    change: Callable[[dict[str, Any]], object] = lambda _benchmark: None,
    ids: Sequence[str] = tuple(f"{index:03d}" for index in range(IMAGES)),
) -> Path:
    """Write a run directory without engines; `change` may alter its benchmark first."""
    benchmark = made_benchmark(teacher=teacher, student=student, engine=engine, samples=samples)
    change(benchmark)
    noises = {"teacher": teacher, "student": student, ENGINE: engine}
    counts = {name: np.stack(made_metrics(noise).per_image) for name, noise in noises.items()}
    directory.mkdir()
    (directory / "benchmark.json").write_text(json.dumps(benchmark), encoding="utf-8")
    recipe = {**RECIPE, "benchmark": {"threads": threads}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    write_image_counts(directory / "images.npz", ids, counts)
    return directory
