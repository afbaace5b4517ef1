"""What every runner checks: that its runtime is here, and that frames, graph and result keep to the contract."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.runners.frame_advice import frame_advice

if TYPE_CHECKING:
    from brd_edge.runtime.engine import EngineInfo

__all__ = [
    "CONTRACT_HASH_KEY",
    "LOGITS_NAME",
    "Port",
    "check_class_maps",
    "check_contract_hash",
    "check_frame",
    "check_interface",
    "import_runtime",
    "in_batches",
]

Port = tuple[str, str, tuple[object, ...]]
"""Name, dtype and shape of one input or output of a graph, for example `("image", "uint8", (1, 360, 480, 3))`."""


LOGITS_NAME = "logits"
"""The output of an engine that returns coarse logits."""

CONTRACT_HASH_KEY = "brd_edge.contract_hash"
"""Where a graph's metadata holds the hash of the contract that it was exported for."""

OPEN = "N"
"""Stands for the number of frames where an engine takes several."""


def import_runtime(module: str, install: str) -> Any:
    """Import a runtime's package, without its reports to its makers.

    Args:
        module: Name of the package to import.
        install: The command that installs it, for the message.

    Raises:
        RuntimeMissingError: It is not installed, or does not load.
    """
    try:
        with _unreported():
            found = importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise RuntimeMissingError(f"{module} cannot be imported here ({error}): install it with  {install}") from error
    if getattr(found, "__file__", None) is None:
        # a directory of that name without the package, such as type stubs leave
        raise RuntimeMissingError(f"{module} is not installed here: install it with  {install}")
    return found


@contextmanager
def _unreported() -> Iterator[None]:
    """Keep ONNX Runtime and OpenVINO from reporting to their makers that they are used.

    ONNX Runtime reads a variable, which stays set for what it does later, unless the user has set it. OpenVINO forks to
    report that it was imported, from a thread, while others may hold a lock: without a network the child can hang, and
    keeps whoever reads this process's output waiting (seen with 2026.4 over SSH). Without the package that reports, it
    goes on without.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    reporter = "openvino_telemetry"
    absent = reporter not in sys.modules
    if absent:
        sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules[reporter]


def check_contract_hash(what: str, contract: InputContract, metadata: Mapping[str, str]) -> None:
    """Compare the contract that a loaded graph was exported for with the sidecar's.

    Two contracts of one size have the same inputs and outputs, but other class maps.

    Args:
        what: The engine, for the message.
        contract: The sidecar's.
        metadata: The graph's; one that does not name its contract is taken as it is.

    Raises:
        EngineError: They differ.
    """
    found = metadata.get(CONTRACT_HASH_KEY, contract.hash)
    if found != contract.hash:
        raise EngineError(
            f"{what}: the graph was exported for the input contract {found}, the contract in engine.json is "
            f"{contract.hash}: engine.json was changed, or belongs to another graph. Copy the whole directory again, "
            "or rebuild the engine"
        )


def check_interface(
    what: str,
    contract: InputContract,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    *,
    classes: int | None = None,
    batch_max: int = 1,
) -> None:
    """Compare a loaded graph's inputs and outputs with the contract.

    Args:
        what: The engine or graph, for the message.
        contract: The frames that will be fed.
        inputs: All inputs of the graph; expected is `image`, uint8 (1, H, W, 3).
        outputs: All outputs of the graph; expected is `class_map`, uint8 (1, H, W), or else `logits`.
        classes: Number of classes where `logits` are expected, float32 or float16 (1, classes, h, w).
        batch_max: How many frames it is to take at once; above 1, the first dimension of each is to be open.

    Raises:
        EngineError: Something differs.
    """
    height, width = contract.height, contract.width
    first = 1 if batch_max == 1 else OPEN
    expected = ([("image", "uint8", (first, height, width, 3))], [("class_map", "uint8", (first, height, width))])
    got = ([_opened(port) for port in inputs], [_opened(port) for port in outputs])
    if classes is not None:
        _check_logits(what, expected[0], got, (first, classes))
    elif got != expected:
        raise EngineError(
            f"{what}: expected {_describe(*expected)}, got {_describe(*got)}; export the student with this contract"
        )


def _opened(port: Port) -> Port:
    """Return a port with `OPEN` for a first dimension that is open, which every runtime calls differently."""
    name, dtype, shape = port
    if not shape or (isinstance(shape[0], int) and shape[0] >= 0):
        return port
    return name, dtype, (OPEN, *shape[1:])


def _check_logits(
    what: str, inputs: Sequence[Port], got: tuple[list[Port], list[Port]], wanted: tuple[int | str, int]
) -> None:
    _, outputs = got
    name, dtype, shape = outputs[0] if len(outputs) == 1 else ("", "", ())
    # runtimes name their types differently: float is ONNX's name of float32
    floats = dtype in ("float", "float32", "float16")
    sizes = len(shape) == 4 and shape[:2] == wanted and all(isinstance(side, int) for side in shape[1:])
    if got[0] != inputs or name != LOGITS_NAME or not floats or not sizes:
        ports: list[Port] = [(LOGITS_NAME, "float32", (*wanted, "h", "w"))]
        raise EngineError(f"{what}: expected {_describe(inputs, ports)}, got {_describe(*got)}; build the engine again")


def check_frame(frame: npt.NDArray[np.uint8], contract: InputContract) -> None:
    """Refuse a frame that is not uint8 (H, W, 3) at the contract's size.

    Raises:
        EngineError: Shape or dtype differ.
    """
    expected = (contract.height, contract.width, 3)
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape != expected:
        raise _refusal(frame, contract, f"uint8 {expected}")


def _check_frames(frames: npt.NDArray[np.uint8], contract: InputContract) -> None:
    """Refuse what is neither one frame nor several at the contract's size."""
    one = (contract.height, contract.width, 3)
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8:
        shape = frames.shape
        if shape == one or (shape[1:] == one and shape[0]):
            return
    raise _refusal(frames, contract, f"uint8 {one}, or (N, {one[0]}, {one[1]}, 3) for several frames")


def _refusal(frame: object, contract: InputContract, expected: str) -> EngineError:
    got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    advice = frame_advice(frame, (contract.height, contract.width))
    return EngineError(f"frame: expected {expected}, got {got}: {advice}")


def in_batches(
    frames: npt.NDArray[np.uint8],
    info: EngineInfo,
    run: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]],
) -> npt.NDArray[np.uint8]:
    """Segment one frame or several, as many at a time as the engine takes.

    Args:
        frames: uint8 (H, W, 3) or (N, H, W, 3).
        info: The engine's sidecar.
        run: From contiguous frames uint8 (n, H, W, 3), n from 1 to `info.batch_max`, to class maps uint8 (n, H, W).

    Returns:
        uint8 (H, W) or (N, H, W).

    Raises:
        EngineError: The frames have another shape or dtype; or what `run` raises.
    """
    _check_frames(frames, info.contract)
    if frames.ndim == 4:
        step = info.batch_max
        found = [run(np.ascontiguousarray(frames[at : at + step])) for at in range(0, len(frames), step)]
        return found[0] if len(found) == 1 else np.concatenate(found)
    only: npt.NDArray[np.uint8] = run(np.ascontiguousarray(frames[None]))[0]
    return only


def check_class_maps(class_maps: npt.NDArray[Any], contract: InputContract) -> npt.NDArray[np.uint8]:
    """Return an engine's output, which is to be uint8 (n, H, W).

    Raises:
        EngineError: The output has another shape or dtype.
    """
    expected = (contract.height, contract.width)
    if class_maps.dtype != np.uint8 or class_maps.ndim != 3 or class_maps.shape[1:] != expected:
        raise EngineError(
            f"class map: expected uint8 (n, {expected[0]}, {expected[1]}), got {class_maps.dtype} {class_maps.shape}"
        )
    return class_maps


def _describe(inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    sides = (", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in side) for side in (inputs, outputs))
    return " -> ".join(sides)
