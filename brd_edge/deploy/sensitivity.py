"""Which groups of layers lose the most in int8, so that those can be kept in floating point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from brd_edge.deploy.calibration import Ranges, calibration_frames
from brd_edge.deploy.graphs import parts_of, read_graph
from brd_edge.deploy.groups import group_nodes
from brd_edge.deploy.quantise import NothingToQuantiseError, quantise_model_for_cpu, quantise_model_for_tensorrt
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.onnxruntime import INSTALL

if TYPE_CHECKING:
    import onnx

__all__ = ["GroupLoss", "sensitivity"]


@dataclass(frozen=True)
class GroupLoss:
    """What the logits lose when one group alone is quantised.

    Attributes:
        group: Its name, as in `brd_edge.deploy.groups.layer_groups`.
        logits_error: Root mean square of the logits' error over that of the logits; 0 is no loss.
        disagreement: Share of the pixels whose class changed.
    """

    group: str
    logits_error: float
    disagreement: float


def sensitivity(
    source: Path,
    frames: Iterable[NDArray[np.uint8]],
    ranges: Ranges,
    *,
    runtime: Literal["onnxruntime", "tensorrt"] = "onnxruntime",
    reduce_range: bool = True,
) -> list[GroupLoss]:
    """Quantise each group of layers alone and compare the logits with those of the fp32 graph.

    The graphs are executed node by node in floating point: what is found is the loss of the numbers' precision, not
    of a runtime's kernels.

    Args:
        source: The exported fp32 graph.
        frames: What `brd_edge.deploy.calibration.calibration_frames` takes; a few are enough.
        ranges: What `brd_edge.deploy.calibration.calibrate` returned for the same graph.
        runtime: Whose form of quantisation; OpenVINO's is nearest to that of ONNX Runtime.
        reduce_range: As for `brd_edge.deploy.quantise.quantise_onnxruntime`.

    Returns:
        The groups, the one that loses most first; those that have nothing to quantise are left out.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
        EngineError: The graph is not the exporter's, a range is missing, or a frame is wrong.

    Example:
        >>> worst = sensitivity(source, frames, ranges)[0]
        >>> quantise_onnxruntime(source, path, ranges, exclude=[worst.group])
    """
    model = read_graph(source)
    parts = parts_of(model, source)
    _, height, width, _ = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    images = list(calibration_frames(frames, height, width))
    groups = group_nodes(model, parts.body)
    convolutions = {node.name for node in parts.body if node.op_type == "Conv"}
    expected = _logits(model, parts.logits, images)
    losses = []
    for group, nodes in groups.items():
        if not convolutions & set(nodes):
            continue
        others = [name for name in groups if name != group]
        quantised = read_graph(source)
        try:
            if runtime == "tensorrt":
                quantise_model_for_tensorrt(quantised, source, ranges, exclude=others, rest="fp32")
            else:
                quantise_model_for_cpu(quantised, source, ranges, exclude=others, reduce_range=reduce_range)
        except NothingToQuantiseError:
            continue
        losses.append(_loss(group, expected, _logits(quantised, parts.logits, images)))
    return sorted(losses, key=lambda loss: -loss.logits_error)


def _loss(group: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> GroupLoss:
    error = np.sqrt(np.mean(np.square(found - expected), dtype=np.float64))
    size = np.sqrt(np.mean(np.square(expected), dtype=np.float64))
    changed = np.mean(found.argmax(1) != expected.argmax(1))
    return GroupLoss(group, float(error / size), float(changed))


def _logits(model: onnx.ModelProto, logits: str, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Run a graph up to its logits, node by node: float32 (N, classes, H, W)."""
    import onnx

    ort = import_runtime("onnxruntime", INSTALL)
    shortened = onnx.ModelProto()
    shortened.CopyFrom(model)
    shortened.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))
    del shortened.graph.value_info[:]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        shortened.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, {model.graph.input[0].name: image})[0] for image in images])
