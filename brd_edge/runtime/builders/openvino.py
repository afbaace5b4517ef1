"""Builds OpenVINO engines: the intermediate representation, `model.xml` and `model.bin`."""

from __future__ import annotations

from pathlib import Path

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.openvino import CONTRACT_HASH_PATH, INSTALL, openvino_core

__all__ = ["build_openvino"]


def build_openvino(onnx: Path, directory: Path, contract: InputContract, batch_max: int = 1) -> tuple[str, ...]:
    """Write `model.xml` and `model.bin` to `directory`, weights in the precision of the graph.

    Args:
        onnx: The graph.
        directory: Where to write.
        contract: The frames that the graph takes; checked when the engine is opened. Where the graph does not
            name it, as what NNCF quantised does not, its hash is written into the engine.
        batch_max: How many frames it takes at once; checked when the engine is run.

    Returns:
        The names of the files, the entry first.

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
        EngineError: OpenVINO does not take the graph; the message holds its own words.
    """
    del batch_max
    openvino = import_runtime("openvino", INSTALL)
    try:
        model = openvino_core().read_model(str(onnx))
        if not model.has_rt_info(CONTRACT_HASH_PATH):
            model.set_rt_info(contract.hash, CONTRACT_HASH_PATH)
        # unasked, save_model rounds weights to fp16
        openvino.save_model(model, str(directory / "model.xml"), compress_to_fp16=False)
    except Exception as error:
        raise EngineError(f"{onnx}: OpenVINO {openvino.__version__} does not take the graph: {error}") from error
    return ("model.xml", "model.bin")
