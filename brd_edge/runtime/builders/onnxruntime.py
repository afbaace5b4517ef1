"""Builds ONNX Runtime engines: the engine is the ONNX graph itself."""

from __future__ import annotations

import shutil
from pathlib import Path

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.onnxruntime import INSTALL

__all__ = ["build_onnxruntime"]


def build_onnxruntime(onnx: Path, directory: Path, contract: InputContract, batch_max: int = 1) -> tuple[str, ...]:
    """Write `model.onnx` to `directory`.

    Args:
        onnx: The graph, with its weights inside.
        directory: Where to write.
        contract: The frames that the graph takes; checked when the engine is opened.
        batch_max: How many frames it takes at once; checked when the engine is run.

    Returns:
        The names of the files, the entry first.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
        EngineError: ONNX Runtime does not take the graph, or it keeps weights in other files.
    """
    del contract, batch_max
    ort = import_runtime("onnxruntime", INSTALL)
    target = directory / "model.onnx"
    shutil.copyfile(onnx, target)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        # from its new place, where a graph that keeps weights in other files does not find them
        ort.InferenceSession(str(target), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{onnx}: ONNX Runtime {ort.__version__} does not take the graph: {error}") from error
    return (target.name,)
