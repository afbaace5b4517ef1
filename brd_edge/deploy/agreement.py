"""Whether a graph says what the fp32 graph says, as two runtimes execute it.

One runtime alone proves little: a runtime may fuse a graph into something else, and integer kernels saturate
on some processors. The second way is always plain floating-point arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from brd_edge.deploy.calibration import calibration_frames
from brd_edge.deploy.graphs import read_graph
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.onnxruntime import INSTALL as INSTALL_ONNXRUNTIME
from brd_edge.runtime.runners.openvino import INSTALL as INSTALL_OPENVINO
from brd_edge.runtime.runners.openvino import PRECISION_HINTS, openvino_core

if TYPE_CHECKING:
    import onnx

__all__ = ["THRESHOLDS", "check_artefact", "in_floating_point", "stand_in"]

THRESHOLDS = {"fp32": 0.999, "fp16": 0.995, "bf16": 0.97, "int8": 0.9}
"""Agreement below which a graph of a trained student counts as broken, by precision; accuracy is measured elsewhere."""

Predict = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
_Way = Callable[[Path, str], Predict]

# OpenVINO's passes that choose int8 kernels are off
_NO_INT8 = {"LP_TRANSFORMS_MODE": "NO"}


def check_artefact(
    artefact: Path,
    reference: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    runtime: Literal["onnxruntime", "openvino", "tensorrt"],
    precision: str = "fp32",
    here: bool = True,
    threshold: float,
) -> dict[str, float]:
    """Run a graph of lower precision in two ways and compare its class maps with those of the fp32 graph.

    For ONNX Runtime: by ONNX Runtime as on the device, and by OpenVINO in floating point. For OpenVINO: by OpenVINO
    as on the device, what is not quantised in the engine's precision, and in floating point. For TensorRT: by ONNX
    Runtime without optimisations (with them it runs int8 graphs with a float16 rest wrongly), and by OpenVINO in
    floating point (its int8 kernels run such graphs wrongly). ONNX Runtime has no bfloat16 convolutions: such a
    graph is run in float32, every tensor rounded to bfloat16. For another device than this machine's processor:
    without the kernels of this one, whose int8 may saturate where the device's does not.

    Args:
        artefact: What is checked: an ONNX graph, or for OpenVINO the `.xml` of its model or an ONNX graph.
        reference: The exported fp32 graph that it was made from.
        frames: What `brd_edge.deploy.calibration.calibration_frames` takes.
        runtime: What the artefact is for.
        precision: The engine's precision. Only OpenVINO is told: its graph does not say what the rest of an int8
            engine is computed in.
        here: Whether it is for processors of this machine's kind, and not for a GPU, an NPU, or for all of them.
        threshold: Smallest share of pixels with equal classes, 0 to 1; see `THRESHOLDS`.

    Returns:
        The share of equal pixels by way of execution.

    Raises:
        RuntimeMissingError: ONNX Runtime or OpenVINO is not installed.
        EngineError: A way agrees less than `threshold`; the message names both figures. Or a runtime does not take
            the graph, or a frame is wrong.
    """
    if runtime not in _WAYS:
        raise EngineError(f"{artefact}: there is no runtime {runtime!r} to check for; there are {', '.join(_WAYS)}")
    model = read_graph(reference)
    _, height, width, _ = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    ways = {name: way(artefact, precision) for name, way in (_WAYS if here else _ELSEWHERE)[runtime].items()}
    expect = _onnxruntime(reference, "fp32")
    equal, pixels = dict.fromkeys(ways, 0), 0
    for frame in calibration_frames(frames, height, width):
        expected = expect(frame)
        pixels += expected.size
        for name, predict in ways.items():
            equal[name] += int((predict(frame) == expected).sum())
    shares = {name: count / pixels for name, count in equal.items()}
    if min(shares.values()) < threshold:
        figures = ", ".join(f"{100 * share:.2f} % by {name}" for name, share in shares.items())
        raise EngineError(
            f"{artefact}: expected at least {100 * threshold:.2f} % of the pixels as in {reference.name}, "
            f"got {figures}; "
            "keep sensitive groups in floating point, calibrate on more frames, or use another precision"
        )
    return shares


def stand_in(artefact: Path, *, runtime: str, precision: str = "fp32", here: bool = True) -> Predict:
    """Return what runs a graph of lower precision on this machine as nearly as can be as on its device.

    Args:
        artefact: As for `check_artefact`.
        runtime: What it is for.
        precision: As for `check_artefact`.
        here: As for `check_artefact`.

    Returns:
        Frame uint8 (H, W, 3), RGB, to class map uint8 (H, W).

    Raises:
        RuntimeMissingError: ONNX Runtime or OpenVINO is not installed.
        EngineError: The graph is not taken.
    """
    return _of_one_frame(next(iter((_WAYS if here else _ELSEWHERE)[runtime].values()))(artefact, precision))


def in_floating_point(artefact: Path) -> Predict:
    """Return what runs a graph of lower precision as it is written, in floating-point arithmetic, node by node.

    What it says is what the precision alone makes of the fp32 graph: nothing is fused, and no kernel computes in
    integers. ONNX graphs are run by ONNX Runtime, OpenVINO's by OpenVINO.

    Args:
        artefact: As for `check_artefact`.

    Returns:
        Frame uint8 (H, W, 3), RGB, to class map uint8 (H, W).

    Raises:
        RuntimeMissingError: ONNX Runtime or OpenVINO is not installed.
        EngineError: The graph is not taken.
    """
    return _of_one_frame((_openvino_plain if artefact.suffix == ".xml" else _onnxruntime_plain)(artefact, "fp32"))


def _of_one_frame(predict: Predict) -> Predict:
    def run(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        class_map: NDArray[np.uint8] = predict(np.ascontiguousarray(frame[None]))[0]
        return class_map

    return run


def _onnxruntime(path: Path, _precision: str) -> Predict:
    """As on the device."""
    return _session(path.read_bytes(), path, optimised=True)


def _onnxruntime_plain(path: Path, _precision: str) -> Predict:
    """Node by node as the graph says."""
    import onnx

    model = onnx.load_from_string(path.read_bytes())
    if onnx.TensorProto.BFLOAT16 in {tensor.data_type for tensor in model.graph.initializer}:
        _widen(model, onnx.TensorProto.BFLOAT16, rounded=True)
    return _session(model.SerializeToString(), path, optimised=False)


def _session(content: bytes, path: Path, *, optimised: bool) -> Predict:
    ort = import_runtime("onnxruntime", INSTALL_ONNXRUNTIME)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{path}: ONNX Runtime {ort.__version__} does not take the graph: {error}") from error
    name = session.get_inputs()[0].name

    def predict(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        class_map: NDArray[np.uint8] = session.run(None, {name: frame})[0]
        return class_map

    return predict


def _openvino(path: Path, precision: str) -> Predict:
    """As on the device; a processor without bf16 computes in float32 and rounds, one without fp16 in float32."""
    return _compiled(str(path), path, {"INFERENCE_PRECISION_HINT": _hint(precision)})


def _openvino_without_int8(path: Path, precision: str) -> Predict:
    """As on another device, as far as a processor can."""
    return _compiled(str(path), path, {"INFERENCE_PRECISION_HINT": _hint(precision), **_NO_INT8})


def _hint(precision: str) -> str:
    hint = PRECISION_HINTS[precision]
    if hint == "f16" and "FP16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        # asked for fp16, a processor that has bf16 alone takes that, which rounds eight times as coarsely
        return "f32"
    return hint


def _openvino_plain(path: Path, _precision: str) -> Predict:
    """With quantisation computed in float32."""
    import onnx

    content: str | bytes = str(path)
    if path.suffix == ".onnx":
        model = onnx.load_from_string(path.read_bytes())
        if {"QuantizeLinear"} & {node.op_type for node in model.graph.node}:
            # OpenVINO computes in float32 here anyway, but stumbles over scales in float16 behind a Transpose
            _widen(model, onnx.TensorProto.FLOAT16, rounded=False)
            content = model.SerializeToString()
    return _compiled(content, path, {"INFERENCE_PRECISION_HINT": "f32", **_NO_INT8})


def _compiled(content: str | bytes, path: Path, settings: dict[str, Any]) -> Predict:
    openvino = import_runtime("openvino", INSTALL_OPENVINO)
    core = openvino_core()
    try:
        model = core.read_model(content) if isinstance(content, str) else core.read_model(content, b"")
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise EngineError(f"{path}: OpenVINO {openvino.__version__} does not take the graph: {error}") from error

    def predict(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        class_map: NDArray[np.uint8] = compiled([frame])[0]
        return class_map

    return predict


_NODE_BY_NODE: dict[str, _Way] = {
    "ONNX Runtime node by node": _onnxruntime_plain,
    "OpenVINO in floating point": _openvino_plain,
}
_WAYS: dict[str, dict[str, _Way]] = {
    "onnxruntime": {"ONNX Runtime": _onnxruntime, "OpenVINO in floating point": _openvino_plain},
    "openvino": {"OpenVINO": _openvino, "OpenVINO in floating point": _openvino_plain},
    "tensorrt": _NODE_BY_NODE,
}
_ELSEWHERE: dict[str, dict[str, _Way]] = {
    "onnxruntime": _NODE_BY_NODE,
    "openvino": {
        "OpenVINO without int8 kernels": _openvino_without_int8,
        "OpenVINO in floating point": _openvino_plain,
    },
    "tensorrt": _NODE_BY_NODE,
}


def _widen(model: onnx.ModelProto, half: int, *, rounded: bool) -> None:
    """Turn a graph of half precision into a float32 one, with the weights and scales that it has.

    Args:
        model: The graph; it is changed.
        half: The type that becomes float32.
        rounded: Whether what was half is rounded to half behind every node.
    """
    import onnx

    graph, whole = model.graph, onnx.TensorProto.FLOAT
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    halves = {value.name for value in inferred if value.type.tensor_type.elem_type == half} if rounded else set()
    for tensor in graph.initializer:
        if tensor.data_type == half:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = whole
        for slot, name in enumerate(node.output):
            if name in halves:
                node.output[slot] = f"{name}_exact"
                nodes.append(onnx.helper.make_node("Cast", [f"{name}_exact"], [f"{name}_rounded"], to=half))
                nodes.append(onnx.helper.make_node("Cast", [f"{name}_rounded"], [name], to=whole))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
