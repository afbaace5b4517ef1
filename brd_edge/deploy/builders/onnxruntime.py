"""Builds ONNX Runtime engines: the engine is the ONNX graph itself."""

from __future__ import annotations

import shutil
from pathlib import Path

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError
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
        EngineError: The graph cannot be read, or keeps weights in other files.
    """
    del contract
    import_runtime("onnxruntime", INSTALL)
    from onnx import load
    from onnx.external_data_helper import uses_external_data

    try:
        model = load(onnx, load_external_data=False)
    except Exception as error:
        raise EngineError(f"{onnx}: not an ONNX graph ({error}); export the student again") from error
    outside = [weight.name for weight in model.graph.initializer if uses_external_data(weight)]
    if outside:
        raise EngineError(f"{onnx}: expected all weights inside, but {outside[0]!r} lies in another file; export again")
    shutil.copyfile(onnx, directory / "model.onnx")
    return ("model.onnx",)
