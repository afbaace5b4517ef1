"""What a runtime made of an engine: the layers that it really executes, after its own optimisation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from brd_edge.runtime.engine import EngineInfo, read_engine, verify_files
from brd_edge.runtime.errors import EngineError

__all__ = ["list_layers"]


def list_layers(directory: Path, *, threads: int | None = None) -> list[str] | None:
    """Return the kind of every layer that the runtime executes for a frame, in its order.

    Args:
        directory: The engine's directory; its checksums are verified first.
        threads: Threads of the runtime, which may decide about layers; None leaves the choice to it.

    Returns:
        One text a layer, such as `Conv float32`, without names; None where the runtime cannot tell here.

    Raises:
        EngineError: The engine is not valid, or the runtime cannot load it.
        RuntimeMissingError: The runtime is not installed.
    """
    info = read_engine(directory)
    verify_files(directory, info)
    listing = _LISTINGS.get(info.runtime)
    return None if listing is None else listing(directory, info, threads)


def _list_onnxruntime(directory: Path, info: EngineInfo, threads: int | None) -> list[str]:
    import onnx
    import onnxruntime

    from brd_edge.runtime.runners.onnxruntime import provider_of

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    path = directory / info.entry
    provider = provider_of(info, onnxruntime)
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        options.optimized_model_filepath = str(optimised)
        try:
            onnxruntime.InferenceSession(str(path), sess_options=options, providers=[provider])
        except Exception as error:
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        graph = onnx.load(optimised, load_external_data=False).graph
    return [f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in graph.node]


def _list_openvino(directory: Path, info: EngineInfo, threads: int | None) -> list[str]:
    from brd_edge.runtime.runners.openvino import compile_model

    # in topological order; names carry the file's own numbering and are left out
    operations = compile_model(directory, info, threads).get_runtime_model().get_ordered_ops()
    found, fed = [], set()
    for node in operations:
        kind = {key: str(value.value) for key, value in node.get_rt_info().items()}
        name = node.get_friendly_name()
        before = [value.get_node().get_friendly_name() for value in node.input_values()]
        # what depends on constants alone is computed once, when the engine is opened
        if kind.get("layerType") == "Input" or any(other in fed for other in before):
            fed.add(name)
            found.append(" ".join(kind.get(key, "?") for key in ("layerType", "runtimePrecision", "primitiveType")))
    return found


_LISTINGS: dict[str, Callable[[Path, EngineInfo, int | None], list[str]]] = {
    "onnxruntime": _list_onnxruntime,
    "openvino": _list_openvino,
}
