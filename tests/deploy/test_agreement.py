"""How graphs are executed to check them: what a runtime is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from brd_edge.deploy import agreement
from brd_edge.deploy.agreement import check_artefact, stand_in
from brd_edge.runtime.runners.openvino import openvino_core


@pytest.mark.parametrize(
    ("precision", "capabilities", "hint"),
    [
        ("int8", ["FP32", "BF16", "FP16"], "f32"),
        ("int8-bf16", ["FP32"], "bf16"),
        ("bf16", ["FP32"], "bf16"),
        ("int8-fp16", ["FP32", "BF16", "FP16"], "f16"),
        # OpenVINO would take bf16 for it, which is farther from fp16 than fp32 is
        ("int8-fp16", ["FP32", "BF16"], "f32"),
        ("fp16", ["FP32", "BF16"], "f32"),
    ],
)
def test_openvino_computes_the_rest_as_on_the_device(named_graph, frames, monkeypatch, precision, capabilities, hint):
    """Asked of OpenVINO's settings, since not every processor rounds."""
    asked = []

    def compile_model(model, device, settings):
        asked.append(settings)
        return openvino_core().compile_model(model, device, settings)

    def get_property(device, name):
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return capabilities

    core = SimpleNamespace(
        read_model=openvino_core().read_model, compile_model=compile_model, get_property=get_property
    )
    monkeypatch.setattr(agreement, "openvino_core", lambda: core)
    shares = check_artefact(named_graph, named_graph, frames, runtime="openvino", precision=precision, threshold=0.9)
    assert [settings["INFERENCE_PRECISION_HINT"] for settings in asked] == [hint, "f32"]
    assert ["LP_TRANSFORMS_MODE" in settings for settings in asked] == [False, True]
    assert shares["OpenVINO in floating point"] == 1.0
    elsewhere = check_artefact(
        named_graph, named_graph, frames, runtime="openvino", precision=precision, here=False, threshold=0.9
    )
    assert list(elsewhere) == ["OpenVINO without int8 kernels", "OpenVINO in floating point"]
    assert [settings["INFERENCE_PRECISION_HINT"] for settings in asked[2:]] == [hint, "f32"]
    assert all("LP_TRANSFORMS_MODE" in settings for settings in asked[2:])
    stand_in(named_graph, runtime="openvino", precision=precision)
    assert asked[4] == asked[0]
