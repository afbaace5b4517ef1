"""`latency.npz`: every time that was measured, so that each figure of `benchmark.json` can be computed again.

A NumPy archive without pickled objects, of float64 arrays in the order taken. For each measured engine's name:

- `NAME/frame_to_class_map` and `NAME/engine_alone`, milliseconds a call (N);
- `NAME/throughput`, frames a second in each window of time (N), where saturated throughput was measured;
- `NAME/cost/a`, `NAME/cost/b` and `NAME/cost/control`, milliseconds a call (rounds, 2 * turns) of the undistilled
  student's engine, the distilled one's, and the undistilled one's again: two calls a turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.evaluate.benchmark.archives import AGAIN, read_archive
from brd_edge.runtime.errors import DataError, RunError
from brd_edge.runtime.files import atomic_path

__all__ = ["FILE_NAME", "read_timings", "write_timings"]

FILE_NAME = "latency.npz"

_DIMENSIONS = {"frame_to_class_map": 1, "engine_alone": 1, "throughput": 1, "cost/a": 2, "cost/b": 2, "cost/control": 2}


def write_timings(path: Path, timings: Mapping[str, NDArray[np.float64]]) -> None:
    """Write the times atomically.

    Args:
        path: The file, which ends in `.npz`.
        timings: float64 arrays by name; see the module. None where nothing was measured.

    Raises:
        DataError: An array has another name, dtype or number of dimensions, or holds what is no time.
    """
    problem = _problem(timings)
    if problem is not None:
        raise DataError(f"{path}: {problem}")
    arrays: dict[str, Any] = dict(timings)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_timings(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read and check the times of a run.

    Raises:
        RunError: The file is missing or damaged.

    Example:
        >>> read_timings(Path("runs/quickstart/latency.npz"))["onnxruntime-fp32-x86-cpu/cost/a"].shape
        (24, 36)
    """
    arrays = read_archive(path)
    problem = _problem(arrays)
    if problem is not None:
        raise RunError(f"{path}: {problem}; {AGAIN}")
    return arrays


def _problem(timings: Mapping[str, NDArray[Any]]) -> str | None:
    for name, array in timings.items():
        dimensions = _DIMENSIONS.get(name.partition("/")[2])
        if dimensions is None:
            return f"{name}: expected an engine and one of {', '.join(_DIMENSIONS)}, such as openvino/cost/a"
        if array.dtype != np.float64 or array.ndim != dimensions or not array.size:
            return f"{name}: expected float64 of {dimensions} dimensions, got {array.dtype} {array.shape}"
        if not np.isfinite(array).all() or array.min() < 0:
            return f"{name}: expected finite numbers from 0"
    return None
