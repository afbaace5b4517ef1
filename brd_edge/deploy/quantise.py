"""INT8 graphs from an exported fp32 graph and the ranges of its tensors: one form for ONNX Runtime, one for TensorRT.

Only convolutions are computed in int8, and what lies between them where the runtime has kernels for it.
Normalisation, ArgMax and the resizing of the logits stay in floating point, and so do convolutions on
tensors that are pooled to one pixel (squeeze and excite): they cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brd_edge.deploy.calibration import Ranges
from brd_edge.deploy.graphs import Parts, parts_of, raise_opset, read_graph, tensor_shapes, write_graph
from brd_edge.deploy.groups import excluded_nodes
from brd_edge.deploy.half import halve
from brd_edge.deploy.qdq import Grid, QuantisedWeight, activation_grid, insert_pairs
from brd_edge.runtime.errors import EngineError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "NothingToQuantiseError",
    "quantise_model_for_cpu",
    "quantise_model_for_tensorrt",
    "quantise_onnxruntime",
    "quantise_tensorrt",
]

# QuantizeLinear and DequantizeLinear take float16 from this operator set on
_FP16_PAIRS_OPSET = 19
_FULL = 127
# two products of uint8 and int8 are added in int16 on x86 without VNNI: 2 * 255 * 64 is below 2 ** 15
_REDUCED = 64

_LOWEST_THAT_COUNTS = {"HardSwish": -3.0}


class NothingToQuantiseError(EngineError):
    """All that could be quantised is excluded."""


def quantise_onnxruntime(
    source: Path, path: Path, ranges: Ranges, *, exclude: Iterable[str] = (), reduce_range: bool = True
) -> tuple[str, ...]:
    """Write the int8 graph for ONNX Runtime on a CPU: uint8 asymmetric tensors, int8 symmetric weights per channel.

    Args:
        source: The exported fp32 graph.
        path: The file to write, atomically.
        ranges: What `brd_edge.deploy.calibration.calibrate` returned for the same graph.
        exclude: Names of nodes, or of groups of `layer_groups`, that stay in float32.
        reduce_range: Whether weights keep to -64 … 64, depthwise ones apart. Without, x86 processors that lack
            VNNI saturate and compute something else than was meant; ARM and newer x86 processors do not.

    Returns:
        The names of the convolutions that are computed in int8.

    Raises:
        EngineError: The graph is not the exporter's, a name in `exclude` is unknown, a range is missing, or nothing
            is left to quantise.
    """
    model = read_graph(source)
    names = quantise_model_for_cpu(model, source, ranges, exclude=exclude, reduce_range=reduce_range)
    write_graph(model, path)
    return names


def quantise_tensorrt(
    source: Path,
    path: Path,
    ranges: Ranges,
    *,
    exclude: Iterable[str] = (),
    rest: Literal["fp32", "fp16"] = "fp16",
) -> tuple[str, ...]:
    """Write the int8 graph for TensorRT: int8 symmetric tensors before convolutions, int8 weights per channel.

    The graph is for TensorRT alone: other runtimes may take it and compute something else (`check_artefact`
    says how it is checked without a GPU). With `rest` fp16 it is in operator set 19 or newer.

    Args:
        source: The exported fp32 graph.
        path: The file to write, atomically.
        ranges: What `brd_edge.deploy.calibration.calibrate` returned for the same graph.
        exclude: Names of nodes, or of groups of `layer_groups`, that stay in floating point.
        rest: Precision of everything that is not int8.

    Returns:
        The names of the convolutions that are computed in int8.

    Raises:
        EngineError: As `quantise_onnxruntime`; or a weight that is not quantised is beyond the range of float16.
    """
    model = read_graph(source)
    names = quantise_model_for_tensorrt(model, source, ranges, exclude=exclude, rest=rest)
    write_graph(model, path)
    return names


def quantise_model_for_cpu(
    model: onnx.ModelProto, source: Path, ranges: Ranges, *, exclude: Iterable[str], reduce_range: bool
) -> tuple[str, ...]:
    """Do what `quantise_onnxruntime` does, in place, to a graph that is read already."""
    parts = parts_of(model, source)
    plan = _plan(model, parts, exclude, source)
    # its output would have to be quantised too, and classes would tie
    plan.chosen = [node for node in plan.chosen if node.name not in _logit_nodes(model, parts)]
    names = _require_some(plan, source)
    tensors = _cpu_tensors(plan)
    grids: dict[str, Grid] = {}
    for tensor, alike in tensors.items():
        low, high = _range_of(ranges, alike, source)
        readers = {node.op_type for node in plan.consumers.get(tensor, [])}
        if len(readers) == 1:
            low = max(low, _LOWEST_THAT_COUNTS.get(next(iter(readers)), low))
        grids[tensor] = activation_grid(low, high, signed=False)
    weights = {
        node.name: QuantisedWeight(
            _REDUCED if reduce_range and not _is_depthwise(node, plan.shapes) else _FULL, bias=True, half=False
        )
        for node in plan.chosen
    }
    _remove_activations(model, plan)
    _replace_nodes(model, insert_pairs(model, grids, weights, None))
    return names


def quantise_model_for_tensorrt(
    model: onnx.ModelProto, source: Path, ranges: Ranges, *, exclude: Iterable[str], rest: Literal["fp32", "fp16"]
) -> tuple[str, ...]:
    """Do what `quantise_tensorrt` does, in place, to a graph that is read already."""
    import onnx

    if rest not in ("fp32", "fp16"):
        raise EngineError(f"{source}: rest: expected 'fp32' or 'fp16', got {rest!r}")
    half = rest == "fp16"
    parts = parts_of(model, source)
    plan = _plan(model, parts, exclude, source)
    names = _require_some(plan, source)
    grids = {
        node.input[0]: activation_grid(*_range_of(ranges, node.input[0], source), signed=True, half=half)
        for node in plan.chosen
    }
    weights = {name: QuantisedWeight(_FULL, bias=False, half=half) for name in names}
    _replace_nodes(model, insert_pairs(model, grids, weights, set(names)))
    if half:
        halve(model, source, onnx.TensorProto.FLOAT16)
        raise_opset(model, _FP16_PAIRS_OPSET)
    return names


@dataclass
class _Plan:
    """What is to be quantised, and how the graph hangs together."""

    chosen: list[onnx.NodeProto]
    candidates: list[onnx.NodeProto]
    shapes: dict[str, tuple[int, ...]]
    constants: set[str]
    consumers: dict[str, list[onnx.NodeProto]]
    removed: list[onnx.NodeProto] = field(default_factory=list)


def _plan(model: onnx.ModelProto, parts: Parts, exclude: Iterable[str], source: Path) -> _Plan:
    excluded = excluded_nodes(model, parts.body, exclude, source)
    shapes, constants = tensor_shapes(model), {tensor.name for tensor in model.graph.initializer}
    candidates = [node for node in parts.body if node.name not in excluded]
    chosen = [
        node
        for node in candidates
        if node.op_type == "Conv" and node.input[1] in constants and not _is_pooled(node.output[0], shapes)
    ]
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return _Plan(chosen, candidates, shapes, constants, consumers)


def _require_some(plan: _Plan, source: Path) -> tuple[str, ...]:
    if not plan.chosen:
        raise NothingToQuantiseError(
            f"{source}: nothing is left to quantise: exclude fewer groups, or build fp32 or fp16 instead"
        )
    return tuple(node.name for node in plan.chosen)


def _range_of(ranges: Ranges, tensor: str, source: Path) -> tuple[float, float]:
    if tensor not in ranges:
        raise EngineError(f"{source}: tensor {tensor!r} has no calibrated range: calibrate this graph, not another one")
    return ranges[tensor]


def _is_pooled(tensor: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return shapes.get(tensor, ())[2:] == (1, 1)


def _is_depthwise(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    outputs, inputs_of_group, *_ = shapes[node.input[1]]
    groups = {item.name: item.i for item in node.attribute}.get("group", 1)
    return groups == outputs and inputs_of_group == 1


def _logit_nodes(model: onnx.ModelProto, parts: Parts) -> set[str]:
    """The convolution that makes the logits, before they are resized."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers[parts.logits]
    while node.op_type == "Resize":
        node = producers[node.input[0]]
    return {node.name}


def _cpu_tensors(plan: _Plan) -> dict[str, str]:
    """Say which tensors are quantised, and by which tensor's range: their own, or that of what they are copied from.

    ONNX Runtime computes in int8 where every input and the output of a node is quantised, so the
    tensors that lie between convolutions are quantised too, where it has kernels for what is done to them.
    """
    chosen = {node.name for node in plan.chosen}
    tensors = {name: name for node in plan.chosen for name in (node.input[0], node.output[0])}
    computed = {node.output[0] for node in plan.chosen}
    for node in plan.candidates:
        if node.name in chosen:
            continue
        inputs = [name for name in node.input if name and name not in plan.constants]
        output = node.output[0]
        if _is_carried(node, inputs, tensors, plan):
            tensors |= {name: name for name in (*inputs, output) if name not in tensors}
            computed.add(output)
        elif _copies(node) and inputs[0] in tensors:
            tensors[output] = tensors[inputs[0]]
        elif inputs and inputs[0] in computed and _is_saturation(node, plan):
            del tensors[inputs[0]]
            tensors[output] = output
            computed.add(output)
            plan.removed.append(node)
    return tensors


def _is_carried(node: onnx.NodeProto, inputs: Sequence[str], tensors: Mapping[str, str], plan: _Plan) -> bool:
    if len(inputs) < 2 or not any(name in tensors for name in inputs):
        return False
    if node.op_type == "Concat":
        return True
    # a gate of one pixel is quantised for the sake of the tensor that it multiplies
    return node.op_type in ("Add", "Mul") and all(name in tensors or _is_pooled(name, plan.shapes) for name in inputs)


def _copies(node: onnx.NodeProto) -> bool:
    """Whether a node only picks values; ONNX Runtime's uint8 form of linear resizing truncates and is left alone."""
    modes = {item.name: item.s.decode() for item in node.attribute if item.name == "mode"}
    return node.op_type == "MaxPool" or (node.op_type == "Resize" and modes.get("mode", "nearest") == "nearest")


def _is_saturation(node: onnx.NodeProto, plan: _Plan) -> bool:
    """Whether a uint8 tensor that begins at 0 does what the node does: Relu, alone behind its input."""
    return node.op_type == "Relu" and len(plan.consumers[node.input[0]]) == 1


def _remove_activations(model: onnx.ModelProto, plan: _Plan) -> None:
    sources = {node.input[0]: node.output[0] for node in plan.removed}
    names = {node.name for node in plan.removed}
    for node in model.graph.node:
        for slot, output in enumerate(node.output):
            if output in sources and node.name not in names:
                node.output[slot] = sources[output]
    _replace_nodes(model, [node for node in model.graph.node if node.name not in names])


def _replace_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)
