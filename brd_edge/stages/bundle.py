"""Stage `bundle`: the engines that held their gates, ready to be shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from brd_edge import __version__
from brd_edge.data.dataset import read_frame
from brd_edge.deploy.graphs import opset_of
from brd_edge.evaluate.planned import graph_gates, is_planned
from brd_edge.recipe import Recipe
from brd_edge.run import Run
from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.files import expand_home
from brd_edge.runtime.signature import SIGNATURE_NAME, key_id
from brd_edge.runtime.targets import TARGETS
from brd_edge.runtime.versions import version_range
from brd_edge.ship.bundle import GoldenFrame, PlannedEngine, pack_bundle, write_bundle
from brd_edge.ship.keys import read_private_key, sign_bundle
from brd_edge.stages.context import Context, Outcome, Stage, counted, input_contract
from brd_edge.stages.reporting import sample_indices
from brd_edge.stages.training import load_run_dataset

__all__ = ["STAGE", "left_out", "planned_engine", "signing_key"]

# of the pixels of a golden frame; what is quantised agrees as well as it did when it was made, but for this much
_AGREEMENT_MIN = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.95}
_WORSE_MAX = 0.05


def _settings(recipe: Recipe) -> dict[str, Any]:
    gates = recipe.gates.model_dump(mode="json")
    return {"bundle": recipe.bundle.model_dump(mode="json"), "name": recipe.name, "gates": gates}


def signing_key(recipe: Recipe) -> dict[str, str]:
    """Return which key signs: what another one signed is not current."""
    if recipe.bundle.key is None:
        return {}
    try:
        key = read_private_key(expand_home(recipe.bundle.key))
    except BundleError:
        return {"signing key": "missing"}
    return {"signing key": key_id(key.public_key().public_bytes_raw())}


def _plan(recipe: Recipe) -> str:
    signed = ", signed" if recipe.bundle.key is not None else ""
    return f"collect the engines that held their gates, with {recipe.bundle.golden_frames} golden frames{signed}"


def _missing(recipe: Recipe) -> list[str]:
    if recipe.bundle.key is None:
        return []
    try:
        read_private_key(expand_home(recipe.bundle.key))
    except BundleError as error:
        return [f"bundle.key: {error}"]
    return []


def _work(context: Context) -> Outcome:
    benchmark = json.loads(context.run.path("benchmark.json").read_text(encoding="utf-8"))
    contract, settings = input_contract(context.recipe), context.recipe.bundle
    engines = _chosen(context, benchmark["engines"])
    files = write_bundle(
        context.run.path("bundle"),
        engines=engines,
        onnx=context.run.path("export", "student.onnx"),
        golden=_golden(context),
        manifest={
            "name": context.recipe.name,
            "model": benchmark["student"]["model"],
            "classes": benchmark["dataset"]["classes"],
            "palette": benchmark["dataset"]["palette"],
            "contract": contract.to_json(),
            "contract_hash": contract.hash,
            "licence": settings.licence,
            "provenance": {
                "created_by": f"brd-edge {__version__}",
                "dataset": benchmark["dataset"]["name"],
                "method": benchmark["student"]["method"],
                "miou": benchmark["student"]["miou"],
                "boundary_iou": benchmark["student"]["boundary_iou"],
                "environment": benchmark["environment"],
            },
        },
    )
    signed = "not signed"
    if settings.key is not None:
        signature = sign_bundle(context.run.path("bundle"), read_private_key(expand_home(settings.key)))
        files.append(context.run.path("bundle", SIGNATURE_NAME))
        signed = f"signed by {signature.key_id}"
    # not among the recorded files: whoever signs the bundle later packs it again
    pack_bundle(context.run.path("bundle"))
    size_bytes = sum(path.stat().st_size for path in files)
    built = [engine.name for engine in engines if engine.directory is not None]
    plans = len(engines) - len(built)
    more = f" and {plans} to build on the device" if plans else ""
    what = f"{counted(len(built), 'engine')}{more}" if engines else "no engine held its gates"
    summary = f"{what}, {size_bytes / 1e6:.1f} MB, {signed}: {context.run.path('bundle')}"
    return Outcome(files, {"engines": [engine.name for engine in engines], "signed": settings.key is not None}, summary)


def _chosen(context: Context, entries: list[dict[str, Any]]) -> list[PlannedEngine]:
    chosen = []
    for entry in entries:
        reason = left_out(entry)
        if reason is None:
            chosen.append(planned_engine(context.run, entry))
        else:
            context.say(f"bundle: {entry['name']} is left out: {reason}")
    return chosen


def left_out(entry: Mapping[str, Any]) -> str | None:
    """Say why an engine is not bundled, or None where it is: built, or as a plan to build it on the device.

    Args:
        entry: The engine's entry of `benchmark.json`.
    """
    if entry["status"] in ("measured", "built") or is_planned(entry):
        return f"gates not held: {'; '.join(entry['gates_broken'])}" if entry["gates_broken"] else None
    return str(entry["reason"])


def planned_engine(run: Run, entry: Mapping[str, Any]) -> PlannedEngine:
    """Return what the bundle holds of an engine that is not left out.

    Args:
        run: The run directory.
        entry: The engine's entry of `benchmark.json`.
    """
    if is_planned(entry):
        directory, versions = None, TARGETS[entry["target"]].versions[entry["runtime"]]
    else:
        directory = run.path("engines", entry["name"])
        opset = opset_of(run.path(entry["graph"])) if entry["runtime"] == "onnxruntime" else None
        versions = version_range(entry["runtime"], entry["runtime_version"], opset=opset)
    names = {key: str(entry[key]) for key in ("name", "runtime", "precision", "target")}
    return PlannedEngine(
        **names,
        runtime_range=versions,
        batch_max=int(entry["batch_max"]),
        directory=directory,
        graph=run.path(entry["graph"]),
        agreement_min=_agreement_min(entry),
        gates=entry["gates"],
        metrics=_metrics(entry),
    )


def _agreement_min(entry: Mapping[str, Any]) -> float:
    if entry["precision"] in _AGREEMENT_MIN:
        return _AGREEMENT_MIN[entry["precision"]]
    return round(float(min(entry["agreement"].values())) - _WORSE_MAX, 3)


def _metrics(entry: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("status", "reason", "latency_ms", "miou", "boundary_iou", "argmax_agreement", "size_bytes")
    graph = "the gates of accuracy held by its graph; " if graph_gates(entry) == "held" else ""
    gates = "held" if entry["status"] == "measured" else f"{graph}not measured here"
    return {**{key: entry[key] for key in keys}, "gates": gates}


def _golden(context: Context) -> list[GoldenFrame]:
    """Validation frames with the PyTorch student's class maps, so that every engine is held to the same."""
    from brd_edge.evaluate.accuracy import model_predictor
    from brd_edge.models.segmentation import load_model
    from brd_edge.stages.context import training_device

    device = training_device(context.recipe)
    contract = input_contract(context.recipe)
    dataset = load_run_dataset(context)
    model, _ = load_model(context.run.path("distill", "model"))
    predict = model_predictor(model.to(device).eval(), contract, device)
    golden = []
    for number, index in enumerate(sample_indices(len(dataset.val), context.recipe.bundle.golden_frames)):
        frame = read_frame(dataset.val[index], contract)
        golden.append(GoldenFrame(f"{number:02d}", frame, predict(frame)))
    return golden


STAGE = Stage(
    name="bundle",
    needs=("prepare", "distill", "export", "build", "benchmark"),
    code=(
        "data/dataset.py",
        "deploy/graphs.py",
        "evaluate/accuracy.py",
        "evaluate/planned.py",
        "models",
        "__init__.py",
        "runtime",
        "ship/bundle.py",
        "ship/keys.py",
        "ship/wheel.py",
        "stages/bundle.py",
        "stages/context.py",
        "stages/reporting.py",
    ),
    settings=_settings,
    work=_work,
    plan=_plan,
    files=signing_key,
    missing=_missing,
    check=lambda run: None if run.path("bundle.tar.gz").is_file() else "bundle.tar.gz is missing",
)
