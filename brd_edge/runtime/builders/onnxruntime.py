"""Builds ONNX Runtime engines: the engine is the ONNX graph itself."""

from __future__ import annotations

import shutil
from pathlib import Path

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.onnxruntime import INSTALL

__all__ = ["build_onnxruntime"]


def build_onnxruntime(onnx: Path, directory: Path, contract: InputContract) -> tuple[str, ...]:
    """Write `model.onnx` to `directory`.

    Args:
        onnx: The graph, with its weights inside.
        directory: Where to write.
        contract: The frames that the graph takes; checked when the engine is opened.

    Returns:
        The names of the files, the entry first.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    del contract
    import_runtime("onnxruntime", INSTALL)
    # nothing but the graph is copied, so one that keeps weights in other files does not open when it is checked
    shutil.copyfile(onnx, directory / "model.onnx")
    return ("model.onnx",)
