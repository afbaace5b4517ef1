"""Half-precision graphs for runtimes that take the precision from the graph, as TensorRT does.

Normalisation stays in float32, because 8-bit pixels times a scale lose bits in half; everything
behind it is half, up to the logits that ArgMax compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.deploy.graphs import parts_of, raise_opset, read_graph, unused_name, write_graph
from brd_edge.runtime.errors import EngineError

if TYPE_CHECKING:
    import onnx

__all__ = ["halve", "to_bf16", "to_fp16"]

# Operators take bfloat16 from this operator set on (Conv, HardSwish, AveragePool, …)
_BF16_OPSET = 22

# Inputs that are float32 in every precision: regions and scales
_ALWAYS_FLOAT = {"Resize": (1, 2)}

# TensorRT takes these in float32 and float16 only
_NOT_IN_BF16 = ("HardSigmoid", "HardSwish")

_LARGEST_FP16 = 65504.0


def to_fp16(source: Path, path: Path) -> None:
    """Write an exported graph with its body in float16; input, output and metadata stay as they are.

    Args:
        source: The exported fp32 graph.
        path: The file to write, atomically.

    Raises:
        EngineError: The graph is not the exporter's, or a weight is beyond the range of float16; the message
            names its node.

    Example:
        >>> to_fp16(Path("export/student.onnx"), Path("export/student-fp16.onnx"))
    """
    import onnx

    model = read_graph(source)
    halve(model, source, onnx.TensorProto.FLOAT16)
    write_graph(model, path)


def to_bf16(source: Path, path: Path) -> None:
    """Write an exported graph with its body in bfloat16, at operator set 22.

    Bfloat16 has the range of float32 and 8 bits of precision, three fewer than float16.

    Args:
        source: The exported fp32 graph.
        path: The file to write, atomically.

    Raises:
        EngineError: The graph is not the exporter's.
    """
    import onnx

    model = read_graph(source)
    halve(model, source, onnx.TensorProto.BFLOAT16)
    raise_opset(model, _BF16_OPSET)
    write_graph(model, path)


def halve(model: onnx.ModelProto, source: Path, kind: int) -> None:
    """Rewrite the body of a graph to float16 or bfloat16, in place.

    Scales of quantised tensors become half too, since their type decides what the runtime computes in.

    Args:
        model: A graph from uint8 frame to class map whose body is float32.
        source: Its file, for the message.
        kind: `onnx.TensorProto.FLOAT16` or `onnx.TensorProto.BFLOAT16`.

    Raises:
        EngineError: A weight is beyond the range of float16.
    """
    import onnx

    graph = model.graph
    parts = parts_of(model, source)
    floats = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    image = unused_name(f"{parts.image}_half", taken)
    cast = onnx.helper.make_node("Cast", [parts.image], [image], name="node_to_half", to=kind)
    halved: dict[str, str] = {}
    for node in parts.body:
        for slot, name in enumerate(node.input):
            if slot in _ALWAYS_FLOAT.get(node.op_type, ()):
                continue
            if name == parts.image:
                node.input[slot] = image
            elif name in floats:
                if name not in halved:
                    halved[name] = unused_name(f"{name}_half", taken)
                    graph.initializer.append(_half_tensor(floats[name], halved[name], kind, f"{source}: {node.name}"))
                node.input[slot] = halved[name]
        _halve_attributes(node, kind, f"{source}: {node.name}")
    refused = _NOT_IN_BF16 if kind == onnx.TensorProto.BFLOAT16 else ()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _in_float(node, kind, taken) if node.op_type in refused else [node]
        if node.name == parts.input[-1].name:
            nodes.append(cast)
    del graph.node[:]
    graph.node.extend(nodes)


def _in_float(node: onnx.NodeProto, kind: int, taken: set[str]) -> list[onnx.NodeProto]:
    """Put casts around a node of one input; runtimes fuse the three into one kernel."""
    import onnx

    source, target = node.input[0], node.output[0]
    before, behind = unused_name(f"{source}_{node.name}_float", taken), unused_name(f"{target}_float", taken)
    taken |= {before, behind}
    node.input[0], node.output[0] = before, behind
    return [
        onnx.helper.make_node("Cast", [source], [before], name=f"{node.name}_to_float", to=onnx.TensorProto.FLOAT),
        node,
        onnx.helper.make_node("Cast", [behind], [target], name=f"{node.name}_to_half", to=kind),
    ]


def _half_tensor(tensor: onnx.TensorProto, name: str, kind: int, where: str) -> onnx.TensorProto:
    import onnx

    values: NDArray[np.float32] = onnx.numpy_helper.to_array(tensor)
    if kind == onnx.TensorProto.FLOAT16:
        largest = float(np.abs(values).max(initial=0))
        if largest > _LARGEST_FP16:
            raise EngineError(
                f"{where}: weight {tensor.name!r} holds {largest:.6g}, float16 ends at {_LARGEST_FP16:g}: "
                "use bf16 or fp32 for this model"
            )
        return onnx.numpy_helper.from_array(values.astype(np.float16), name)
    return onnx.numpy_helper.from_array(values.astype(_bfloat16()), name)


def _bfloat16() -> Any:
    import onnx

    # numpy has no bfloat16 of its own: ONNX brings one
    return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)


def _halve_attributes(node: onnx.NodeProto, kind: int, where: str) -> None:
    """Constants and casts inside the body say their type in an attribute."""
    import onnx

    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t, attribute.t.name, kind, where))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
            attribute.i = kind
