"""One runner a runtime; each imports its runtime only when an engine is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from brd_edge.runtime.engine import EngineInfo, Runner
from brd_edge.runtime.runners.onnxruntime import open_onnxruntime
from brd_edge.runtime.runners.openvino import open_openvino
from brd_edge.runtime.runners.tensorrt import open_tensorrt

__all__ = ["RUNNERS"]

RUNNERS: dict[str, Callable[[Path, EngineInfo, int | None], Runner]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "tensorrt": open_tensorrt,
}
"""From a runtime's name to what opens the engine in (directory, sidecar, threads)."""
