"""INT8 models for OpenVINO: NNCF's post-training quantisation of the model that OpenVINO reads from the fp32 graph."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.deploy.calibration import calibration_frames
from brd_edge.deploy.graphs import parts_of, read_graph
from brd_edge.deploy.groups import excluded_nodes
from brd_edge.deploy.quantise import NothingToQuantiseError
from brd_edge.deploy.quantisers import RANGES, activation_quantisers, quantiser_form
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.files import flush_path
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.openvino import INSTALL, openvino_core

__all__ = ["INSTALL_NNCF", "quantise_openvino"]

INSTALL_NNCF = 'pip install "brd-edge[quantise]"'
"""How to install what this module needs."""


def quantise_openvino(
    source: Path,
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    exclude: Iterable[str] = (),
    reduce_range: bool = True,
    like: Path | None = None,
) -> tuple[str, ...]:
    """Write the int8 model for OpenVINO, `model.xml` and beside it `model.bin`.

    NNCF calibrates by itself, on the same frames, and decides what lies between convolutions. Activations are
    asymmetric where they are negative too, weights symmetric per channel.

    Args:
        source: The exported fp32 graph.
        path: The file to write, ending in `.xml`.
        frames: What `brd_edge.deploy.calibration.calibration_frames` takes.
        exclude: Names of nodes, or of groups of `layer_groups`, that stay in floating point.
        reduce_range: Whether weights keep to 7 bits. Without, x86 processors that lack VNNI saturate and compute
            something else than was meant.
        like: The int8 model of another student of the same architecture, whose ranges of activations are taken. It
            is for a model that is only compared with: with ranges of its own a tensor that happens not to be
            negative is unsigned, and another kernel computes it. Weights keep their own ranges. A tensor that is
            not quantised alike in both keeps its own range too, and shows as a difference.

    Returns:
        The names of the two files, the model first.

    Raises:
        RuntimeMissingError: NNCF or OpenVINO is not installed.
        EngineError: The graph is not the exporter's, a frame is wrong, a name in `exclude` is unknown, or NNCF
            cannot quantise the graph.
    """
    if path.suffix != ".xml":
        raise EngineError(f"{path}: expected a name that ends in .xml")
    openvino = import_runtime("openvino", INSTALL)
    model = read_graph(source)
    parts = parts_of(model, source)
    outer = {node.name for node in (*parts.input, *parts.output)}
    kept = outer | excluded_nodes(model, parts.body, exclude, source)
    nothing = NothingToQuantiseError(
        f"{source}: nothing is left to quantise: exclude fewer groups, or build fp32 instead"
    )
    if all(node.name in kept for node in parts.body if node.op_type == "Conv"):
        raise nothing
    _, height, width, _ = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    images = list(calibration_frames(frames, height, width))
    try:
        with _quiet():
            nncf = import_runtime("nncf", INSTALL_NNCF)
            found = openvino_core().read_model(str(source))
            quantised = _quantise(nncf, found, images, kept, reduce_range)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{source}: NNCF cannot quantise the graph: {type(error).__name__}: {error}") from error
    if not any(operation.get_type_name() == "FakeQuantize" for operation in quantised.get_ops()):
        raise nothing
    if like is not None:
        _take_ranges(quantised, openvino_core().read_model(str(like)))
    _save(openvino, quantised, path)
    return path.name, path.with_suffix(".bin").name


def _quantise(nncf: Any, found: Any, images: list[NDArray[np.uint8]], kept: set[str], reduce_range: bool) -> Any:
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    # one node of ONNX can be several here, such as node_Conv_1 and node_Conv_1/WithoutBiases
    names = [name for operation in found.get_ops() if (name := operation.get_friendly_name()).split("/")[0] in kept]
    constants = {
        operation.get_friendly_name() for operation in found.get_ops() if operation.get_type_name() == "Constant"
    }
    return nncf.quantize(
        found,
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=[name for name in names if name not in constants], validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if reduce_range else OverflowFix.DISABLE
        ),
    )


def _take_ranges(model: Any, other: Any) -> None:
    """Give the activations of a model the ranges that they have in another, where both quantise them in one way."""
    from openvino import opset13

    theirs = activation_quantisers(other)
    for name, mine in activation_quantisers(model).items():
        if name not in theirs or quantiser_form(theirs[name]) != quantiser_form(mine):
            continue
        for slot in RANGES:
            taken = opset13.constant(theirs[name].input_value(slot).get_node().get_data())
            # the name is written to the file, whose size is compared
            taken.set_friendly_name(mine.input_value(slot).get_node().get_friendly_name())
            mine.input(slot).replace_source_output(taken.output(0))


def _save(openvino: Any, model: Any, path: Path) -> None:
    """Write both files beside their places, then rename them: the weights first, since the model names them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".quantised-", dir=path.parent) as scratch:
        # unasked, save_model rounds weights to fp16
        openvino.save_model(model, str(Path(scratch) / path.name), compress_to_fp16=False)
        for name in (path.with_suffix(".bin").name, path.name):
            flush_path(Path(scratch) / name)
            (Path(scratch) / name).replace(path.parent / name)
        flush_path(path.parent)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF from reporting its use to Google Analytics, drawing bars, and looking for a CUDA compiler aloud."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
