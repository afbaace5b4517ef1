"""The parity benchmark on a small run: what must be equal is, and what may differ stays within its bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import parity
from brd_edge.data.prepare import prepare_scenes
from brd_edge.deploy.export import export_onnx
from brd_edge.models.segmentation import ModelSpec, build_model, save_model
from brd_edge.recipe import load_recipe
from brd_edge.stages.context import input_contract

RECIPE = Path(__file__).parents[2] / "pipelines/quickstart.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    # scenes are larger than the frames, so that they are resized
    recipe = load_recipe(RECIPE, overrides=["data.size=[64, 96]"])
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    dataset = prepare_scenes(directory / "data", train=1, val=5, height=96, width=160, seed=0)
    spec = ModelSpec("FPN", "tu-resnet10t", len(dataset.classes), {})
    model = build_model(spec, encoder_weights=None, seed=0).eval()
    contract = input_contract(recipe)
    save_model(model, spec, directory / "distill/model", contract=contract)
    (directory / "export").mkdir()
    export_onnx(
        model,
        directory / "export/student.onnx",
        contract=contract,
        classes=dataset.classes,
        palette=dataset.palette,
        metadata={},
        opset=20,
    )
    return directory


def test_ways_agree_within_their_bounds(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "parity.json"
    assert parity.main([str(run), "--output", str(output)]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads(output.read_text())
    pixels = printed["pixels"]
    assert pixels["dali-cpu, decoded"] == {"max": 0, "max_inside": 0, "mean": 0, "share_above_1": 0}
    assert pixels["dali-cpu, resized"]["max_inside"] <= 1
    assert pixels["dali-cpu, resized"]["mean"] < 0.25
    assert pixels["graph, normalised"]["max"] < 1e-3
    ways = {row["way"]: row for row in printed["scores"]}
    reference = ways["Pillow, PyTorch"]
    assert all(row["images"] == 5 for row in ways.values())
    for name in ("Pillow, normalised in the graph", "training loader torch"):
        assert ways[name]["agreement"] >= 0.9999
        assert ways[name]["miou"] == pytest.approx(reference["miou"], abs=1e-3)
    for name in ("DALI CPU, PyTorch", "training loader DALI CPU"):
        assert 0.9 < ways[name]["agreement"] < 1
        assert ways[name]["miou_lost"] == pytest.approx(reference["miou"] - ways[name]["miou"])
    assert ways["DALI CPU, PyTorch"]["agreement"] == pytest.approx(
        ways["training loader DALI CPU"]["agreement"], abs=1e-3
    )
