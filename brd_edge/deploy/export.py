"""ONNX export: one graph from the uint8 frame to the uint8 class map.

Normalisation and argmax are part of the graph, so every runtime and device computes them alike;
the input contract, the classes and the palette travel in the file's metadata.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.models.features import feature_table
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.files import write_bytes_atomic

if TYPE_CHECKING:
    import onnx
    from torch import nn

__all__ = ["INPUT_NAME", "METADATA_PREFIX", "OPSET", "OUTPUT_NAME", "export_onnx"]

INPUT_NAME = "image"
OUTPUT_NAME = "class_map"
OPSET = 20
METADATA_PREFIX = "brd_edge."

# The exporter merges equal weights up to this many elements
_MERGED_ELEMENTS = 1024


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    contract: InputContract,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    metadata: Mapping[str, str],
    opset: int = OPSET,
) -> None:
    """Write a model as ONNX: input `image` uint8 (1, H, W, 3), output `class_map` uint8 (1, H, W).

    The file holds the weights, no path of this machine and no time: the same weights and the same
    package versions give the same bytes. Its metadata has the keys `brd_edge.contract` (JSON),
    `brd_edge.contract_hash`, `brd_edge.classes` (JSON list), `brd_edge.palette` (JSON list of RGB
    triples), and the keys of `metadata`.

    Args:
        model: A model of `build_model` or `load_model`, in any mode and on any device; it is left
            as it was.
        path: The file to write, atomically.
        contract: The size and normalisation that the graph is made for.
        classes: The name of each class, in the order of the model's outputs.
        palette: An RGB triple per class, 0 to 255.
        metadata: Further keys and values to store; not beginning with `brd_edge.`.
        opset: ONNX operator set, 18 or newer.

    Raises:
        ModelError: The model does not take the contract's size.
        EngineError: The classes, palette or weights are wrong, or the model cannot be converted.
    """
    _check(model, path, contract, classes, palette, metadata)
    proto = _convert(model, path, contract, opset)
    _strip(proto)
    _unshare(proto)
    properties = {
        f"{METADATA_PREFIX}contract": json.dumps(contract.to_json(), sort_keys=True),
        f"{METADATA_PREFIX}contract_hash": contract.hash,
        f"{METADATA_PREFIX}classes": json.dumps(list(classes)),
        f"{METADATA_PREFIX}palette": json.dumps([list(colour) for colour in palette]),
        **metadata,
    }
    for key, value in sorted(properties.items()):
        proto.metadata_props.add(key=key, value=value)
    _validate(proto, path, contract)
    write_bytes_atomic(path, proto.SerializeToString(deterministic=True))


def _check(
    model: nn.Module,
    path: Path,
    contract: InputContract,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    metadata: Mapping[str, str],
) -> None:
    import torch

    channels = feature_table(model, contract.height, contract.width)[-1].channels
    if channels != len(classes) or len(palette) != len(classes):
        raise EngineError(
            f"{path}: the model has {channels} outputs; expected as many class names and colours, "
            f"got {len(classes)} and {len(palette)}"
        )
    for name, colour in zip(classes, palette, strict=True):
        if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
            raise EngineError(f"{path}: the colour of class {name!r} must be 3 numbers from 0 to 255, got {colour}")
    taken = sorted(key for key in metadata if key.startswith(METADATA_PREFIX))
    if taken:
        raise EngineError(f"{path}: metadata keys must not begin with {METADATA_PREFIX!r}, got {taken}")
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise EngineError(f"{path}: weight {name!r} is not finite: the training diverged, export an earlier model")


def _convert(model: nn.Module, path: Path, contract: InputContract, opset: int) -> onnx.ModelProto:
    import torch

    from brd_edge.deploy.frame_model import make_frame_model

    frame_model = make_frame_model(model, contract.mean, contract.std)
    frame = torch.zeros((1, contract.height, contract.width, 3), dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad():
            # traced here: given a module, the exporter would try further ways and bury the cause of a failure
            traced = torch.export.export(frame_model, (frame,))
            program = torch.onnx.export(
                traced,
                (),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
        raise EngineError(
            f"{path}: {type(model).__name__} cannot be converted to ONNX: {type(cause).__name__}: {lines[0]}"
        ) from error
    if program is None:
        raise EngineError(f"{path}: the exporter returned no program")
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    # what the exporter deprecates inside itself is not the user's to mend; problems come as exceptions
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
        # a failing trace prints its whole graph beside raising
        with redirect_stderr(io.StringIO()):
            yield


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what describes the exporting machine: stack traces, module names and documentation."""
    graph = proto.graph
    proto.doc_string = graph.doc_string = ""
    del proto.metadata_props[:]
    del graph.metadata_props[:]
    for items in (graph.node, graph.initializer, graph.value_info, graph.input, graph.output, proto.functions):
        for item in items:
            item.doc_string = ""
            del item.metadata_props[:]


def _unshare(proto: onnx.ModelProto) -> None:
    """Give every use of a small weight its own copy.

    The exporter merges small weights that happen to be equal, such as the zero biases of an
    untrained model. Undone, the file's structure and size depend on the model alone, not on what
    it has learnt.
    """
    import onnx

    small = {
        item.name: item
        for item in proto.graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT and math.prod(item.dims) <= _MERGED_ELEMENTS
    }
    uses: Counter[str] = Counter()
    for node in proto.graph.node:
        for slot, name in enumerate(node.input):
            if name not in small:
                continue
            if uses[name]:
                copied = proto.graph.initializer.add()
                copied.CopyFrom(small[name])
                copied.name = node.input[slot] = f"{name}_use{uses[name]}"
            uses[name] += 1


def _validate(proto: onnx.ModelProto, path: Path, contract: InputContract) -> None:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(f"{path}: the exporter made an invalid graph: {error}") from error
    expected = [
        (INPUT_NAME, [1, contract.height, contract.width, 3]),
        (OUTPUT_NAME, [1, contract.height, contract.width]),
    ]
    found = [
        (value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in (*proto.graph.input, *proto.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    ]
    if found != expected:
        raise EngineError(f"{path}: expected the uint8 input and output {expected}, the exporter made {found}")
