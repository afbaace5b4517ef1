"""`brd-edge explain` on a small run directory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml

from brd_edge.cli import main
from brd_edge.data.dataset import read_frame
from brd_edge.data.index import load_dataset
from brd_edge.data.prepare import prepare_scenes
from brd_edge.deploy.export import export_onnx
from brd_edge.evaluate.accuracy import model_predictor
from brd_edge.interrupt import Stop
from brd_edge.models.segmentation import ModelSpec, build_model, load_model, save_model
from brd_edge.recipe import load_recipe
from brd_edge.run import Artifact, Run, tree_files
from brd_edge.runtime.builders import build_engine
from brd_edge.stages.attribution import attribution_entry
from brd_edge.stages.context import Context, input_contract

RECIPE = Path(__file__).parents[1] / "pipelines/quickstart.yaml"
ENGINE = "onnxruntime-fp32-x86-cpu"
OTHERS = {"tensorrt-fp32-rtx": ("rtx", "failed"), "onnxruntime-fp32-arm64-cpu": ("arm64-cpu", "built")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its stages up to `build` done, by an untrained student; not to be written to."""
    directory = tmp_path_factory.mktemp("run")
    recipe = load_recipe(RECIPE, overrides=["data.size=[32, 64]", "data.loader=torch", "benchmark.threads=1"])
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    dataset = prepare_scenes(directory / "data", train=1, val=5, height=64, width=128, seed=0)
    spec = ModelSpec("Unet", "tu-resnet10t", len(dataset.classes), {"encoder_depth": 3, "decoder_channels": [8, 8, 8]})
    model = build_model(spec, encoder_weights=None, seed=0).eval()
    graph = {"contract": input_contract(recipe), "classes": dataset.classes, "palette": dataset.palette}
    save_model(model, spec, directory / "distill/model", contract=graph["contract"])
    student = directory / "export/student.onnx"
    student.parent.mkdir()
    export_onnx(model, student, metadata={}, opset=20, **graph)
    out = directory / "engines" / ENGINE
    build_engine(runtime="onnxruntime", precision="fp32", target="x86-cpu", onnx=student, out=out, **graph)
    described = {"runtime": "onnxruntime", "precision": "fp32", "lowered": "export/student.onnx", "output": "dense"}
    entries = [{"name": ENGINE, "target": "x86-cpu", "status": "built", **described}]
    entries += [{**described, "name": name, "target": target, "status": s} for name, (target, s) in OTHERS.items()]
    run = Run(directory)
    for stage, result in (("prepare", {}), ("distill", {}), ("export", {}), ("build", {"engines": entries})):
        left = tree_files(directory / "export") if stage == "export" else []
        settings = {"contract": graph["contract"].to_json()} if stage == "export" else {}
        run.keep(Artifact(stage, "", settings, {}, "", result=result), left)
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_the_table_and_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(run)]) == 0
    out = capsys.readouterr().out
    kept = json.loads((run / "attribution.json").read_text(encoding="utf-8"))
    assert kept["images"] == 5
    assert [step["engine"] for step in kept["steps"]] == [None] * 4 + [ENGINE]
    rows = [line for line in out.splitlines() if "PyTorch   " in line or "ONNX fp32" in line or line.startswith(ENGINE)]
    assert rows[0].split()[-2:] == [f"{100 * kept['start'][name]:.2f}" for name in ("miou", "boundary_iou")]
    assert out.splitlines()[-1] == f"as data: {run.resolve() / 'attribution.json'}"
    for row, step in zip(rows[1:], kept["steps"], strict=True):
        assert row.startswith(step["to"])
        assert f" {100 * step['miou']:.2f} " in row
        assert step["agreement"] > 0.999


def test_a_planted_fault_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "export/student.onnx"
    model = onnx.load(path)
    shift = next(item for item in model.graph.initializer if item.name == "shift")
    shift.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(shift) + np.float32(1.5), "shift"))
    onnx.save(model, path)
    assert main(["explain", str(run), "--json"]) == 0
    output = capsys.readouterr()
    assert f"{path.resolve()} was changed after the stage export wrote it" in output.err
    steps = json.loads(output.out)["steps"]
    changed = {step["name"]: step["agreement"] < 0.99 for step in steps}
    # the engine was built from the graph as it was, so it undoes the fault
    assert changed == {"loader": False, "preprocessing": True, "onnx": False, "class_map": False, "runtime": True}
    assert main(["explain", str(run)]) == 0
    *_, images, words, _ = capsys.readouterr().out.split("\n\n")
    assert images.startswith("images that changed most")
    assert f"graph's preprocessing, PyTorch: {steps[1]['worst'][0]['image']} " in " ".join(images.split())
    losses = [(lost["value"], lost["low"], step["title"]) for step in steps for lost in step["lost"].values()]
    certain = [loss for loss in losses if loss[1] > 0]
    assert max(certain or losses)[2] in " ".join(words.split())
    assert words.startswith("The largest loss is" if certain else "No step lost accuracy for certain")


def test_the_stage_measures_the_same_or_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(run), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    dataset = load_dataset(run / "data")
    recipe = load_recipe(run / "recipe.yaml")
    model, _ = load_model(run / "distill/model")
    contract = input_contract(recipe)
    predict = model_predictor(model, contract, torch.device("cpu"))
    known = [predict(read_frame(sample, contract)) for sample in dataset.val]
    described = {"runtime": "onnxruntime", "precision": "fp32"}
    engines = [{"name": ENGINE, "status": "measured", **described}, {"name": "tensorrt-fp32-rtx", "status": "built"}]
    context = Context(recipe, Run(run), {}, Stop(), print, "", "")
    assert attribution_entry(context, dataset, engines, known) == expected
    off = load_recipe(run / "recipe.yaml", overrides=["benchmark.attribution=false"])
    assert attribution_entry(replace(context, recipe=off), dataset, engines, known) is None


def test_images_and_engines_are_chosen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(run), "--images", "2", "--engine", ENGINE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    for name, words in (
        ("openvino-fp32-x86-cpu", "has no such engine"),
        ("tensorrt-fp32-rtx", "its status is failed"),
        ("onnxruntime-fp32-arm64-cpu", "it is for other machines"),
    ):
        assert main(["explain", str(run), "--engine", name]) == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.rstrip().endswith(ENGINE)
    with pytest.raises(SystemExit) as caught:
        main(["explain", str(run), "--images", "0"])
    assert caught.value.code == 2


def test_an_engine_that_does_not_run_is_exit_code_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "engines" / ENGINE / "model.onnx").unlink()
    assert main(["explain", str(run)]) == 1
    # paths are not broken, but lines are
    out = " ".join(capsys.readouterr().out.split())
    assert f"{ENGINE}: not measured: " in out
    assert "model.onnx: missing" in out
    assert json.loads((run / "attribution.json").read_text(encoding="utf-8"))["steps"][3]["agreement"] > 0.999


def test_a_run_of_two_halves_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, prepared = (Run(run).artifact(stage) for stage in ("distill", "prepare"))
    assert made is not None
    assert prepared is not None
    Run(run).keep(replace(made, inputs={"stage prepare": prepared.content}), [])
    assert main(["explain", str(run), "--engine", ENGINE]) == 0
    Run(run).keep(replace(prepared, result={"train": 9}), [])
    assert main(["explain", str(run)]) == 1
    assert "the stage prepare was done again after distill, with another outcome" in capsys.readouterr().err
    Run(run).keep(prepared, [])
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"]["mean"] = [0.1, 0.1, 0.9]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["explain", str(run)]) == 1
    assert "recipe.yaml describes other frames (data.size, mean or std) than the student was" in capsys.readouterr().err


def test_a_run_that_is_not_far_enough_or_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> str:
        assert main(["explain", str(run)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("brd-edge: error: ")
        assert not (run / "attribution.json").exists()
        return error

    record = run / "stages/build.json"
    kept = record.read_bytes()
    record.unlink()
    assert "the stage build has not been done; run  python -m brd_edge.pipeline RECIPE" in refused()
    record.write_bytes(kept)
    (run / "distill/model/model.safetensors").write_bytes(b"")
    assert "model.safetensors" in refused()
    (run / "export/student.onnx").unlink()
    assert "student.onnx: missing" in refused()
    (run / "recipe.yaml").write_text("name: 3\n", encoding="utf-8")
    assert "expected the recipe that this version wrote" in refused()
    (run / "recipe.yaml").unlink()
    assert "expected a run directory with recipe.yaml in it" in refused()
