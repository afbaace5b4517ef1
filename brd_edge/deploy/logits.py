"""Graphs that end at the logits of the decoder's stride; what upsamples them and finds classes is not in them.

`brd_edge.runtime.class_map` then computes the class map, and only where it must.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.runtime.engine import CoarseLogits
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.files import flush_path
from brd_edge.runtime.runners.checks import LOGITS_NAME, import_runtime
from brd_edge.runtime.runners.openvino import INSTALL, openvino_core

if TYPE_CHECKING:
    import onnx

__all__ = ["cut_at_logits"]

# from the operator's mode to whether the corners of both grids lie on each other
_COORDINATES = {"align_corners": True, "half_pixel": False, "pytorch_half_pixel": False}


def cut_at_logits(graph: Path, path: Path) -> CoarseLogits | None:
    """Write the part of a graph that ends before the last upsampling; metadata stays.

    Args:
        graph: A graph from frame to class map, in any precision: ONNX, or the `.xml` of OpenVINO's.
        path: The file to write, with the same ending.

    Returns:
        How the logits are to be upsampled; None, and nothing is written, where the graph does not end in bilinear
        upsampling and ArgMax.

    Raises:
        EngineError: The graph cannot be read.
        RuntimeMissingError: It is OpenVINO's, which is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return _cut_openvino(graph, path) if graph.suffix == ".xml" else _cut_onnx(graph, path)


def _cut_onnx(graph: Path, path: Path) -> CoarseLogits | None:
    import onnx

    from brd_edge.deploy.graphs import write_graph

    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph.read_bytes()), strict_mode=True)
    except Exception as error:
        raise EngineError(f"{graph}: cannot be read as an ONNX graph: {error}") from error
    producers = {name: node for node in model.graph.node for name in node.output}
    ends = [node for node in model.graph.node if node.op_type == "ArgMax"]
    resize = producers.get(ends[0].input[0]) if len(ends) == 1 else None
    if resize is None or resize.op_type != "Resize":
        return None
    form = _form_of(resize)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kind = kinds.get(resize.input[0])
    if form is None or kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        return None
    wanted = _ancestors(producers, resize.input[0])
    nodes = [node for node in model.graph.node if node.output[0] in wanted]
    for node in nodes:
        # an Identity that is named so would be dropped by OpenVINO, and its name with it
        for names in (node.input, node.output):
            for slot, name in enumerate(names):
                names[slot] = LOGITS_NAME if name == resize.input[0] else name
    shape = next(value for value in model.graph.value_info if value.name == resize.input[0]).type.tensor_type.shape
    sizes = [dim.dim_param or dim.dim_value for dim in shape.dim]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS_NAME, kind, sizes))
    write_graph(model, path, nodes=nodes)
    return form


def _form_of(resize: onnx.NodeProto) -> CoarseLogits | None:
    found = {item.name: item.s.decode() for item in resize.attribute if item.s}
    coordinates = found.get("coordinate_transformation_mode", "half_pixel")
    if found.get("mode") != "linear" or coordinates not in _COORDINATES:
        return None
    return CoarseLogits(align_corners=_COORDINATES[coordinates])


def _ancestors(producers: dict[str, onnx.NodeProto], tensor: str) -> set[str]:
    """Return the first outputs of the nodes that a tensor is computed from."""
    found: set[str] = set()
    waiting = [tensor]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.output[0] not in found:
            found.add(node.output[0])
            waiting += node.input
    return found


def _cut_openvino(graph: Path, path: Path) -> CoarseLogits | None:
    openvino = import_runtime("openvino", INSTALL)
    try:
        model = openvino_core().read_model(str(graph))
    except Exception as error:
        raise EngineError(f"{graph}: OpenVINO {openvino.__version__} cannot read it: {error}") from error
    ends = [operation for operation in model.get_ordered_ops() if operation.get_type_name() == "TopK"]
    resize = ends[0].input_value(0).get_node() if len(ends) == 1 else None
    if resize is None or resize.get_type_name() != "Interpolate":
        return None
    attributes: dict[str, Any] = resize.get_attributes()
    coordinates = str(attributes["coordinate_transformation_mode"])
    if str(attributes["mode"]) not in ("linear", "linear_onnx") or coordinates not in _COORDINATES:
        return None
    logits = resize.input_value(0)
    cut = openvino.Model([logits], model.get_parameters(), model.get_friendly_name())
    cut.outputs[0].get_tensor().set_names({LOGITS_NAME})
    openvino.save_model(cut, str(path), compress_to_fp16=False)
    for name in (path.with_suffix(".bin"), path):
        flush_path(name)
    return CoarseLogits(align_corners=_COORDINATES[coordinates])
