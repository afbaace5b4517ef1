"""Every architecture in every precision of every runtime: what an engine has to be, whatever it is made of."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hardware import gpu

from brd_edge.deploy.agreement import stand_in
from brd_edge.deploy.batch import set_batch
from brd_edge.deploy.graphs import read_graph
from brd_edge.deploy.logits import cut_at_logits
from brd_edge.deploy.lowering import is_exact, lower_graph
from brd_edge.models.segmentation import ModelSpec
from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.engine import CoarseLogits, open_engine, read_engine, verify_files, write_engine
from brd_edge.runtime.errors import ContractError, EngineError, RuntimeMissingError
from brd_edge.runtime.targets import TARGETS, check_combination, compute_capabilities

SPECS = {
    "DeepLabV3Plus": ModelSpec("DeepLabV3Plus", "tu-mobilenetv3_small_050", 5, {"decoder_channels": 32}),
    "PSPNet": ModelSpec("PSPNet", "tu-resnet10t", 5, {"psp_out_channels": 64}),
    "FPN": ModelSpec("FPN", "tu-resnet10t", 5, {"decoder_pyramid_channels": 32}),
    "UPerNet": ModelSpec("UPerNet", "tu-resnet10t", 5, {"decoder_channels": 32}),
    "Segformer": ModelSpec("Segformer", "tu-resnet10t", 5, {"decoder_segmentation_channels": 32}),
    "Unet": ModelSpec("Unet", "tu-resnet10t", 5, {"encoder_depth": 3, "decoder_channels": [16, 16, 16]}),
}
ARCHITECTURES = list(SPECS)
# another recommended encoder: ReLU6, and padding as TensorFlow's
SPECS["EfficientNet-lite"] = ModelSpec("DeepLabV3Plus", "tu-tf_efficientnet_lite0", 5, {"decoder_channels": 32})
ENGINES = [
    *(("onnxruntime", precision, "x86-cpu") for precision in TARGETS["x86-cpu"].precisions["onnxruntime"]),
    *(("openvino", precision, "x86-cpu") for precision in TARGETS["x86-cpu"].precisions["openvino"]),
    *(("tensorrt", precision, "rtx-sm89") for precision in TARGETS["rtx-sm89"].precisions["tensorrt"]),
    # what these have otherwise is what x86-cpu has
    ("onnxruntime", "fp16", "cuda"),
    ("onnxruntime", "int8", "arm64-cpu"),
    ("openvino", "fp16", "arm64-cpu"),
]
# share of pixels as in PyTorch; untrained weights leave classes closer to each other than trained ones do
AGREEMENT_MIN = {"fp32": 0.9999, "fp16": 0.995, "bf16": 0.96, "int8": 0.8, "int8-fp16": 0.8, "int8-bf16": 0.8}
# of the export; shapes that are computed, or bins that are gathered one by one, would be hundreds more
NODES_MAX = {"DeepLabV3Plus": 154, "PSPNet": 93, "FPN": 109, "UPerNet": 144, "Segformer": 54, "Unet": 43}
NODES_MAX["EfficientNet-lite"] = 125
PALETTE = tuple((10 * index, 20, 30) for index in range(5))


@pytest.fixture(scope="module", params=list(SPECS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def exported(name, export_student, tmp_path_factory):
    return export_student(SPECS[name], tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def expected(exported):
    """What PyTorch says, in float64."""
    contract = exported.contract
    images = (np.stack(exported.frames) / 255 - contract.mean) / contract.std
    model = exported.model.double()
    with torch.inference_mode():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1).numpy()
    exported.model.float()
    return found


@pytest.fixture(scope="module")
def lowered(exported, tmp_path_factory):
    """The graphs of an architecture by engine; what OpenVINO computes the rest in is said later."""

    @cache
    def graph(runtime, precision, reduce_range):
        return lower_graph(
            exported.path,
            tmp_path_factory.mktemp("graphs"),
            runtime=runtime,
            precision=precision,
            frames=exported.frames,
            ranges=lambda: exported.ranges,
            reduce_range=reduce_range,
        )

    def of_engine(runtime, precision, target="x86-cpu"):
        return graph(runtime, "int8" if precision == "int8-bf16" else precision, target == "x86-cpu")

    return of_engine


# with another encoder nothing would be different
only_architectures = pytest.mark.parametrize("name", ARCHITECTURES, indirect=True)


def metadata(path):
    return {item.key: item.value for item in onnx.load(path).metadata_props}


def missing_here(runtime, precision, target):
    """Say why an engine is refused on this machine, as a pattern; empty where it runs."""
    if runtime == "tensorrt":
        return "" if gpu() in compute_capabilities(precision, target) else "NVIDIA|GPU"
    if target == "cuda":
        ort = pytest.importorskip("onnxruntime")
        there = gpu() is not None and "CUDAExecutionProvider" in ort.get_available_providers()
        return "" if there else "no CUDAExecutionProvider here.*replace onnxruntime by"
    return "" if platform.machine() in TARGETS[target].machines else f"{target}.*{platform.machine()}"


@pytest.mark.parametrize(("runtime", "precision", "target"), ENGINES)
def test_an_engine_keeps_its_contract(
    name, exported, expected, lowered, tmp_path: Path, runtime, precision, target
) -> None:
    if runtime == "tensorrt":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    if runtime == "openvino" and precision.startswith("int8"):
        pytest.importorskip("nncf", reason="nncf is not installed")
    if name not in ARCHITECTURES and precision in ("fp16", "bf16", "int8-bf16"):
        pytest.skip("halving does not depend on the encoder")
    assert check_combination(runtime, precision, target) is None
    graph = lowered(runtime, precision, target)
    assert (graph == exported.path) == is_exact(runtime, precision)
    settings = {"runtime": runtime, "precision": precision, "target": target, "onnx": graph, "out": tmp_path / "engine"}
    classes = tuple("abcde")
    info = build_engine(**settings, contract=exported.contract, classes=classes, palette=PALETTE)

    assert info == read_engine(tmp_path / "engine")
    verify_files(tmp_path / "engine", info)
    sidecar = json.loads((tmp_path / "engine" / "engine.json").read_text(encoding="utf-8"))
    assert (sidecar["runtime"], sidecar["precision"], sidecar["target"]) == (runtime, precision, target)
    assert (tuple(sidecar["classes"]), sidecar["contract"]) == (classes, exported.contract.to_json())
    assert sidecar["palette"] == [list(colour) for colour in PALETTE]
    # what the exporter wrote into the graph is in whatever was made of it, as far as it is ONNX
    for path in (graph, tmp_path / "engine" / info.entry):
        if path.suffix == ".onnx":
            kept = metadata(path)
            assert kept == metadata(exported.path)
            assert kept["brd_edge.contract_hash"] == exported.contract.hash
            assert json.loads(kept["brd_edge.palette"]) == sidecar["palette"]
            assert len(json.loads(kept["brd_edge.classes"])) == len(classes)
    with pytest.raises(ContractError, match="height"):
        open_engine(tmp_path / "engine", contract=replace(exported.contract, height=128))
    reason = missing_here(runtime, precision, target)
    if reason:
        with pytest.raises((RuntimeMissingError, EngineError), match=reason):
            open_engine(tmp_path / "engine")
        predict = stand_in(graph, runtime=runtime, precision=precision, here=False)
        found = np.stack([predict(frame) for frame in exported.frames])
    else:
        with open_engine(tmp_path / "engine", contract=exported.contract, threads=1) as runner:
            found = np.stack([runner.infer(frame) for frame in exported.frames])
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    assert (found == expected).mean() >= AGREEMENT_MIN[precision]


@only_architectures
@pytest.mark.parametrize(
    ("runtime", "precision"), [(runtime, precision) for runtime, precision, target in ENGINES if target == "x86-cpu"]
)
def test_coarse_logits_give_the_same_class_map(exported, lowered, tmp_path: Path, runtime, precision) -> None:
    if runtime == "openvino" and precision.startswith("int8"):
        pytest.importorskip("nncf", reason="nncf is not installed")
    graph = lowered(runtime, precision)
    cut = tmp_path / f"logits{graph.suffix}"
    logits = cut_at_logits(graph, cut)
    if type(exported.model).__name__ == "Unet":
        # its head has the size of the frame
        assert logits is None
        assert not cut.exists()
        return
    assert logits is not None
    assert logits.align_corners
    settings = {"runtime": runtime, "precision": precision, "target": "x86-cpu", "contract": exported.contract}
    common = {**settings, "classes": tuple("abcde"), "palette": PALETTE}
    build_engine(**common, onnx=graph, out=tmp_path / "dense")
    info = build_engine(**common, onnx=cut, out=tmp_path / "sparse", logits=logits)
    assert read_engine(tmp_path / "sparse") == info
    with open_engine(tmp_path / "dense", threads=1) as dense, open_engine(tmp_path / "sparse", threads=1) as sparse:
        expected = np.stack([dense.infer(frame) for frame in exported.frames])
        found = np.stack([sparse.infer(frame) for frame in exported.frames])
        # the class map is the caller's own, whatever is inferred next
        first = sparse.infer(exported.frames[0])
        sparse.infer(exported.frames[1])
        np.testing.assert_array_equal(first, found[0])
    # in bf16 the graph upsamples in bf16, the runtime in float32
    assert (found == expected).mean() >= (0.97 if precision.endswith("bf16") else 0.9998)


@only_architectures
def test_coarse_logits_in_half_precision(exported, lowered, tmp_path: Path) -> None:
    """The engine for `cuda` returns float16; it is run on the processor, by the provider that casts for itself."""
    graph, cut = lowered("onnxruntime", "fp16", "cuda"), tmp_path / "logits.onnx"
    logits = cut_at_logits(graph, cut)
    if type(exported.model).__name__ == "Unet":
        assert logits is None
        return
    assert onnx.load(cut).graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert metadata(cut) == metadata(exported.path)
    settings = {"runtime": "onnxruntime", "precision": "fp16", "target": "cuda", "contract": exported.contract}
    common = {**settings, "classes": tuple("abcde"), "palette": PALETTE}
    info = build_engine(**common, onnx=cut, out=tmp_path / "sparse", logits=logits)
    assert read_engine(tmp_path / "sparse") == info
    write_engine(tmp_path / "sparse", replace(info, target="x86-cpu"))
    dense = stand_in(graph, runtime="onnxruntime", here=False)
    with open_engine(tmp_path / "sparse", threads=1) as sparse:
        found = np.stack([sparse.infer(frame) for frame in exported.frames])
    expected = np.stack([dense(frame) for frame in exported.frames])
    # the graph upsamples in float16, the runtime in float32
    assert (found == expected).mean() >= 0.995


def test_a_graph_is_compact(name, exported) -> None:
    nodes = [node.op_type for node in read_graph(exported.path).graph.node]
    assert len(nodes) <= NODES_MAX[name]
    strays = {"Shape", "Gather", "Expand", "Loop", "If", "BatchNormalization", "Dropout", "Identity"}
    assert not strays & set(nodes)
    # what group normalisation is made of before opset 21
    assert nodes.count("Reshape") == (14 if name == "FPN" else 0)


@only_architectures
@pytest.mark.parametrize(
    ("runtime", "precision", "coarse"),
    [
        ("onnxruntime", "fp32", False),
        ("onnxruntime", "int8", True),
        ("openvino", "fp32", True),
        ("openvino", "int8", False),
    ],
)
def test_frames_may_come_several_at_once(exported, lowered, tmp_path: Path, runtime, precision, coarse) -> None:
    if runtime == "openvino" and precision == "int8":
        pytest.importorskip("nncf", reason="nncf is not installed")
    graph = lowered(runtime, precision)
    settings = {"runtime": runtime, "precision": precision, "target": "x86-cpu", "contract": exported.contract}
    common = {**settings, "classes": tuple("abcde"), "palette": PALETTE}
    build_engine(**common, onnx=graph, out=tmp_path / "one")
    opened = tmp_path / f"batch{graph.suffix}"
    set_batch(graph, opened, frames_max=2)
    logits = cut_at_logits(opened, tmp_path / f"logits{graph.suffix}") if coarse else None
    source = opened if logits is None else tmp_path / f"logits{graph.suffix}"
    info = build_engine(**common, onnx=source, out=tmp_path / "several", logits=logits, batch_max=2)
    assert read_engine(tmp_path / "several") == info
    frames = np.stack([*exported.frames, *exported.frames])[:3]
    with open_engine(tmp_path / "one", threads=1) as one, open_engine(tmp_path / "several", threads=1) as several:
        expected = np.stack([one.infer(frame) for frame in frames])
        assert len({found.tobytes() for found in expected}) > 1
        # two at once, and the third alone; for shapes that are open a runtime may take other kernels
        least = 0.9998 if precision == "fp32" else 0.99
        assert (several.infer(frames) == expected).mean() >= least
        np.testing.assert_array_equal(one.infer(frames), expected)
        assert (several.infer(frames[2]) == expected[2]).mean() >= least
        with pytest.raises(EngineError, match="frame: expected uint8"):
            several.infer(frames[:0])
        with pytest.raises(EngineError, match="frame: expected uint8"):
            several.infer(frames[:, :-1])


@only_architectures
def test_tensorrt_takes_several_frames_at_once(exported, lowered, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    if type(exported.model).__name__ not in ("PSPNet", "FPN"):
        pytest.skip("its graph has nothing that the graphs of PSPNet and FPN do not have")
    settings = {"runtime": "tensorrt", "precision": "int8-fp16", "target": "rtx-sm89", "contract": exported.contract}
    common = {**settings, "classes": tuple("abcde"), "palette": PALETTE, "batch_max": 4}
    graph = lowered("tensorrt", "int8-fp16")
    with pytest.raises(EngineError, match=r"expected image uint8 \('N', .* got image uint8 \(1, "):
        build_engine(**common, onnx=graph, out=tmp_path / "engine")
    set_batch(graph, tmp_path / "batch.onnx")
    info = build_engine(**common, onnx=tmp_path / "batch.onnx", out=tmp_path / "engine")
    assert read_engine(tmp_path / "engine") == info
    assert info.batch_max == 4


@only_architectures
def test_a_fixed_number_of_frames(exported, tmp_path: Path) -> None:
    import onnxruntime

    set_batch(exported.path, tmp_path / "two.onnx", frames=2)
    session = onnxruntime.InferenceSession(tmp_path / "two.onnx", providers=["CPUExecutionProvider"])
    height, width = exported.contract.height, exported.contract.width
    assert session.get_inputs()[0].shape == [2, height, width, 3]
    assert session.get_outputs()[0].shape == [2, height, width]
    frames = np.stack(exported.frames)[:2]
    (found,) = session.run(None, {"image": frames})
    single = stand_in(exported.path, runtime="onnxruntime")
    assert (found == np.stack([single(frame) for frame in frames])).mean() >= 0.9998


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_attention_takes_several_frames_at_once(export_student, tmp_path: Path, runtime: str) -> None:
    """The exporter writes its reshapes with `allowzero`, by which 0 is a size and not the one that comes."""
    exported = export_student(
        ModelSpec("MAnet", "tu-resnet10t", 5, {"encoder_depth": 3, "decoder_channels": [16, 16, 16]}), tmp_path
    )
    literal = [
        node.op_type
        for node in read_graph(exported.path).graph.node
        if any(item.name == "allowzero" and item.i for item in node.attribute)
    ]
    assert set(literal) == {"Reshape"}
    set_batch(exported.path, tmp_path / "three.onnx", frames=3)
    frames = np.stack(exported.frames[:3])
    single = stand_in(exported.path, runtime="onnxruntime")
    expected = np.stack([single(frame) for frame in frames])
    assert len({class_map.tobytes() for class_map in expected}) == 3
    if runtime == "openvino":
        openvino = pytest.importorskip("openvino")
        compiled = openvino.compile_model(tmp_path / "three.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled(frames)[0]
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(tmp_path / "three.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"image": frames})
    assert found.shape == expected.shape
    assert (found == expected).mean() >= 0.9998


def test_a_reshape_whose_zero_is_a_size_is_not_changed_into_another(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    student (uint8[1,4,6,3] image) => (uint8[1,4,6] class_map)
    <int64[4] empty = {1, 0, 6, 3}, int64[1] axis = {1}, int64[1] zero = {0}, int64[1] last = {3}> {
        none = Slice(image, zero, zero, axis)
        same = Reshape<allowzero = 1>(none, empty)
        kept = Concat<axis = 1>(image, same)
        class_map = ReduceMin<keepdims = 0>(kept, last)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "one.onnx")
    with pytest.raises(EngineError, match="for one frame only"):
        set_batch(tmp_path / "one.onnx", tmp_path / "open.onnx")


@only_architectures
def test_an_engine_whose_sidecar_says_something_else_is_refused(exported, lowered, tmp_path: Path) -> None:
    common = {
        **{"runtime": "onnxruntime", "precision": "fp32", "target": "x86-cpu", "contract": exported.contract},
        **{"classes": tuple("abcde"), "palette": PALETTE, "onnx": lowered("onnxruntime", "fp32")},
    }
    with pytest.raises(EngineError, match=r"expected image uint8 .* -> logits float32 .* got .* -> class_map uint8"):
        build_engine(**common, out=tmp_path / "engine", logits=CoarseLogits(align_corners=True))
