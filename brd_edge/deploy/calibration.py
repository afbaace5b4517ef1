"""Calibration: the range that each tensor of an fp32 graph takes on frames like those of the device.

The ranges are collected once and serve every quantised graph that is made of the same student.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from brd_edge.deploy.graphs import parts_of, read_graph
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.onnxruntime import INSTALL

if TYPE_CHECKING:
    import onnx

__all__ = ["METHODS", "Method", "Ranges", "calibrate", "calibration_frames"]

Method = Literal["minmax", "percentile", "entropy"]

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")
"""How a range is found: everything that was seen; all but the rarest 0.001 %; least loss of information."""

Ranges = Mapping[str, tuple[float, float]]
"""From a tensor's name to the lowest and highest value that its quantised form has to hold."""

_PERCENTILE = 99.999


def calibration_frames(frames: Iterable[NDArray[np.uint8]], height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames one by one, checked, in the shape that a graph takes.

    Args:
        frames: Frames uint8 (H, W, 3), or batches of them, uint8 (N, H, W, 3); RGB, of the contract's size.
        height: Rows that a frame must have.
        width: Columns that a frame must have.

    Yields:
        uint8 (1, H, W, 3).

    Raises:
        EngineError: A frame has another shape or dtype, or there is none.
    """
    count = 0
    for item in frames:
        if item.dtype != np.uint8 or item.ndim not in (3, 4) or item.shape[-3:] != (height, width, 3):
            raise EngineError(
                f"calibration frame {count}: expected uint8 ({height}, {width}, 3) or a batch of such frames, "
                f"got {item.dtype} {item.shape}; resize it as the input contract says"
            )
        for frame in item if item.ndim == 4 else (item,):
            yield np.ascontiguousarray(frame[None])
            count += 1
    if count == 0:
        raise EngineError("calibration frames: there are none; give some that look like those of the device")


def calibrate(source: Path, frames: Iterable[NDArray[np.uint8]], *, method: Method = "percentile") -> Ranges:
    """Run frames through an exported fp32 graph and return the range of each tensor of its body.

    Frame by frame, so that memory holds the tensors of one frame only.

    Args:
        source: The exported fp32 graph.
        frames: What `calibration_frames` takes; some dozens that look like those of the device.
        method: One of `METHODS`.

    Returns:
        A range for the normalised image and for each tensor behind it.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
        EngineError: The graph is not the exporter's, a frame is wrong, a tensor is not finite, or there is no
            such method.

    Example:
        >>> ranges = calibrate(Path("export/student.onnx"), frames)
        >>> ranges["relu"]
        (0.0, 5.73)
    """
    if method not in METHODS:
        raise EngineError(f"calibration: there is no method {method!r}; there are {', '.join(METHODS)}")
    import_runtime("onnxruntime", INSTALL)
    model = read_graph(source)
    parts = parts_of(model, source)
    _, height, width, _ = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    with tempfile.TemporaryDirectory() as scratch:
        calibrator = _calibrator(model, Path(scratch), method)
        # the calibrators print what they are doing
        with redirect_stdout(io.StringIO()):
            for frame in calibration_frames(frames, height, width):
                calibrator.collect_data(_OneFrame({model.graph.input[0].name: frame}))
            found = calibrator.compute_data().data
    wanted = [parts.image, *(name for node in parts.body for name in node.output)]
    ranges = {}
    for name in wanted:
        # what is not float, such as the sizes of a Resize, has no range
        if name in found:
            low, high = (float(np.asarray(value).reshape(-1)[0]) for value in found[name].range_value)
            if not np.isfinite([low, high]).all():
                raise EngineError(f"{source}: tensor {name!r} is not finite on the calibration frames ({low}, {high})")
            ranges[name] = (low, high)
    return ranges


class _OneFrame:
    """A data reader, as the calibrators want one: an input, then None."""

    def __init__(self, inputs: Mapping[str, NDArray[np.uint8]]) -> None:
        self._inputs: Mapping[str, NDArray[np.uint8]] | None = inputs

    def get_next(self) -> Mapping[str, NDArray[np.uint8]] | None:
        inputs, self._inputs = self._inputs, None
        return inputs


def _calibrator(model: onnx.ModelProto, scratch: Path, method: Method) -> Any:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    # it writes files of its own beside the graph
    graph = scratch / "graph.onnx"
    graph.write_bytes(model.SerializeToString())
    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    options = {"symmetric": False, "percentile": _PERCENTILE} if method == "percentile" else {"symmetric": False}
    return create_calibrator(
        graph,
        augmented_model_path=str(scratch / "augmented.onnx"),
        calibrate_method=kinds[method],
        extra_options=options,
    )
