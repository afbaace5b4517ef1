"""What a runtime made of an engine: the layers that it really executes, after its own optimisation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.runtime.engine import EngineInfo, read_engine, verify_files
from brd_edge.runtime.errors import EngineError, RuntimeMissingError

if TYPE_CHECKING:
    import onnx

__all__ = ["layers_of_inspection", "list_layers"]


def list_layers(directory: Path, *, threads: int | None = None) -> list[str] | None:
    """Return every layer that the runtime executes for a frame, in its order.

    Args:
        directory: The engine's directory; its checksums are verified first.
        threads: Threads of the runtime, which may decide about layers; None leaves the choice to it.

    Returns:
        One text a layer, without names: its kind, the types and shapes of its weights in brackets, and those of what
        it gives, such as `Convolution u8 jit_avx512_I8 (i8[16,3,3,3], f32[16]) -> u8[1,16,32,48]`; a shape that the
        runtime does not tell is `?`. None where the runtime cannot tell here: TensorRT without the engine's GPU.

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

    from brd_edge.runtime.runners.checks import import_runtime
    from brd_edge.runtime.runners.onnxruntime import INSTALL, provider_of

    onnxruntime = import_runtime("onnxruntime", INSTALL)
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
    weights = {tensor.name: _of_onnx(tensor.data_type, tensor.dims) for tensor in graph.initializer}
    # what lies in a layout of the runtime's own, between two convolutions, has no shape in ONNX's sense
    given = {value.name: _type_of(value) for value in (*graph.value_info, *graph.output)}
    return [
        _text(
            f"{node.domain or 'ai.onnx'}.{node.op_type}",
            (weights[name] for name in node.input if name in weights),
            (given.get(name, "?") for name in node.output if name),
        )
        for node in graph.node
    ]


def _type_of(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    return _of_onnx(tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim])


def _of_onnx(kind: int, sides: Iterable[int | str]) -> str:
    import onnx

    name = onnx.TensorProto.DataType.Name(kind).lower()
    return f"{name}[{','.join(map(str, sides))}]"


def _text(kind: str, weights: Iterable[str], given: Iterable[str]) -> str:
    return f"{kind} ({', '.join(weights)}) -> {', '.join(given)}"


def _list_openvino(directory: Path, info: EngineInfo, threads: int | None) -> list[str]:
    from brd_edge.runtime.runners.openvino import compile_model

    # in topological order; names carry the file's own numbering and are left out
    operations = compile_model(directory, info, threads).get_runtime_model().get_ordered_ops()
    found, given, fed = [], dict[str, str](), set()
    for node in operations:
        kind = {key: str(value.value) for key, value in node.get_rt_info().items()}
        name = node.get_friendly_name()
        precisions = kind.get("outputPrecisions", "?").split(",")
        shapes = [str(output.get_partial_shape()) for output in node.outputs()]
        given[name] = ", ".join(f"{each}{shape}" for each, shape in zip(precisions, shapes, strict=False))
        before = [value.get_node().get_friendly_name() for value in node.input_values()]
        # what depends on constants alone is computed once, when the engine is opened
        if kind.get("layerType") == "Input" or any(other in fed for other in before):
            fed.add(name)
            title = " ".join(kind.get(key, "?") for key in ("layerType", "runtimePrecision", "primitiveType"))
            found.append(_text(title, (given[other] for other in before if other not in fed), [given[name]]))
    return found


def _list_tensorrt(directory: Path, info: EngineInfo, threads: int | None) -> list[str] | None:
    from brd_edge.runtime.runners.tensorrt import open_tensorrt

    try:
        runner = open_tensorrt(directory, info, threads)
    except RuntimeMissingError:
        # only the GPU that it is for can load it
        return None
    with runner:
        return layers_of_inspection(runner.inspect())


def layers_of_inspection(text: str) -> list[str] | None:
    """Return the layers of what TensorRT's inspector says of an engine; see `list_layers`.

    Args:
        text: JSON, `{"Layers": [...]}`.

    Returns:
        None where the layers are named only, as of an engine that was not built with detailed profiling verbosity.

    Raises:
        EngineError: It is something else.
    """
    try:
        layers: list[Mapping[str, Any] | str] = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"TensorRT's inspector: expected JSON with a list Layers, got {text[:200]!r}") from error
    found = []
    for layer in layers:
        if isinstance(layer, str):
            return None
        # not the tactic: what the builder chooses of two that are as fast is chance
        kind = " ".join(str(layer[key]) for key in ("LayerType", "ParameterType", "Precision") if key in layer)
        weights = [f"{value['Type']}[{value['Count']}]" for key in ("Weights", "Bias") if (value := layer.get(key))]
        given = (
            f"{output.get('Format/Datatype', '?')}{output.get('Dimensions', '?')}"
            for output in layer.get("Outputs") or ()
        )
        found.append(_text(kind, weights, given))
    return found


_LISTINGS: dict[str, Callable[[Path, EngineInfo, int | None], list[str] | None]] = {
    "onnxruntime": _list_onnxruntime,
    "openvino": _list_openvino,
    "tensorrt": _list_tensorrt,
}
