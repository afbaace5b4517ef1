"""Engines of small graphs: equal ones, one with a planted layer, one with a channel more."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from made_runs import made_cost, made_session

from brd_edge.deploy.logits import cut_at_logits
from brd_edge.evaluate.engine_cost import EngineCost, compare_engines, compare_structure
from brd_edge.evaluate.layers import list_layers
from brd_edge.evaluate.proof import judge_proof
from brd_edge.evaluate.zero_cost import compare_graphs
from brd_edge.interrupt import Stop
from brd_edge.recipe import load_recipe
from brd_edge.run import Run
from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import InputContract
from brd_edge.stages.context import Context
from brd_edge.stages.cost import added_cost

RECIPE = Path(__file__).parents[2] / "pipelines/quickstart.yaml"
CONTRACT = InputContract(height=48, width=64, mean=(0, 0, 0), std=(1, 1, 1))
GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
student (uint8[1,48,64,3] image) => (uint8[1,48,64] class_map) {{
    pixels = Cast<to=1>(image)
    planes = Transpose<perm=[0,3,1,2]>(pixels)
    hidden = Conv<pads=[1,1,1,1]>(planes, w1)
    active = Relu(hidden)
    {planted}
    scores = Conv<pads=[1,1,1,1]>({source}, w2)
    ids = ArgMax<axis=1, keepdims=0>(scores)
    class_map = Cast<to=2>(ids)
}}"""

# the class map from these logits is made outside of the engine
COARSE = """<ir_version: 10, opset_import: ["" : 20]>
student (uint8[1,48,64,3] image) => (uint8[1,48,64] class_map) {
    pixels = Cast<to=1>(image)
    planes = Transpose<perm=[0,3,1,2]>(pixels)
    logits = Conv<strides=[4,4], kernel_shape=[4,4]>(planes, w1)
    full = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(logits, , scales)
    ids = ArgMax<axis=1, keepdims=0>(full)
    class_map = Cast<to=2>(ids)
}"""

GRAPH_EQUAL = {"equal": True, "params_equal": True, "macs_equal": True, "nodes": 7, "differences": []}
Build = Callable[..., Path]


@pytest.fixture(params=["onnxruntime", "openvino"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    def make(name: str, *, seed: int, channels: int = 16, projected: bool = False) -> Path:
        planted = "projection = Conv(active, w3)" if projected else ""
        model = onnx.parser.parse_model(GRAPH.format(planted=planted, source="projection" if projected else "active"))
        rng = np.random.default_rng(seed)
        shapes = {"w1": (channels, 3, 3, 3), "w2": (5, channels, 3, 3), "w3": (channels, channels, 1, 1)}
        for title in ("w1", "w2", *(["w3"] if projected else [])):
            shape = shapes[title]
            values = rng.normal(size=shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, title))
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        build_engine(
            runtime=request.param,
            precision="fp32",
            target="x86-cpu",
            onnx=path,
            out=tmp_path / name,
            contract=CONTRACT,
            classes=tuple("abcde"),
            palette=((0, 0, 0), (9, 9, 9), (70, 0, 0), (0, 80, 0), (0, 0, 90)),
        )
        return tmp_path / name

    return make


def test_other_weights_cost_the_same(build: Build) -> None:
    student, plain = build("student", seed=1), build("plain", seed=2)
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    # a margin that no load on the machine exceeds: what is judged here is that nothing else differs
    found = compare_engines(student, plain, [frame], threads=1, margin=1000, budget_s=3)
    assert found.differences == ()
    assert found.layers is not None
    assert found.layers[0] == found.layers[1] >= 4
    assert found.latency is not None
    assert 0.5 < found.latency.comparison.ratio.value < 2
    assert found.held is True


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_another_picture_is_no_cost_of_an_engine_of_coarse_logits(tmp_path: Path, runtime: str) -> None:
    """One of the engines draws nothing but noise, the other a single class; both take equally long."""
    for name, weights in (
        ("noise", np.random.default_rng(0).normal(size=(5, 3, 4, 4))),
        ("one", np.zeros((5, 3, 4, 4))),
    ):
        model = onnx.parser.parse_model(COARSE)
        scales = np.array([1, 1, 4, 4], np.float32)
        for title, values in (("w1", weights.astype(np.float32)), ("scales", scales)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, title))
        onnx.save(model, tmp_path / f"{name}.onnx")
        cut = tmp_path / f"{name}-logits.onnx"
        logits = cut_at_logits(tmp_path / f"{name}.onnx", cut)
        assert logits is not None
        build_engine(
            runtime=runtime,
            precision="fp32",
            target="x86-cpu",
            onnx=cut,
            out=tmp_path / name,
            contract=CONTRACT,
            classes=tuple("abcde"),
            palette=((0, 0, 0), (9, 9, 9), (70, 0, 0), (0, 80, 0), (0, 0, 90)),
            logits=logits,
        )
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    found = compare_engines(tmp_path / "noise", tmp_path / "one", [frame], threads=1, margin=0.2, budget_s=3)
    assert found.latency_of == "engine alone"
    assert found.latency is not None
    assert 0.5 < found.latency.comparison.ratio.value < 2
    proof = judge_proof({"engines": [{"name": "x", "reason": "", **found.to_json()}]})
    assert "timed without the class map" in proof.engines[0].notes[0]


def test_a_planted_layer_is_found(build: Build) -> None:
    found = compare_structure(build("student", seed=1, projected=True), build("plain", seed=1))
    assert found.held is False
    assert any(line.startswith("layers: ") for line in found.differences)


def test_a_channel_more_is_found(build: Build) -> None:
    """17 instead of 16: 128 weights more, which is less than the texts of an engine may differ by."""
    student, plain = build("student", seed=1, channels=17), build("plain", seed=1, channels=16)
    found = compare_structure(student, plain)
    assert found.held is False
    assert found.weight_bytes is not None
    # 3 * 3 * 3 more weights before it, 5 * 3 * 3 behind it, float32
    assert found.weight_bytes[0] - found.weight_bytes[1] == 4 * (27 + 45)
    assert not [line for line in found.differences if line.startswith("size: ")]
    shown = " ".join(found.differences)
    assert f"weights: {found.weight_bytes[0]:,} bytes against {found.weight_bytes[1]:,}" in shown
    assert any(line.startswith("layers: ") for line in found.differences)
    graphs = compare_graphs(student.with_suffix(".onnx"), plain.with_suffix(".onnx"))
    cost = {"name": "x", "reason": "", **found.to_json()}
    assert judge_proof({**asdict(graphs), "params_equal": True, "macs_equal": True, "engines": [cost]}).held is False
    # the engine alone, too
    assert judge_proof({**GRAPH_EQUAL, "engines": [cost, made_cost()]}).held is False


def test_what_the_stage_cannot_compare_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(load_recipe(RECIPE), Run(tmp_path), {}, Stop(), lambda _line: None, "", "")
    frame = np.zeros((48, 64, 3), np.uint8)
    entry = {"name": "x", "plain": True}

    def boom(*_args: object, **_settings: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("brd_edge.evaluate.engine_cost.compare_engines", boom)
    for changes, status, reason in (
        ({"plain": False}, "measured", "the undistilled student's engine was not built"),
        ({}, "failed", "not compared: the engine failed"),
        ({}, "measured", "RuntimeError: boom"),
    ):
        found = added_cost(context, {**entry, **changes}, [frame], status=status, times={})
        assert found == {"name": "x", "held": None, "reason": reason}
        assert judge_proof({**GRAPH_EQUAL, "engines": [found, made_cost()]}).held is None


def test_layers_are_those_that_the_runtime_executes(build: Build) -> None:
    layers = list_layers(build("student", seed=1), threads=1)
    assert layers is not None
    # what a runtime adds or leaves out, its convolutions keep their weights, and the class map its size
    convolutions = [layer for layer in layers if re.match(r"(\S+\.\w*Conv|Convolution) ", layer)]
    assert len(convolutions) == 2
    assert any(f"[{shape}" in convolutions[0] for shape in ("16,3,3,3", "16,4,3,3", "16,8,3,3"))
    assert layers[-1].endswith("[1,48,64]")


def test_the_verdict_follows_the_engines(build: Build) -> None:
    student, plain = build("student", seed=1), build("plain", seed=2)
    cost = {"name": "x", "reason": "", **compare_structure(student, plain).to_json()}
    graph = GRAPH_EQUAL
    proof = judge_proof({**graph, "engines": [cost]})
    assert (proof.engines[0].structure, proof.engines[0].latency) == ("equal", "not checked")
    # no engine was timed
    assert proof.held is None
    timed = {**cost, "name": "timed", "latency": made_session()}
    assert judge_proof({**graph, "engines": [cost, timed]}).held is True
    worse = EngineCost((2, 1), None, ("size: 2 bytes against 1",), None).to_json()
    assert judge_proof({**graph, "engines": [timed, {"name": "y", "reason": "", **worse}]}).held is False
    for reason in ("the undistilled student's engine was not built", "RuntimeError: boom"):
        proof = judge_proof({**graph, "engines": [timed, {"name": "z", "held": None, "reason": reason}]})
        assert proof.held is None
        assert (proof.engines[1].structure, proof.engines[1].notes) == ("not checked", (reason,))
