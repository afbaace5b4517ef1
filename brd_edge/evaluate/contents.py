"""What an engine's files hold, before a runtime makes anything of them: the size of the weights, and the quantisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brd_edge.deploy.quantisers import activation_quantisers, quantiser_form
from brd_edge.runtime.engine import EngineInfo, read_engine, verify_files
from brd_edge.runtime.errors import EngineError

if TYPE_CHECKING:
    import onnx

__all__ = ["EngineContents", "read_contents"]

# int8 numbers reach from -128 to 127, and a range that is called symmetric is rounded to that
_SYMMETRIC = 1.02


@dataclass(frozen=True)
class EngineContents:
    """What an engine's files hold.

    Attributes:
        weight_bytes: Bytes of all constants, each counted for every operation that reads it: a file may hold less,
            where equal ones are stored once.
        quantisers: One text for each operation that puts a tensor on a grid of 8-bit numbers or takes it from there:
            what it is, whether the grid is signed and has a zero point, and whether it is per channel.
    """

    weight_bytes: int
    quantisers: tuple[str, ...]


def read_contents(directory: Path) -> EngineContents | None:
    """Read what an engine's files hold; None for a runtime whose files say nothing, such as TensorRT.

    Args:
        directory: The engine's directory; its checksums are verified first.

    Raises:
        EngineError: The engine is not valid, or its model cannot be read.
        RuntimeMissingError: What reads it is not installed.
    """
    info = read_engine(directory)
    verify_files(directory, info)
    reader = _READERS.get(info.runtime)
    return None if reader is None else reader(directory, info)


def _read_onnx(directory: Path, info: EngineInfo) -> EngineContents:
    import onnx

    path = directory / info.entry
    try:
        graph = onnx.load(path).graph
    except Exception as error:
        # protobuf's own errors have no common kind
        raise EngineError(f"{path}: expected an ONNX graph, it cannot be read: {error}") from error
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    quantisers = [
        _quantiser_of_onnx(node, tensors)
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    read = [tensors[name] for node in graph.node for name in node.input if name in tensors]
    return EngineContents(sum(_bytes_of(tensor) for tensor in read), tuple(quantisers))


def _bytes_of(tensor: onnx.TensorProto) -> int:
    import onnx

    item = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(item * math.prod(tensor.dims))


def _quantiser_of_onnx(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> str:
    import onnx

    _, scale, *zero_point = node.input
    shape = list(tensors[scale].dims) if scale in tensors else "?"
    grid = "int32"
    if zero_point and zero_point[0] in tensors:
        zeros = onnx.numpy_helper.to_array(tensors[zero_point[0]])
        grid = f"{zeros.dtype}{' with a zero point' if zeros.any() else ''}"
    return f"{node.op_type} {grid} {shape}"


def _read_openvino(directory: Path, info: EngineInfo) -> EngineContents:
    from brd_edge.runtime.runners.openvino import openvino_core

    path = directory / info.entry
    core = openvino_core()
    try:
        model: Any = core.read_model(str(path), str(path.with_suffix(".bin")))
    except Exception as error:
        raise EngineError(f"{path}: OpenVINO cannot read it: {error}") from error
    constants = [operation for operation in model.get_ops() if operation.get_type_name() == "Constant"]
    quantisers = tuple(_quantiser_of_openvino(operation) for operation in activation_quantisers(model).values())
    read = (constant.get_byte_size() * len(constant.output(0).get_target_inputs()) for constant in constants)
    return EngineContents(sum(map(int, read)), quantisers)


def _quantiser_of_openvino(quantiser: Any) -> str:
    levels, (shape, *_) = quantiser_form(quantiser)
    low, high = (quantiser.input_value(slot).get_node().get_data().astype(np.float64) for slot in (1, 2))
    grid = "unsigned"
    if (low < 0).any():
        alike = np.maximum(-low, high) <= _SYMMETRIC * np.minimum(-low, high)
        grid = "signed" if alike.all() else "signed with a zero point"
    return f"FakeQuantize {levels} levels {grid} {list(shape)}"


_READERS: dict[str, Callable[[Path, EngineInfo], EngineContents]] = {
    "onnxruntime": _read_onnx,
    "openvino": _read_openvino,
}
