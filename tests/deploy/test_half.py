"""Half-precision graphs, judged by ONNX's checker and reference evaluator, two runtimes, PyTorch and TensorRT-RTX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from brd_edge.deploy.agreement import THRESHOLDS, check_artefact
from brd_edge.deploy.half import to_bf16, to_fp16
from brd_edge.runtime.errors import EngineError


@pytest.fixture(scope="module")
def halves(mobile, tmp_path_factory):
    directory = tmp_path_factory.mktemp("halves")
    to_fp16(mobile.path, directory / "fp16.onnx")
    to_bf16(mobile.path, directory / "bf16.onnx")
    return {name: directory / f"{name}.onnx" for name in ("fp16", "bf16")}


def weights(path):
    return {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def element_types(path):
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    return {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.input, *graph.output)}


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_two_runtimes_agree_with_fp32(mobile, halves, name):
    shares = check_artefact(halves[name], mobile.path, mobile.frames, runtime="tensorrt", threshold=THRESHOLDS[name])
    assert len(shares) == 2


def test_onnxruntime_with_optimisations_agrees(mobile, halves):
    check_artefact(halves["fp16"], mobile.path, mobile.frames, runtime="onnxruntime", threshold=THRESHOLDS["fp16"])


def test_the_reference_evaluator_agrees(residual, tmp_path):
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    to_fp16(residual.path, tmp_path / "fp16.onnx")
    frame = {"image": residual.frames[0][None]}
    found = ReferenceEvaluator(str(tmp_path / "fp16.onnx")).run(None, frame)[0]
    expected = onnxruntime.InferenceSession(residual.path, providers=["CPUExecutionProvider"]).run(None, frame)[0]
    assert found.dtype == np.uint8
    assert (found == expected).mean() >= THRESHOLDS["fp16"]


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_weights_are_rounded_as_pytorch_rounds_them(mobile, halves, name, dtype):
    before, behind = weights(mobile.path), weights(halves[name])
    halved = {key.removesuffix("_half"): value for key, value in behind.items() if key.endswith("_half")}
    assert sum(value.size for value in halved.values()) > 400_000
    for key, value in halved.items():
        rounded = torch.from_numpy(before[key].copy()).to(dtype).float().numpy()
        np.testing.assert_array_equal(value.astype(np.float32), rounded)
    assert halves[name].stat().st_size < 0.55 * mobile.path.stat().st_size


@pytest.mark.parametrize(("name", "kind"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_normalisation_is_float_and_the_body_is_half(mobile, halves, name, kind):
    graph, types = onnx.load(halves[name]).graph, element_types(halves[name])
    assert [node.op_type for node in graph.node][:5] == ["Cast", "Transpose", "Mul", "Add", "Cast"]
    assert types[graph.node[3].output[0]] == onnx.TensorProto.FLOAT
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in onnx.load(mobile.path).graph.node)
    assert {types[node.output[0]] for node in convolutions} == {getattr(onnx.TensorProto, kind)}
    metadata = [
        {item.key: item.value for item in onnx.load(path).metadata_props} for path in (mobile.path, halves[name])
    ]
    assert metadata[0] == metadata[1]


def test_a_weight_beyond_float16_is_refused_by_name(residual, tmp_path):
    model = onnx.load(residual.path)
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    tensor = next(item for item in model.graph.initializer if item.name == node.input[1])
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[3] = 70_000
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(EngineError, match=rf"large\.onnx: {node.name}: weight '{node.input[1]}' holds 70000.*bf16"):
        to_fp16(tmp_path / "large.onnx", tmp_path / "fp16.onnx")
    assert not (tmp_path / "fp16.onnx").exists()
    to_bf16(tmp_path / "large.onnx", tmp_path / "bf16.onnx")


def test_what_is_no_exported_graph_is_refused(halves, tmp_path):
    with pytest.raises(EngineError, match=r"absent\.onnx: cannot be read"):
        to_fp16(tmp_path / "absent.onnx", tmp_path / "out.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(EngineError, match=r"text\.onnx: expected an ONNX graph"):
        to_fp16(tmp_path / "text.onnx", tmp_path / "out.onnx")
    with pytest.raises(EngineError, match="got one of a lower precision"):
        to_bf16(halves["fp16"], tmp_path / "out.onnx")


# one engine for all of them is refused: SM75 has no bfloat16
@pytest.mark.parametrize(("name", "capability"), [("fp16", "SM75"), ("fp16", "SM89"), ("bf16", "SM89")])
def test_tensorrt_builds(halves, name, capability):
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(halves[name].read_bytes()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    assert builder.build_serialized_network(network, config) is not None
