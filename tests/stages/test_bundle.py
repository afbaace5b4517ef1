from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from brd_edge.run import Run
from brd_edge.runtime.versions import version_fits
from brd_edge.stages.bundle import left_out, planned_engine

ENTRY: dict[str, Any] = {
    **{"name": "e", "runtime": "tensorrt", "precision": "int8", "target": "jetson-orin", "batch_max": 2},
    **{"status": "skipped", "reason": "built on the device itself", "graph": "graphs/e/0/student.onnx"},
    **{"runtime_version": None, "agreement": {"reference": 0.97}, "gates": {}, "gates_broken": []},
    **dict.fromkeys(("latency_ms", "miou", "boundary_iou", "argmax_agreement", "size_bytes")),
}
HERE = {"target": "rtx", "status": "built", "reason": "", "runtime_version": "tensorrt_rtx 1.7.1"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        # what quantises is not installed, so there is no graph that the device could build from
        ({"graph": None, "reason": "onnxruntime is not installed"}, "onnxruntime is not installed"),
        (HERE, None),
        ({**HERE, "gates_broken": ["size_bytes 9 is above 5"]}, "gates not held: size_bytes 9 is above 5"),
        ({**HERE, "status": "skipped", "graph": None, "reason": "tensorrt_rtx is missing"}, "tensorrt_rtx is missing"),
        ({"status": "failed", "graph": None, "reason": "disagrees with fp32"}, "disagrees with fp32"),
    ],
)
def test_what_is_left_out_has_a_reason(changes: dict[str, Any], reason: str | None) -> None:
    assert left_out(ENTRY | changes) == reason


def graph_of_opset(version: int) -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1])
    return onnx.helper.make_model(
        onnx.helper.make_graph([], "g", [value], [value]), opset_imports=[onnx.helper.make_opsetid("", version)]
    )


def test_a_plan_and_an_engine(tmp_path: Path) -> None:
    run = Run(tmp_path)
    plan, built = planned_engine(run, ENTRY), planned_engine(run, ENTRY | HERE)
    assert (plan.directory, plan.graph, plan.batch_max) == (None, tmp_path / "graphs/e/0/student.onnx", 2)
    assert built.directory == tmp_path / "engines" / "e"
    assert [version_fits(version, plan.runtime_range) for version in ("10.3.0", "11.0", "8.6")] == [True, False, False]
    assert built.runtime_range == "==1.7.1"
    assert plan.agreement_min == 0.92
    # as the exported graph says, not as the recipe or the version here
    onnx.save(graph_of_opset(22), tmp_path / "student.onnx")
    exported = {"runtime": "onnxruntime", "target": "x86-cpu", "runtime_version": "1.32.0", "graph": "student.onnx"}
    assert planned_engine(run, ENTRY | HERE | exported).runtime_range == ">=1.21"
    assert plan.metrics["gates"] == "not measured here"
    known = {"attempts": [{"kept": [], "lost": {"miou": {}}, "missed": []}], "gates": {"miou_drop_max": 1.0}}
    found = planned_engine(run, ENTRY | known).metrics
    assert found["gates"] == "the gates of accuracy held by its graph; not measured here"
