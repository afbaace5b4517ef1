"""What the modules that rewrite an exported graph have in common: reading it, knowing its parts, and writing it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.files import write_bytes_atomic

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Parts",
    "opset_of",
    "parts_of",
    "raise_opset",
    "read_graph",
    "tensor_shapes",
    "unused_name",
    "write_graph",
]

_ONNX_DOMAINS = ("", "ai.onnx")
# what the exporter makes of normalisation: see `brd_edge.deploy.frame_model`
_NORMALISING = ("Cast", "Transpose", "Mul", "Add")


@dataclass(frozen=True)
class Parts:
    """The three parts of an exported graph.

    Attributes:
        input: Nodes that turn the uint8 frame into a normalised image.
        body: The model's own nodes, in the order of the graph.
        output: Nodes that turn logits into the uint8 class map.
        image: Name of the normalised image, float32 (1, 3, H, W).
        logits: Name of the logits, float32 (1, classes, H, W).
    """

    input: tuple[onnx.NodeProto, ...]
    body: tuple[onnx.NodeProto, ...]
    output: tuple[onnx.NodeProto, ...]
    image: str
    logits: str


def read_graph(source: Path) -> onnx.ModelProto:
    """Read an exported fp32 graph and infer the shapes of its tensors.

    Raises:
        EngineError: It is not there, is no ONNX graph, or is no float32 graph from `image` to `class_map`.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are not needed else

    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(source.read_bytes()), strict_mode=True)
    except OSError as error:
        raise EngineError(f"{source}: cannot be read ({error}); export the student first") from error
    except (DecodeError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(f"{source}: expected an ONNX graph of the export stage, got another file: {error}") from error
    nodes = {node.op_type for node in model.graph.node}
    if nodes & {"QuantizeLinear", "DequantizeLinear"} or any(
        tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for tensor in model.graph.initializer
    ):
        raise EngineError(f"{source}: expected the exported fp32 graph, got one of a lower precision")
    names = [node.name for node in model.graph.node]
    if len(set(names)) != len(names) or "" in names:
        raise EngineError(f"{source}: expected a graph whose nodes have a name each; export the student again")
    return model


def opset_of(source: Path) -> int:
    """Return the version of ONNX's own operator set that a graph is written in.

    Raises:
        EngineError: It is not there, or is no ONNX graph.
    """
    import onnx

    try:
        model = onnx.load(source, load_external_data=False)
        return next(int(item.version) for item in model.opset_import if item.domain in _ONNX_DOMAINS)
    # protobuf's own errors, and a file without any operator set
    except Exception as error:
        raise EngineError(f"{source}: expected an ONNX graph, got what cannot be read as one ({error!r})") from error


def raise_opset(model: onnx.ModelProto, version: int) -> None:
    """Let a graph say an operator set from `version` on; what the exporter writes means the same in all of them."""
    for item in model.opset_import:
        if item.domain in _ONNX_DOMAINS:
            item.version = max(item.version, version)


def parts_of(model: onnx.ModelProto, source: Path) -> Parts:
    """Divide an exported graph into normalisation, body and argmax.

    Args:
        model: The graph.
        source: Its file, for the message.

    Raises:
        EngineError: The graph does not begin with the cast of the frame, or does not end in an ArgMax and a cast.
    """
    graph = model.graph
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    head: list[onnx.NodeProto] = []
    tensor = graph.input[0].name
    for operator in _NORMALISING:
        found = consumers.get(tensor, [])
        others = {name for node in found for name in node.input} - {tensor}
        if len(found) == 1 and found[0].op_type == operator and others <= constants:
            head.append(found[0])
            tensor = found[0].output[0]
    tail = [node for node in graph.node if node.op_type == "ArgMax"]
    if not head or head[0].op_type != "Cast" or len(tail) != 1:
        raise EngineError(
            f"{source}: expected a graph that begins by casting the frame to float and ends in one ArgMax, "
            f"got {[node.op_type for node in graph.node[:4]]} … {[node.op_type for node in graph.node[-2:]]}; "
            "export the student with this version"
        )
    logits = tail[0].input[0]
    tail += [node for node in consumers.get(tail[0].output[0], []) if node.op_type == "Cast"]
    outer = {node.name for node in (*head, *tail)}
    body = tuple(node for node in graph.node if node.name not in outer)
    return Parts(tuple(head), body, tuple(tail), tensor, logits)


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor whose shape is known, initializers included."""
    graph = model.graph
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def unused_name(wanted: str, taken: Collection[str]) -> str:
    """Return `wanted`, or that with a number behind it, so that it is not in `taken`."""
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def write_graph(model: onnx.ModelProto, path: Path, *, nodes: Iterable[onnx.NodeProto] | None = None) -> None:
    """Check a rewritten graph and write it atomically; its metadata stays.

    Initializers that no node uses any more are dropped, and shapes and types are inferred anew.

    Args:
        model: The graph; it is changed.
        path: The file to write.
        nodes: The nodes that replace the graph's, in topological order; None keeps them.

    Raises:
        EngineError: The graph is not valid.
    """
    import onnx

    graph = model.graph
    if nodes is not None:
        kept = list(nodes)
        del graph.node[:]
        graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    del graph.value_info[:]
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(f"{path}: the rewritten graph is invalid: {error}") from error
    write_bytes_atomic(path, model.SerializeToString(deterministic=True))
