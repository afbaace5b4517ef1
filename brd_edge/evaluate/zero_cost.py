"""The structural half of the zero-cost proof: two exported graphs, compared node by node.

Distillation may change what a student's weights are, never what is computed with them. Weights
may differ in value; everything that an engine is built from may not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.runtime.errors import EngineError

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphComparison", "compare_graphs", "count_graph_parameters"]

_MAX_DIFFERENCES = 20

# Operators whose constant inputs say what is done, even where they are floats: scales, bounds, fill values
_STRUCTURAL_INPUTS = ("Clip", "Dropout", "Pad", "Resize", "Upsample")


@dataclass(frozen=True)
class GraphComparison:
    """What came of comparing a distilled student's graph with a plainly trained one's.

    Attributes:
        equal: Nothing differs but the values of weights, and names.
        nodes: Number of operators in the distilled student's graph, constants left out.
        differences: One line each, "distilled against plain"; at most 20, then how many more.
    """

    equal: bool
    nodes: int
    differences: tuple[str, ...]


@dataclass(frozen=True)
class _Value:
    """A node's input, without its name: where it comes from, its type, and its content if structural."""

    origin: str
    type: str
    producer: int = -1
    content: str = ""


@dataclass(frozen=True)
class _Node:
    op: str
    attributes: Mapping[str, str]
    inputs: tuple[_Value, ...]
    outputs: tuple[str, ...]

    @property
    def signature(self) -> str:
        """Everything but the wiring."""
        inputs = [(value.origin, value.type, value.content) for value in self.inputs]
        return repr((self.op, sorted(self.attributes.items()), inputs, self.outputs))


@dataclass(frozen=True)
class _Graph:
    opsets: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[_Value, ...]
    nodes: tuple[_Node, ...]


def compare_graphs(distilled: Path, plain: Path) -> GraphComparison:
    """Compare two ONNX files node by node, in topological order.

    Compared are the operator sets, the graphs' inputs and outputs, and of each node the operator,
    its domain and attributes, the type and shape of its inputs, weights and outputs, which node
    feeds which input, and the values of constants that are structure: int64 and boolean ones
    (shapes, axes, indices), and the float ones of Resize, Clip and Pad. Not compared are the
    values of weights, and names. Should a converter have folded a graph otherwise because of what
    its weights are, that is a difference and is reported as one.

    Args:
        distilled: The distilled student's ONNX file.
        plain: The ONNX file of the same student, trained without distillation or not at all.

    Returns:
        The verdict and the differences.

    Raises:
        EngineError: A file is missing or is not a valid ONNX graph.

    Example:
        >>> compare_graphs(Path("student.onnx"), Path("plain.onnx")).equal
        True
    """
    mine, theirs = _read(distilled), _read(plain)
    found = list(_differences(mine, theirs))
    shown = found[:_MAX_DIFFERENCES]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more differences")
    return GraphComparison(equal=not found, nodes=len(mine.nodes), differences=tuple(shown))


def count_graph_parameters(path: Path) -> int:
    """Count the numbers that an ONNX file stores as weights, quantised ones included.

    The exporter folds batch normalisation into convolutions, so this is less than the parameters
    of the PyTorch model. Int64 and boolean constants are structure and are not counted.

    Raises:
        EngineError: The file is missing or is not a valid ONNX graph.
    """
    import onnx

    graph = _load(path).graph
    tensors = [*graph.initializer, *(item for item in map(_constant_of, graph.node) if item is not None)]
    structure = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    return sum(math.prod(item.dims) for item in tensors if item.data_type not in structure)


def _differences(mine: _Graph, theirs: _Graph) -> Iterator[str]:
    for domain in sorted({*mine.opsets, *theirs.opsets}):
        versions = mine.opsets.get(domain), theirs.opsets.get(domain)
        if versions[0] != versions[1]:
            yield f"opset of domain {domain or 'ai.onnx'}: {versions[0]} against {versions[1]}"
    if mine.inputs != theirs.inputs:
        yield f"graph inputs: {', '.join(mine.inputs)} against {', '.join(theirs.inputs)}"
    if len(mine.nodes) != len(theirs.nodes):
        yield f"number of nodes: {len(mine.nodes)} against {len(theirs.nodes)}"
    pairs = list(_align(mine, theirs))
    partner = {left: right for left, right in pairs if left is not None and right is not None}
    for left, right in pairs:
        if right is None and left is not None:
            yield f"node {left} {mine.nodes[left].op}: only in the distilled graph"
        elif left is None and right is not None:
            yield f"node {right} {theirs.nodes[right].op}: only in the plain graph"
        elif left is not None and right is not None:
            where = f"node {left} {mine.nodes[left].op}"
            for text in _node_differences(mine, theirs, left, right, partner):
                yield f"{where}: {text}"
    if len(mine.outputs) != len(theirs.outputs):
        yield f"graph outputs: {len(mine.outputs)} against {len(theirs.outputs)}"
    for slot, values in enumerate(zip(mine.outputs, theirs.outputs, strict=False)):
        for text in _value_differences(*values, mine, theirs, partner):
            yield f"graph output {slot}: {text}"


def _align(mine: _Graph, theirs: _Graph) -> Iterator[tuple[int | None, int | None]]:
    """Pair the nodes of two graphs in order; a node with no counterpart is paired with None."""
    left, right = ([node.signature for node in graph.nodes] for graph in (mine, theirs))
    for _, i, i_end, j, j_end in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        # in a stretch that differs, nodes of one operator in the same order are taken for each other
        ops_i = [node.op for node in mine.nodes[i:i_end]]
        ops_j = [node.op for node in theirs.nodes[j:j_end]]
        for tag, a, a_end, b, b_end in SequenceMatcher(None, ops_i, ops_j, autojunk=False).get_opcodes():
            if tag == "equal":
                yield from ((i + a + k, j + b + k) for k in range(a_end - a))
                continue
            yield from ((k, None) for k in range(i + a, i + a_end))
            yield from ((None, k) for k in range(j + b, j + b_end))


def _node_differences(mine: _Graph, theirs: _Graph, left: int, right: int, partner: Mapping[int, int]) -> Iterator[str]:
    a, b = mine.nodes[left], theirs.nodes[right]
    for name in sorted({*a.attributes, *b.attributes}):
        values = a.attributes.get(name, "unset"), b.attributes.get(name, "unset")
        if values[0] != values[1]:
            yield f"{name} {_short(values[0])} against {_short(values[1])}"
    if len(a.inputs) != len(b.inputs):
        yield f"{len(a.inputs)} inputs against {len(b.inputs)}"
    for slot, values_in in enumerate(zip(a.inputs, b.inputs, strict=False)):
        for text in _value_differences(*values_in, mine, theirs, partner):
            yield f"input {slot} {text}"
    if a.outputs != b.outputs:
        yield f"output {', '.join(a.outputs)} against {', '.join(b.outputs)}"


def _value_differences(a: _Value, b: _Value, mine: _Graph, theirs: _Graph, partner: Mapping[int, int]) -> Iterator[str]:
    if a.type != b.type:
        yield f"is {a.type} against {b.type}"
    if a.content != b.content:
        yield f"is {_short(a.content)} against {_short(b.content)}"
    same_producer = a.producer == b.producer == -1 or partner.get(a.producer, -1) == b.producer
    if a.origin != b.origin or not same_producer:
        yield f"comes from {_origin(a, mine)} against {_origin(b, theirs)}"


def _origin(value: _Value, graph: _Graph) -> str:
    if value.producer < 0:
        return value.origin
    return f"node {value.producer} {graph.nodes[value.producer].op} ({value.origin})"


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}…"


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    if not path.is_file():
        raise EngineError(f"{path}: no such file; expected an ONNX graph")
    try:
        # by name: the checker's own reader says what is wrong with a file that is not ONNX at all
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise EngineError(f"{path}: expected a valid ONNX graph: {error}") from error
    return onnx.load(path)


def _read(path: Path) -> _Graph:
    import onnx
    import onnx.inliner

    proto = _load(path)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise EngineError(f"{path}: the shapes of the graph do not fit together: {error}") from error
    return _read_graph(proto.graph, {item.domain: item.version for item in proto.opset_import}, {})


def _read_graph(graph: onnx.GraphProto, opsets: Mapping[str, int], outer: Mapping[str, _Value]) -> _Graph:
    types = {item.name: _type_of(item) for item in (*graph.input, *graph.value_info, *graph.output)}
    tensors = {item.name: item for item in graph.initializer}
    values = dict(outer)
    inputs = [item.name for item in graph.input if item.name not in tensors]
    values.update({name: _Value(f"graph input {slot}", types[name]) for slot, name in enumerate(inputs)})
    nodes: list[_Node] = []
    for node in graph.node:
        constant = _constant_of(node)
        if constant is not None:
            tensors[node.output[0]] = constant
            continue
        structural = node.op_type in _STRUCTURAL_INPUTS
        taken = tuple(
            _tensor_value(tensors[name], structural) if name in tensors else values.get(name, _Value("nothing", "none"))
            for name in node.input
        )
        attributes = {item.name: _attribute_text(item, values, tensors) for item in node.attribute}
        made = tuple(types.get(name, "unknown") if name else "none" for name in node.output)
        for slot, name in enumerate(node.output):
            values[name] = _Value(f"output {slot}", made[slot], producer=len(nodes))
        op = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        nodes.append(_Node(op, attributes, taken, made))
    values.update(_weights(tensors))
    outputs = tuple(values[item.name] for item in graph.output)
    return _Graph(opsets, tuple(types[name] for name in inputs), outputs, tuple(nodes))


def _weights(tensors: Mapping[str, onnx.TensorProto]) -> dict[str, _Value]:
    return {name: _tensor_value(item, structural=False) for name, item in tensors.items()}


def _tensor_value(tensor: onnx.TensorProto, structural: bool) -> _Value:
    import onnx

    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    type_text = f"{name}{list(tensor.dims)}"
    if structural or tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL):
        return _Value("constant", type_text, content=str(onnx.numpy_helper.to_array(tensor).tolist()))
    return _Value("weight", type_text)


def _constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node holds, as the initialiser that it could be."""
    import numpy as np
    import onnx

    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    value = onnx.helper.get_attribute_value(node.attribute[0])
    return value if isinstance(value, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(value))


def _attribute_text(
    attribute: onnx.AttributeProto, values: Mapping[str, _Value], tensors: Mapping[str, onnx.TensorProto]
) -> str:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.GraphProto):
        return repr(_read_graph(value, {}, {**values, **_weights(tensors)}))
    if isinstance(value, onnx.TensorProto):
        return repr(_tensor_value(value, structural=True))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(list(value)) if attribute.type >= onnx.AttributeProto.FLOATS else str(value)


def _type_of(item: onnx.ValueInfoProto) -> str:
    import onnx

    tensor = item.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{name}{[dim.dim_param or dim.dim_value for dim in tensor.shape.dim]}"
