"""Graphs in an engine's precision, made from the exported fp32 graph: each runtime gets what its own kernels read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brd_edge.deploy.calibration import Ranges
from brd_edge.deploy.half import to_bf16, to_fp16
from brd_edge.deploy.quantise import quantise_onnxruntime, quantise_tensorrt
from brd_edge.deploy.quantise_openvino import quantise_openvino
from brd_edge.runtime.errors import EngineError

__all__ = ["is_exact", "is_quantised", "lower_graph"]


def is_quantised(precision: str) -> bool:
    """Whether a precision is a form of int8."""
    return precision.startswith("int8")


def is_exact(runtime: str, precision: str) -> bool:
    """Whether an engine is built from the exported fp32 graph itself.

    OpenVINO is told at run time what to compute in; TensorRT takes that from the graph.
    """
    return precision == "fp32" or (runtime == "openvino" and not is_quantised(precision))


def lower_graph(
    source: Path,
    directory: Path,
    *,
    runtime: str,
    precision: str,
    frames: Sequence[NDArray[np.uint8]] = (),
    ranges: Callable[[], Ranges] | None = None,
    exclude: Iterable[str] = (),
    reduce_range: bool = True,
    like: Path | None = None,
) -> Path:
    """Write the graph of an engine into a directory, atomically; the exported graph stays as it is.

    Args:
        source: The exported fp32 graph.
        directory: Where to write; made where it is not there.
        runtime: `"onnxruntime"`, `"openvino"` or `"tensorrt"`.
        precision: One of the runtime's precisions, for example `"int8-fp16"`.
        frames: What OpenVINO's int8 is calibrated on: uint8 (H, W, 3), RGB, of the contract's size.
        ranges: Gives `brd_edge.deploy.calibration.calibrate`'s ranges of `source`, for the other runtimes' int8.
        exclude: Names of nodes, or of groups of layers, that int8 leaves in floating point.
        reduce_range: Whether int8 weights keep to 7 bits, as x86 processors without VNNI need them.
        like: For OpenVINO's int8: another graph that this function made, whose ranges of activations are taken; see
            `quantise_openvino`. The other runtimes' int8 takes the ranges that it is given.

    Returns:
        The graph: `source` itself where `is_exact` says so, else an `.onnx` file, or for OpenVINO an `.xml`
        with its `.bin` beside it.

    Raises:
        EngineError: The graph cannot be had in that precision.
        RuntimeMissingError: What makes it is not installed.

    Example:
        >>> lower_graph(Path("export/student.onnx"), Path("graphs/tensorrt-fp16"), runtime="tensorrt", precision="fp16")
        PosixPath('graphs/tensorrt-fp16/student.onnx')
    """
    if is_exact(runtime, precision):
        return source
    path = directory / source.name
    directory.mkdir(parents=True, exist_ok=True)
    if runtime == "openvino":
        path = path.with_suffix(".xml")
        quantise_openvino(source, path, frames, exclude=exclude, reduce_range=reduce_range, like=like)
    elif is_quantised(precision) and ranges is not None and runtime == "onnxruntime":
        quantise_onnxruntime(source, path, ranges(), exclude=exclude, reduce_range=reduce_range)
    elif is_quantised(precision) and ranges is not None and runtime == "tensorrt":
        quantise_tensorrt(source, path, ranges(), exclude=exclude, rest="fp16" if precision == "int8-fp16" else "fp32")
    elif precision == "fp16" and runtime in ("onnxruntime", "tensorrt"):
        to_fp16(source, path)
    elif (runtime, precision) == ("tensorrt", "bf16"):
        to_bf16(source, path)
    else:
        raise EngineError(f"{source}: there is no way to {precision} for {runtime}")
    return path
