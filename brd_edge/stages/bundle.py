"""Stage `bundle`: the engines that held their gates, ready to be shipped."""

from __future__ import annotations

import json
from typing import Any

from brd_edge.data.dataset import read_frame
from brd_edge.recipe import Recipe
from brd_edge.ship.bundle import GoldenFrame, write_bundle
from brd_edge.stages.context import Context, Outcome, Stage, input_contract
from brd_edge.stages.reporting import sample_indices
from brd_edge.stages.training import load_run_dataset

__all__ = ["STAGE"]

_AGREEMENT_MIN = 0.999


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {"bundle": recipe.bundle.model_dump(mode="json"), "name": recipe.name}


def _plan(recipe: Recipe) -> str:
    return f"collect the engines that held their gates, with {recipe.bundle.golden_frames} golden frames"


def _work(context: Context) -> Outcome:
    benchmark = json.loads(context.run.path("benchmark.json").read_text(encoding="utf-8"))
    held = [
        entry
        for entry in benchmark["engines"]
        if entry["status"] in ("measured", "built") and not entry["gates_broken"]
    ]
    contract = input_contract(context.recipe)
    files = write_bundle(
        context.run.path("bundle"),
        engines={entry["name"]: context.run.path("engines", entry["name"]) for entry in held},
        onnx=context.run.path("export", "student.onnx"),
        golden=_golden(context),
        agreement_min=_AGREEMENT_MIN,
        manifest={
            "recipe": context.recipe.name,
            "model": benchmark["student"]["model"],
            "classes": benchmark["dataset"]["classes"],
            "palette": benchmark["dataset"]["palette"],
            "contract": contract.to_json(),
            "contract_hash": contract.hash,
            "metrics": {entry["name"]: _metrics(entry) for entry in held},
            "environment": benchmark["environment"],
        },
    )
    size_bytes = sum(path.stat().st_size for path in files)
    summary = f"{len(held)} engines, {size_bytes / 1e6:.1f} MB, not signed: {context.run.path('bundle')}"
    return Outcome(files, {"engines": [entry["name"] for entry in held]}, summary)


def _metrics(entry: dict[str, Any]) -> dict[str, Any]:
    keys = ("status", "reason", "latency_ms", "miou", "boundary_iou", "argmax_agreement", "size_bytes")
    gates = "held" if entry["status"] == "measured" else "not measured here"
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
        "evaluate/accuracy.py",
        "models",
        "runtime/contract.py",
        "ship/bundle.py",
        "stages/bundle.py",
        "stages/context.py",
        "stages/reporting.py",
    ),
    settings=_settings,
    work=_work,
    plan=_plan,
)
