"""Stage `benchmark`: latency and accuracy of every engine, gates, and the report."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import Dataset, read_frame
from brd_edge.environment import describe_environment
from brd_edge.evaluate.accuracy import ByteArray, Predictor, evaluate_predictor, model_predictor
from brd_edge.evaluate.benchmark import images, timings
from brd_edge.evaluate.benchmark.file import SCHEMA_VERSION, check_benchmark
from brd_edge.evaluate.benchmark.images import write_image_counts
from brd_edge.evaluate.benchmark.timings import write_timings
from brd_edge.evaluate.gates import Limits, broken_gates, present_limits
from brd_edge.evaluate.intervals import agreement_interval, class_iou_intervals, score_intervals, score_losses
from brd_edge.evaluate.planned import is_planned
from brd_edge.progress import progress_bar
from brd_edge.recipe import Recipe
from brd_edge.recipe_gates import limits_of
from brd_edge.run import digest
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import open_engine
from brd_edge.runtime.errors import BrdEdgeError, RunError, RuntimeMissingError
from brd_edge.runtime.files import write_json_atomic
from brd_edge.runtime.frames import resize_class_map
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.runtime.statistics import Interval
from brd_edge.runtime.targets import TARGETS
from brd_edge.stages.attribution import attribution_entry
from brd_edge.stages.build import what_changes_speed
from brd_edge.stages.compared import (
    compared_engine,
    compared_files,
    compared_problems,
    compared_run,
    require_same_classes,
)
from brd_edge.stages.context import Context, Outcome, Stage, counted, input_contract, teacher_contract, training_device
from brd_edge.stages.cost import added_cost
from brd_edge.stages.reporting import PackedMap, pack_map, report_curves, report_samples, sample_indices
from brd_edge.stages.timing import time_engine
from brd_edge.stages.training import load_run_dataset

__all__ = ["STAGE"]

log = logging.getLogger("brd_edge")

_FRAMES = 8
"""Validation images that latency is measured on, spread over the split."""
_SCORES = ("miou", "boundary_iou", "class_iou", "argmax_agreement", "intervals", "lost")
_MEASURED = (*_SCORES, "latency_ms", "engine_latency_ms", "throughput")
"""What an engine that was not measured has none of."""


@dataclass(frozen=True)
class _Validation:
    """The validation split, and the PyTorch student's class maps to compare with."""

    dataset: Dataset
    contract: InputContract
    reference: list[ByteArray]
    student: SegmentationMetrics
    """What the PyTorch student scores, which losses are counted from."""
    class_maps: dict[str, dict[int, PackedMap]] = field(default_factory=dict)
    """Class maps for the report, by name as in `counts`, and by index of the sample."""
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """What was counted in each image, by `teacher`, `student`, `compared` and the names of engines."""
    timed: list[int] = field(default_factory=list)
    """Which samples every engine is timed on."""
    times: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Every time that was measured, as `latency.npz` names it."""


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "benchmark": recipe.benchmark.model_dump(mode="json"),
        "gates": recipe.gates.model_dump(mode="json"),
        "device": recipe.device,
        "loader": recipe.data.loader,
        "name": recipe.name,
        "method": recipe.distill.method,
    }


def _files(recipe: Recipe) -> dict[str, str]:
    hardware = digest([describe_environment()[key] for key in ("cpu", "cores", "gpu")])
    return {"hardware": hardware, **what_changes_speed(), **compared_files(recipe)}


def _plan(recipe: Recipe) -> str:
    return f"run {counted(len(recipe.engines), 'engine')} over the validation split, measure latency, write report.html"


def _work(context: Context) -> Outcome:
    recipe = context.recipe
    validation = _reference(context)
    dataset = validation.dataset
    # the student first: everything else is compared with it, image by image
    student, teacher = (_evaluate_model(context, validation, title) for title in ("student", "teacher"))
    compared = _evaluate_compared(context, validation)
    engines, costs = _measure_all(context, validation)
    proof = context.inputs["export"].result
    benchmark = {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.name,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": context.command,
        "duration_s": {name: artifact.duration_s for name, artifact in context.inputs.items()},
        "dataset": {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "palette": [list(color) for color in dataset.palette],
            "train": len(dataset.train),
            "val": len(dataset.val),
            "unlabelled": context.inputs["distill"].result.get("unlabelled", 0),
        },
        "contract": validation.contract.to_json(),
        "teacher": teacher,
        "student": {**student, "method": recipe.distill.method},
        "compared": compared,
        "engines": engines,
        "attribution": attribution_entry(context, dataset, engines, validation.reference),
        "zero_cost": {
            **{key: proof[key] for key in ("equal", "nodes", "params_equal", "macs_equal", "differences")},
            "margin_percent": recipe.benchmark.cost_margin_percent,
            "engines": costs,
        },
        "environment": describe_environment(),
        "threads": recipe.benchmark.threads,
        "timed_images": [dataset.val[index].id for index in validation.timed],
    }
    paths = _write(context, benchmark, validation)
    measured = sum(entry["status"] == "measured" for entry in engines)
    held = {"gates_broken": [f"{entry['name']}: {line}" for entry in engines for line in entry["gates_broken"]]}
    # the report is not among the recorded files: what is shipped later adds the devices' figures to it
    return Outcome(paths[:-1], held, f"{measured} of {len(engines)} engines measured; see {paths[-1]}")


def _measure_all(context: Context, validation: _Validation) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure every engine, compare its cost with the undistilled one's, and hold it to its gates."""
    frames = [read_frame(validation.dataset.val[index], validation.contract) for index in validation.timed]
    engines, costs = [], []
    for entry in context.inputs["build"].result["engines"]:
        kind = {key: entry[key] for key in ("runtime", "precision", "target")}
        limits = Limits(**limits_of(context.recipe.gates, **kind))
        engine = _measure(context, validation, entry, frames, gated=limits.latency_ms_p95_max is not None)
        engines.append(engine)
        engine["gates"] = present_limits(limits)
        if is_planned(entry):
            # the device builds it from a graph that is known already
            engine["gates_broken"] = broken_gates(limits, engine=engine)
        if entry["status"] != "built":
            continue
        costs.append(added_cost(context, entry, frames, status=engine["status"], times=validation.times))
        if engine["status"] in ("measured", "built"):
            engine["gates_broken"] = broken_gates(limits, engine=engine, cost=costs[-1])
    return engines, costs


def _reference(context: Context) -> _Validation:
    dataset = load_run_dataset(context)
    student = SegmentationMetrics(len(dataset.classes), keep_images=True)
    timed = sample_indices(len(dataset.val), _FRAMES)
    return _Validation(dataset, input_contract(context.recipe), [], student, timed=timed)


def _evaluate_model(context: Context, validation: _Validation, title: str) -> dict[str, Any]:
    from brd_edge.models.segmentation import count_macs, count_parameters, load_model

    device = training_device(context.recipe)
    model, spec = load_model(context.run.path("teacher" if title == "teacher" else "distill", "model"))
    model.to(device).eval()
    contract = teacher_contract(context.recipe) if title == "teacher" else validation.contract
    keep = validation.reference if title == "student" else None
    scores = _scores(validation, model_predictor(model, contract, device), title, keep=keep, contract=contract)
    return {
        "model": f"{spec.arch} / {spec.encoder}",
        "params": count_parameters(model),
        "macs": count_macs(model, contract.height, contract.width),
        **scores,
    }


def _scores(
    validation: _Validation,
    predict: Predictor,
    name: str,
    *,
    keep: list[ByteArray] | None = None,
    contract: InputContract | None = None,
) -> dict[str, Any]:
    """Evaluate a predictor; `keep` gets its class maps, or else the agreement with the reference is counted.

    What was counted in each image is kept under the name, and so are the class maps. Those of a contract with larger
    frames are compared with others at the student's size.
    """
    dataset, usual, contract = validation.dataset, validation.contract, contract or validation.contract
    agreement: list[float] = []
    packed = validation.class_maps.setdefault(name, {})
    with progress_bar(len(dataset.val), f"benchmark {name}", unit="image") as bar:

        def look(index: int, class_map: ByteArray) -> None:
            class_map = class_map if contract == usual else resize_class_map(class_map, usual.height, usual.width)
            packed[index] = pack_map(class_map)
            if keep is not None:
                keep.append(class_map)
            elif validation.reference:
                agreement.append(float(np.mean(class_map == validation.reference[index])))
            bar.update(1)

        metrics = evaluate_predictor(
            predict,
            dataset.val,
            contract=contract,
            metrics=SegmentationMetrics(len(dataset.classes), keep_images=True) if keep is None else validation.student,
            on_class_map=look,
        )
    validation.counts[name] = np.stack(metrics.per_image)
    intervals = _known(score_intervals(metrics))
    classes = [None if np.isnan(item.value) else [item.low, item.high] for item in class_iou_intervals(metrics)]
    ends: dict[str, Any] = {**_ends(intervals), "class_iou": classes}
    scores: dict[str, Any] = {**metrics.to_json(), "intervals": ends}
    if not agreement:
        return scores
    agreed = agreement_interval(agreement)
    lost = {name: item.to_json() for name, item in _known(score_losses(metrics, validation.student)).items()}
    return {
        **scores,
        "argmax_agreement": agreed.value,
        "intervals": {**ends, **_ends({"argmax_agreement": agreed})},
        "lost": lost,
    }


def _known(intervals: Mapping[str, Interval]) -> dict[str, Interval]:
    """Return the intervals that there are: a split may hold no boundary and no region at all, or a single image."""
    return {name: item for name, item in intervals.items() if item.finite}


def _ends(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: [item.low, item.high] for name, item in intervals.items()}


def _measure(
    context: Context,
    validation: _Validation,
    entry: dict[str, Any],
    frames: Sequence[NDArray[np.uint8]],
    *,
    gated: bool,
) -> dict[str, Any]:
    empty = dict.fromkeys(_MEASURED)
    result = {**entry, **empty, "gates_broken": []}
    if entry["status"] != "built":
        return result
    settings = context.recipe.benchmark
    machines = TARGETS[entry["target"]].machines
    if platform.machine() not in machines:
        reason = f"not measured: it is for {' or '.join(machines)}, this machine is {platform.machine()}"
        return {**result, "reason": reason}
    try:
        directory = context.run.path("engines", entry["name"])
        with open_engine(directory, contract=validation.contract, threads=settings.threads) as runner:
            scores = _scores(validation, runner.infer, entry["name"])
            context.say(f"benchmark: timing {entry['name']} (at most {settings.budget_s:.0f} s unless it is slow)")
            timing, times = time_engine(directory, runner, frames, settings, gated=gated)
    except RuntimeMissingError as error:
        return {**result, "status": "built", "reason": f"not measured: {error}"}
    except BrdEdgeError as error:
        return {**result, "status": "failed", "reason": str(error)}
    except Exception as error:
        # a vendor's library may raise anything; the other engines do not depend on it
        log.exception("%s failed", entry["name"])
        return {**result, "status": "failed", "reason": f"{type(error).__name__}: {error}"}
    validation.times.update({f"{entry['name']}/{key}": values for key, values in times.items()})
    return {
        **result,
        **scores,
        "status": "measured",
        **timing,
    }


def _write(context: Context, benchmark: dict[str, Any], validation: _Validation) -> list[Path]:
    from brd_edge.evaluate.report.page import write_report

    names = ("benchmark.json", images.FILE_NAME, timings.FILE_NAME, "report.html")
    json_path, counts_path, times_path, report_path = (context.run.path(name) for name in names)
    check_benchmark(benchmark)
    write_json_atomic(json_path, benchmark)
    measured = [entry["name"] for entry in benchmark["engines"] if entry["status"] == "measured"]
    counts = {name: validation.counts[name] for name in ("teacher", "student", *measured)}
    write_image_counts(counts_path, [sample.id for sample in validation.dataset.val], counts)
    write_timings(times_path, validation.times)
    write_report(
        report_path,
        benchmark=json.loads(json_path.read_text(encoding="utf-8")),
        samples=report_samples(
            validation.dataset,
            validation.class_maps,
            validation.counts,
            validation.contract,
            engines=benchmark["engines"],
            wanted=context.recipe.benchmark.report_images,
        ),
        curves=report_curves(context.run),
    )
    return [json_path, counts_path, times_path, report_path]


def _evaluate_compared(context: Context, validation: _Validation) -> dict[str, Any] | None:
    directory = compared_run(context.recipe)
    if directory is None:
        return None
    problems, engine = compared_problems(context.recipe), compared_engine(directory)
    # without an engine there is a problem
    if problems or engine is None:
        raise RunError(problems[0])
    before = json.loads((directory / "benchmark.json").read_text(encoding="utf-8"))
    name = f"{before['student']['method']} ({before['recipe']})"
    with open_engine(engine, contract=validation.contract, threads=context.recipe.benchmark.threads) as runner:
        return {"name": name, **_scores(validation, runner.infer, "compared")}


STAGE = Stage(
    name="benchmark",
    needs=("prepare", "teacher", "distill", "export", "build"),
    code=(
        "data/dali_frames.py",
        "data/dali_loader.py",
        "data/dataset.py",
        "data/evaluation.py",
        "data/index.py",
        "data/loader.py",
        "data/loader_state.py",
        "data/plan.py",
        "data/torch_loader.py",
        "deploy",
        "environment.py",
        "evaluate",
        "models",
        "runtime",
        "stages/attribution.py",
        "stages/benchmark.py",
        "stages/build.py",
        "stages/compared.py",
        "stages/context.py",
        "stages/cost.py",
        "stages/reporting.py",
        "stages/timing.py",
    ),
    settings=_settings,
    work=_work,
    plan=_plan,
    files=_files,
    missing=compared_problems,
    accepts=require_same_classes,
    check=lambda run: None if run.path("report.html").is_file() else "report.html is missing",
)
