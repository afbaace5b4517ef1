"""The exported graph, judged by ONNX's own checker, ONNX Runtime, OpenVINO, TensorRT-RTX and PyTorch's argmax."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import pytest
import torch

from brd_edge.deploy.export import export_onnx
from brd_edge.deploy.frame_model import BinnedMean
from brd_edge.models.segmentation import ModelSpec, build_model
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError, ModelError
from brd_edge.runtime.runners.openvino import openvino_core

CONTRACT = InputContract(64, 96, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
CLASSES = ["road", "sky", "tree", "car", "pole"]
PALETTE = [(10 * index, 20, 30) for index in range(5)]
PYRAMID = ModelSpec("PSPNet", "tu-resnet10t", 5, {})
TINY = ModelSpec("Unet", "tu-resnet10t", 5, {"encoder_depth": 3, "decoder_channels": [8, 8, 8]})


def trained(spec, seed=0):
    """A model whose weights and statistics all differ from their initial values."""
    model = build_model(spec, encoder_weights=None, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    return model.eval()


def export(model, path, **changes):
    settings = {"contract": CONTRACT, "classes": CLASSES, "palette": PALETTE, "metadata": {"recipe": "test"}, **changes}
    export_onnx(model, path, **settings)
    return path


def frames(count=4):
    return np.random.default_rng(0).integers(0, 256, (count, 1, 64, 96, 3), dtype=np.uint8)


def torch_class_maps(model):
    mean, std = (np.array(values, np.float64) for values in (CONTRACT.mean, CONTRACT.std))
    images = (frames()[:, 0].astype(np.float64) / 255 - mean) / std
    with torch.no_grad():
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    return logits.argmax(1).numpy()


def onnxruntime_class_maps(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": frame})[0] for frame in frames()])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    model = trained(ModelSpec("DeepLabV3Plus", "tu-mobilenetv3_small_050", 5, {}))
    return model, export(model, tmp_path_factory.mktemp("student") / "student.onnx")


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    model = trained(PYRAMID)
    return model, export(model, tmp_path_factory.mktemp("pyramid") / "pyramid.onnx")


@pytest.mark.parametrize("which", ["student", "pyramid"])
def test_onnxruntime_agrees_with_pytorch(which, request):
    model, path = request.getfixturevalue(which)
    found, expected = onnxruntime_class_maps(path), torch_class_maps(model)
    assert found.dtype == np.uint8
    assert len(np.unique(expected)) >= 3
    assert (found == expected).mean() >= 0.9999


def test_openvino_agrees_with_pytorch(student):

    model, path = student
    compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = np.concatenate([compiled([frame])[0] for frame in frames()])
    assert found.dtype == np.uint8
    assert (found == torch_class_maps(model)).mean() >= 0.9999


def test_tensorrt_parses_the_graph(student):
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(student[1])), [str(parser.get_error(i)) for i in range(parser.num_errors)]


def test_the_interface_and_the_operators(student, pyramid):
    proto = onnx.load(student[1])
    onnx.checker.check_model(proto, full_check=True)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 20)]
    assert onnx.helper.printable_value_info(proto.graph.input[0]) == "%image[UINT8, 1x64x96x3]"
    assert onnx.helper.printable_value_info(proto.graph.output[0]) == "%class_map[UINT8, 1x64x96]"
    assert (len(proto.graph.input), len(proto.graph.output)) == (1, 1)
    # float before the transposition, argmax and its cast at the end
    assert [node.op_type for node in proto.graph.node][:4] == ["Cast", "Transpose", "Mul", "Add"]
    assert [node.op_type for node in proto.graph.node][-2:] == ["ArgMax", "Cast"]
    for path in (student[1], pyramid[1]):
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert not {"Reshape", "Gather", "GatherND", "BatchNormalization", "Constant"} & set(operators)
        assert len(operators) < 160


def test_the_metadata_carries_the_contract(student):
    metadata = {item.key: item.value for item in onnx.load(student[1]).metadata_props}
    assert InputContract.from_json(json.loads(metadata["brd_edge.contract"])) == CONTRACT
    assert metadata["brd_edge.contract_hash"] == CONTRACT.hash
    assert json.loads(metadata["brd_edge.classes"]) == CLASSES
    assert [tuple(colour) for colour in json.loads(metadata["brd_edge.palette"])] == PALETTE
    assert metadata["recipe"] == "test"


def test_nothing_of_the_exporting_machine_is_in_the_file(student):
    proto = onnx.load(student[1])
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")  # noise that could spell anything
    text = proto.SerializeToString()
    for trace in (b".py", b"site-packages", b"stack_trace", b"/home", b"/work", b"/tmp", b"FrameModel"):
        assert trace not in text


def test_the_bytes_depend_on_the_weights_alone_and_the_model_is_left_alone(pyramid, tmp_path):
    model = trained(PYRAMID).train().to(memory_format=torch.channels_last)
    before = copy.deepcopy(model.state_dict())
    path = export(model, tmp_path / "again" / "student.onnx")
    assert all(layer.training for layer in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert path.read_bytes() == pyramid[1].read_bytes()
    assert [item.name for item in path.parent.iterdir()] == ["student.onnx"]


def test_segformer_has_no_matrix_products(tmp_path):
    model = trained(
        ModelSpec("Segformer", "tu-resnet10t", 5, {"encoder_depth": 3, "decoder_segmentation_channels": 16})
    )
    before = torch.random.get_rng_state()
    path = export(model, tmp_path / "student.onnx")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "MatMul" not in {node.op_type for node in onnx.load(path).graph.node}
    assert (onnxruntime_class_maps(path) == torch_class_maps(model)).mean() >= 0.9999


@pytest.mark.parametrize("size", [(8, 12), (9, 17), (6, 6), (45, 60)])
@pytest.mark.parametrize("bins", [(1, 1), (2, 2), (3, 3), (6, 6), (6, 2), (None, 3)])
def test_binned_mean_equals_adaptive_pooling(bins, size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(BinnedMean(bins)(x), torch.nn.AdaptiveAvgPool2d(bins)(x), rtol=0, atol=1e-14)


def test_a_model_that_cannot_be_converted_says_why(tmp_path, capfd):
    class Undecided(torch.nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    model = build_model(TINY, encoder_weights=None, seed=0)
    model.segmentation_head.append(Undecided())
    with pytest.raises(EngineError, match=r"student\.onnx: Unet cannot be converted .*data-dependent") as error:
        export(model, tmp_path / "student.onnx")
    assert "\n" not in str(error.value)
    assert "def forward" not in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_named(tmp_path):
    model, path = build_model(TINY, encoder_weights=None, seed=0), tmp_path / "student.onnx"
    with pytest.raises(EngineError, match=r"5 outputs.*got 4 and 5"):
        export(model, path, classes=CLASSES[:4])
    with pytest.raises(EngineError, match="'sky' must be 3 numbers"):
        export(model, path, palette=[(0, 0, 0), (0, 0, 256), *PALETTE[2:]])
    with pytest.raises(EngineError, match="metadata keys"):
        export(model, path, metadata={"brd_edge.contract": ""})
    fpn = build_model(ModelSpec("FPN", "tu-resnet10t", 5, {}), encoder_weights=None, seed=0)
    with pytest.raises(ModelError, match="divisible by 32"):
        export(fpn, path, contract=InputContract(60, 96, CONTRACT.mean, CONTRACT.std))
    model.segmentation_head[0].bias.data[1] = float("nan")
    with pytest.raises(EngineError, match=r"'segmentation_head\.0\.bias' is not finite"):
        export(model, path)
