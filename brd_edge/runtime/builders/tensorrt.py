"""Builds TensorRT engines: TensorRT-RTX ahead of time for many GPUs and without one, TensorRT on the device itself.

`build_tensorrt_here` has not been run: it needs the device's GPU, and none was at hand when this was written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.files import write_bytes_atomic
from brd_edge.runtime.runners.checks import Port, check_interface, import_runtime
from brd_edge.runtime.runners.tensorrt import INSTALL, collecting_logger, require_gpu, sides
from brd_edge.runtime.targets import RTX_COMPUTE_CAPABILITIES

if TYPE_CHECKING:
    import tensorrt

__all__ = [
    "build_tensorrt",
    "build_tensorrt_here",
    "builder_config",
    "require_exact",
    "set_timing_cache",
    "timing_cache_path",
]

Made = TypeVar("Made")

# releases write it as zero_point, zero-point, zeroPoint and zero point
_ZERO_POINT = re.compile(r"zero.?point", re.IGNORECASE)


def build_tensorrt(
    onnx: Path,
    directory: Path,
    contract: InputContract,
    batch_max: int = 1,
    *,
    capabilities: Sequence[int] = RTX_COMPUTE_CAPABILITIES,
) -> tuple[str, ...]:
    """Write `model.engine` to `directory`: one strongly typed engine for several GPUs.

    Precision is the graph's own. The engine cannot be opened here without a driver, so what is
    checked is every answer of the builder, and the inputs and outputs of the network.

    Args:
        onnx: The graph, with its weights inside.
        directory: Where to write.
        contract: The frames that the graph takes.
        batch_max: How many frames at once, at most.
        capabilities: The GPUs: 10 x major + minor compute capability.

    Returns:
        The names of the files, the entry first.

    Raises:
        RuntimeMissingError: `tensorrt_rtx` is not installed.
        EngineError: TensorRT does not take the graph or a setting; the message names the nodes.
    """
    trt = import_runtime("tensorrt_rtx", INSTALL["tensorrt_rtx"])
    logger, messages = collecting_logger(trt)
    builder, network, _parser = _network(trt, logger, messages, onnx, contract, batch_max)
    config = builder_config(trt, builder, contract, batch_max, messages)
    _set_compute_capabilities(trt, config, capabilities, messages)
    return _build(builder, network, config, onnx, directory, messages)


def build_tensorrt_here(onnx: Path, directory: Path, contract: InputContract, batch_max: int = 1) -> tuple[str, ...]:
    """Write `model.engine` to `directory` for the GPU of this device, with the device's own TensorRT.

    What the builder timed is kept in this account's cache, so that building again takes seconds.

    Args:
        onnx: The graph, with its weights inside.
        directory: Where to write.
        contract: The frames that the graph takes.
        batch_max: How many frames at once, at most.

    Returns:
        The names of the files, the entry first.

    Raises:
        RuntimeMissingError: `tensorrt` is not installed, or there is no GPU.
        EngineError: TensorRT does not take the graph; the message names the nodes.
    """
    trt = import_runtime("tensorrt", INSTALL["tensorrt"])
    capability = require_gpu()
    logger, messages = collecting_logger(trt)
    builder, network, _parser = _network(trt, logger, messages, onnx, contract, batch_max)
    config = builder_config(trt, builder, contract, batch_max, messages)
    cache_path = timing_cache_path(trt.__version__, capability)
    cache = set_timing_cache(config, cache_path.read_bytes() if cache_path.is_file() else b"", messages)
    names = _build(builder, network, config, onnx, directory, messages)
    write_bytes_atomic(cache_path, bytes(cache.serialize()))
    return names


def _build(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    onnx: Path,
    directory: Path,
    messages: list[str],
) -> tuple[str, ...]:
    engine = _made(builder.build_serialized_network(network, config), f"engine of {onnx}", messages)
    require_exact(onnx, messages)
    (directory / "model.engine").write_bytes(engine)
    return ("model.engine",)


def set_timing_cache(config: tensorrt.IBuilderConfig, known: bytes, messages: list[str]) -> tensorrt.ITimingCache:
    """Give the builder what it timed earlier; where it does not take that, it times anew.

    Args:
        config: The builder's settings.
        known: What the cache held; empty where there was none, anything where its file was damaged.
        messages: What the builder's logger collects.

    Returns:
        The cache that the builder writes into.

    Raises:
        EngineError: It does not even take an empty one.
    """
    for content in dict.fromkeys((known, b"")):
        cache: tensorrt.ITimingCache | None = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    raise EngineError(f"TensorRT takes no timing cache: {_last_words(messages)}")


def timing_cache_path(version: str, capability: int) -> Path:
    """Return where this account keeps what TensorRT's builder timed."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "brd-edge" / f"tensorrt-{version}-sm{capability}.timing"


def _network(
    trt: Any, logger: tensorrt.ILogger, messages: list[str], onnx: Path, contract: InputContract, batch_max: int
) -> tuple[tensorrt.Builder, tensorrt.INetworkDefinition, tensorrt.OnnxParser]:
    """Parse the graph into a strongly typed network; builder and parser must live until the engine is built."""
    builder: tensorrt.Builder = _made(trt.Builder(logger), "builder", messages)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # where the flag is gone, every network is strongly typed
    strongly_typed = 0 if flag is None else 1 << int(flag)
    network = _made(builder.create_network(strongly_typed), "network", messages)
    parser: tensorrt.OnnxParser = _made(trt.OnnxParser(network, logger), "parser", messages)
    if not parser.parse(onnx.read_bytes()):
        raise EngineError(f"{onnx}: TensorRT does not take the graph: {'; '.join(_parser_errors(parser, messages))}")
    require_exact(onnx, messages)
    check_interface(str(onnx), contract, *_ports(network), batch_max=batch_max)
    return builder, network, parser


def builder_config(
    trt: Any, builder: tensorrt.Builder, contract: InputContract, batch_max: int, messages: list[str]
) -> tensorrt.IBuilderConfig:
    """Return the settings that every engine is built with: float32 is float32, and this many frames at once at most.

    Args:
        trt: The `tensorrt` or `tensorrt_rtx` module.
        builder: Its builder.
        contract: The frames.
        batch_max: How many of them at once, at most.
        messages: What the builder's logger collects.

    Raises:
        EngineError: TensorRT refuses a setting.
    """
    config: tensorrt.IBuilderConfig = _made(builder.create_builder_config(), "builder config", messages)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the layers can be told
    # unasked, products of float32 are rounded to the 10 bits of TF32 on GPUs from SM80 on
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if tf32 is not None:
        config.clear_flag(tf32)
        if config.get_flag(tf32):
            raise EngineError(f"TensorRT keeps TF32 for float32: {_last_words(messages)}")
    _set_batch(builder, config, contract, batch_max, messages)
    return config


def _set_batch(
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    contract: InputContract,
    batch_max: int,
    messages: list[str],
) -> None:
    """Say how many frames there may be, for which a network that leaves it open has no other place."""
    if batch_max == 1:
        return
    profile: Any = _made(builder.create_optimization_profile(), "optimisation profile", messages)
    one, most = ((frames, contract.height, contract.width, 3) for frames in (1, batch_max))
    # the second is what kernels are chosen for
    profile.set_shape("image", one, most, most)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT does not take 1 to {batch_max} frames at once: {_last_words(messages)}")


def require_exact(onnx: Path, messages: list[str]) -> None:
    """Refuse a graph that TensorRT takes but computes differently, which it only warns of.

    Args:
        onnx: The graph, for the message.
        messages: What parser and builder have said.

    Raises:
        EngineError: One of them warns of a uint8 zero point.
    """
    found = [text for text in messages if _ZERO_POINT.search(text) and "uint8" in text.lower()]
    if found:
        raise EngineError(
            f"{onnx}: quantised for another runtime, TensorRT would compute something else ({found[0]}): "
            "quantise it for tensorrt"
        )


def _made(thing: Made | None, what: str, messages: list[str]) -> Made:
    """Return `thing`; TensorRT reports a failure only by returning None and logging why."""
    if thing is None:
        raise EngineError(f"TensorRT made no {what}: {_last_words(messages)}")
    return thing


def _set_compute_capabilities(trt: Any, config: Any, capabilities: Sequence[int], messages: list[str]) -> None:
    wanted = [getattr(trt.ComputeCapability, f"SM{number}", None) for number in capabilities]
    if None in wanted:
        raise EngineError(
            f"tensorrt_rtx {trt.__version__} does not know all of the compute capabilities {tuple(capabilities)}: "
            f"update it with  {INSTALL['tensorrt_rtx']}"
        )
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        config.set_compute_capability(capability, index)
    # a setting that failed is only logged, so read back what was taken
    taken = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    if taken != wanted:
        raise EngineError(f"TensorRT took the compute capabilities {taken}, not {wanted}: {_last_words(messages)}")


def _parser_errors(parser: tensorrt.OnnxParser, messages: list[str]) -> list[str]:
    errors: list[tensorrt.ParserError] = [parser.get_error(index) for index in range(parser.num_errors)]
    texts = [
        f"node {error.node()} {error.node_name() or '(without a name)'} ({error.node_operator()}): {error.desc()}"
        for error in errors
    ]
    return texts or [_last_words(messages)]


def _last_words(messages: list[str]) -> str:
    # without a driver every build logs CUDA's complaint about that, which is never the reason
    words = [message for message in messages if "cudaError" not in message]
    return "; ".join(words[-5:]) or "it did not say why"


def _ports(network: tensorrt.INetworkDefinition) -> tuple[list[Port], list[Port]]:
    def port(tensor: tensorrt.ITensor) -> Port:
        return tensor.name, tensor.dtype.name.lower(), sides(tensor.shape)

    inputs = [port(network.get_input(index)) for index in range(network.num_inputs)]
    outputs = [port(network.get_output(index)) for index in range(network.num_outputs)]
    return inputs, outputs
