"""What TensorRT's inspector says, as its documentation shows it; without a GPU nothing is said at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brd_edge.evaluate.contents import read_contents
from brd_edge.evaluate.layers import layers_of_inspection, list_layers
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.runners.tensorrt import require_gpu


def inspection(maps: int, *, tactic: str = "sm80_xmma_fprop") -> str:
    convolution: dict[str, Any] = {
        "Name": "node_Conv_1 + node_relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [1, 3, 48, 64], "Format/Datatype": "Row major linear FP16 format"}],
        "Outputs": [{"Name": "y", "Dimensions": [1, maps, 48, 64], "Format/Datatype": "Row major linear FP16 format"}],
        "ParameterType": "Convolution",
        "Weights": {"Type": "Half", "Count": 27 * maps},
        "Bias": {"Type": "Half", "Count": maps},
        "TacticName": tactic,
    }
    return json.dumps({"Layers": [{"Name": "copy", "LayerType": "Reformat"}, convolution], "Bindings": ["x", "y"]})


def test_a_layer_of_tensorrt_is_told_by_kind_weights_and_shape() -> None:
    assert layers_of_inspection(inspection(16)) == [
        "Reformat () -> ",
        "CaskConvolution Convolution (Half[432], Half[16]) -> Row major linear FP16 format[1, 16, 48, 64]",
    ]
    assert layers_of_inspection(inspection(16)) != layers_of_inspection(inspection(17))
    # of two kernels that are as fast the builder takes either
    assert layers_of_inspection(inspection(16)) == layers_of_inspection(inspection(16, tactic="another"))


def test_names_alone_tell_nothing_and_anything_else_is_refused() -> None:
    assert layers_of_inspection('{"Layers": ["node_Conv_1 + node_relu"], "Bindings": []}') is None
    for text in ("", "{}", "[]"):
        with pytest.raises(EngineError, match="expected JSON with a list Layers"):
            layers_of_inspection(text)


def test_an_engine_whose_gpu_is_not_here_tells_nothing(engines: dict[str, Path]) -> None:
    assert read_contents(engines["tensorrt"]) is None
    try:
        require_gpu()
    except RuntimeMissingError:
        assert list_layers(engines["tensorrt"]) is None
