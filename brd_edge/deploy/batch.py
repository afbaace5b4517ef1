"""Graphs that take several frames at once: the number of frames, fixed to 1 by the export, is left open again.

Nothing in a model depends on how many frames there are but the sizes that the exporter wrote into the graph. They are
replaced here, last of all, so that lowering, calibration and every check work on one frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.files import flush_path
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.openvino import INSTALL, openvino_core

if TYPE_CHECKING:
    import onnx

__all__ = ["BATCH", "set_batch"]

BATCH = "batch"
"""Name of the dimension that is left open."""

# any number that is no side of a tensor by accident
_TRIED = 7
_ADVICE = "leave batch_max at 1 for this model"


def set_batch(graph: Path, path: Path, *, frames: int | None = None, frames_max: int = 64) -> None:
    """Write a graph that takes another number of frames than one.

    Args:
        graph: A graph for one frame, in any precision: ONNX, or the `.xml` of OpenVINO's.
        path: The file to write, with the same ending.
        frames: How many frames the graph takes, from 1; None leaves it open.
        frames_max: How many there are at most where it is open; ONNX has no place for it.

    Raises:
        EngineError: The graph cannot be read, or a part of it is for one frame only.
        RuntimeMissingError: It is OpenVINO's, which is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if graph.suffix == ".xml":
        _set_openvino(graph, path, frames, frames_max)
    else:
        _set_onnx(graph, path, frames)


def _set_onnx(graph: Path, path: Path, frames: int | None) -> None:
    import onnx

    from brd_edge.deploy.graphs import write_graph

    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph.read_bytes()), strict_mode=True)
    except Exception as error:
        raise EngineError(f"{graph}: cannot be read as an ONNX graph: {error}") from error
    opened = _Opened(model)
    for node in list(model.graph.node):
        if node.op_type == "Resize":
            opened.resize(node)
        elif node.op_type == "Reshape":
            opened.reshape(node)
    nodes = opened.nodes()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _require_open(model, graph)
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        first.ClearField("dim_value")
        if frames is None:
            first.dim_param = BATCH
        else:
            first.dim_value = frames
    write_graph(model, path)


class _Opened:
    """A graph whose nodes are made to take any number of frames, one by one."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        graph = model.graph
        self.graph = graph
        self.constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.before: dict[str, list[onnx.NodeProto]] = {}

    def nodes(self) -> list[onnx.NodeProto]:
        """Return all nodes in topological order."""
        return [each for node in self.graph.node for each in (*self.before.get(node.output[0], ()), node)]

    def resize(self, node: onnx.NodeProto) -> None:
        """Let a Resize keep the number of frames that it gets."""
        sizes = self.constants.get(node.input[3]) if len(node.input) > 3 else None
        if sizes is None:
            return
        old, new = self.shapes[node.input[0]][1:], [int(side) for side in sizes[1:]]
        if all(after % before == 0 for before, after in zip(old, new, strict=True)):
            # whole factors mean the same, and every runtime takes them
            factors = [1.0, *(after / before for before, after in zip(old, new, strict=True))]
            node.input[2] = self._constant(f"{node.output[0]}_factors", np.array(factors, np.float32))
            del node.input[3:]
            return
        rest = self._constant(f"{node.output[0]}_rest", np.array(new, np.int64))
        node.input[3] = self._counted(node, rest)

    def reshape(self, node: onnx.NodeProto) -> None:
        """Let a Reshape keep the number of frames that it gets."""
        wanted = self.constants.get(node.input[1])
        if wanted is None or not wanted.size or wanted[0] != 1 or self.shapes[node.input[0]][:1] != [1]:
            return
        literal = [item for item in node.attribute if item.name == "allowzero" and item.i]
        if literal and 0 in wanted:
            # a tensor without elements; it is refused below as what is for one frame
            return
        for item in literal:
            # with it, as torch exports attention, the 0 below would be a size
            node.attribute.remove(item)
        # 0: as it comes
        node.input[1] = self._constant(f"{node.output[0]}_shape", np.array([0, *wanted[1:]], np.int64))

    def _counted(self, node: onnx.NodeProto, rest: str) -> str:
        """Return the sizes of a tensor whose first is the number of frames of a node's input."""
        import onnx

        count, sizes = f"{node.output[0]}_frames", f"{node.output[0]}_sizes"
        self.before[node.output[0]] = [
            onnx.helper.make_node("Shape", [node.input[0]], [count], name=count, start=0, end=1),
            onnx.helper.make_node("Concat", [count, rest], [sizes], name=sizes, axis=0),
        ]
        return sizes

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name


def _require_open(model: onnx.ModelProto, graph: Path) -> None:
    """Refuse a graph in which something is still for one frame: of some frames it must make as many class maps."""
    import onnx

    tried = onnx.ModelProto()
    tried.CopyFrom(model)
    del tried.graph.value_info[:]
    tried.graph.input[0].type.tensor_type.shape.dim[0].dim_value = _TRIED
    tried.graph.output[0].type.tensor_type.ClearField("shape")
    try:
        tried = onnx.shape_inference.infer_shapes(tried, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise EngineError(f"{graph}: a part of it is for one frame only: {error}; {_ADVICE}") from error
    found = [dim.dim_value for dim in tried.graph.output[0].type.tensor_type.shape.dim]
    if found[:1] != [_TRIED]:
        raise EngineError(
            f"{graph}: expected {_TRIED} results of {_TRIED} frames, got the shape {tuple(found)}: a part of the graph "
            f"is for one frame only; {_ADVICE}"
        )


def _set_openvino(graph: Path, path: Path, frames: int | None, frames_max: int) -> None:
    openvino = import_runtime("openvino", INSTALL)
    try:
        model = openvino_core().read_model(str(graph))
    except Exception as error:
        raise EngineError(f"{graph}: OpenVINO {openvino.__version__} cannot read it: {error}") from error
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate":
            _open_interpolate(openvino, node)
        elif node.get_type_name() == "Reshape":
            _open_reshape(openvino, node)
    _, *sides = model.inputs[0].get_partial_shape()
    first = openvino.Dimension(1, frames_max) if frames is None else openvino.Dimension(frames)
    try:
        model.reshape({model.inputs[0]: openvino.PartialShape([first, *sides])})
    except Exception as error:
        raise EngineError(f"{graph}: a part of it is for one frame only: {error}; {_ADVICE}") from error
    found = model.outputs[0].get_partial_shape()
    if found[0] != first:
        raise EngineError(
            f"{graph}: expected a class map of {first} frames, got one of shape {found}: a part of the graph is for "
            f"one frame only; {_ADVICE}"
        )
    openvino.save_model(model, str(path), compress_to_fp16=False)
    for name in (path.with_suffix(".bin"), path):
        flush_path(name)


def _open_interpolate(openvino: Any, node: Any) -> None:
    """Let the sizes of an upsampling speak of height and width alone."""
    attributes = node.get_attributes()
    sizes = node.input_value(1).get_node()
    if attributes["shape_calculation_mode"] != "sizes" or sizes.get_type_name() != "Constant":
        return
    if len(sizes.get_data()) != 4 or node.get_input_size() > 2:
        return
    kept = ("mode", "coordinate_transformation_mode", "nearest_mode", "antialias", "cube_coeff")
    opened = openvino.opset11.interpolate(
        node.input_value(0),
        np.array(sizes.get_data()[2:], np.int64),
        axes=np.array([2, 3], np.int64),
        shape_calculation_mode="sizes",
        **{name: attributes[name] for name in kept},
    )
    _replace(node, opened)


def _open_reshape(openvino: Any, node: Any) -> None:
    """Let a Reshape keep the number of frames that it gets."""
    shape = node.input_value(1).get_node()
    if shape.get_type_name() != "Constant" or node.input_value(0).get_node().get_type_name() == "Constant":
        return
    wanted = [int(side) for side in shape.get_data()]
    source = node.input_value(0).get_partial_shape()
    if wanted and wanted[0] == 1 and source[0] == openvino.Dimension(1) and 0 not in wanted:
        sizes = np.array([0, *wanted[1:]], np.int64)
        _replace(node, openvino.opset8.reshape(node.input_value(0), sizes, special_zero=True))


def _replace(old: Any, new: Any) -> None:
    new.set_friendly_name(old.get_friendly_name())
    new.output(0).get_tensor().set_names(old.output(0).get_tensor().get_names())
    old.output(0).replace(new.output(0))
