"""What every runner checks: that its runtime is here, and that frames, graph and result keep to the contract."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError, RuntimeMissingError

__all__ = ["LOGITS_NAME", "Port", "check_class_map", "check_frame", "check_interface", "import_runtime"]

Port = tuple[str, str, tuple[object, ...]]
"""Name, dtype and shape of one input or output of a graph, for example `("image", "uint8", (1, 360, 480, 3))`."""


LOGITS_NAME = "logits"
"""The output of an engine that returns coarse logits."""


def import_runtime(module: str, install: str) -> Any:
    """Import a runtime's package.

    Args:
        module: Name of the package to import.
        install: The command that installs it, for the message.

    Raises:
        RuntimeMissingError: It is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise RuntimeMissingError(f"{module} cannot be imported here ({error}): install it with  {install}") from error


def check_interface(
    what: str,
    contract: InputContract,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    *,
    classes: int | None = None,
) -> None:
    """Compare a loaded graph's inputs and outputs with the contract.

    Args:
        what: The engine or graph, for the message.
        contract: The frames that will be fed.
        inputs: All inputs of the graph; expected is `image`, uint8 (1, H, W, 3).
        outputs: All outputs of the graph; expected is `class_map`, uint8 (1, H, W), or else `logits`.
        classes: Number of classes where `logits` are expected, float32 or float16 (1, classes, h, w).

    Raises:
        EngineError: Something differs.
    """
    height, width = contract.height, contract.width
    expected = ([("image", "uint8", (1, height, width, 3))], [("class_map", "uint8", (1, height, width))])
    got = (list(inputs), list(outputs))
    if classes is not None:
        _check_logits(what, expected[0], got, classes)
    elif got != expected:
        raise EngineError(
            f"{what}: expected {_describe(*expected)}, got {_describe(*got)}; export the student with this contract"
        )


def _check_logits(what: str, inputs: Sequence[Port], got: tuple[list[Port], list[Port]], classes: int) -> None:
    _, outputs = got
    name, dtype, shape = outputs[0] if len(outputs) == 1 else ("", "", ())
    # runtimes name their types differently: float is ONNX's name of float32
    floats = dtype in ("float", "float32", "float16")
    sizes = len(shape) == 4 and shape[:2] == (1, classes) and all(isinstance(side, int) for side in shape)
    if got[0] != inputs or name != LOGITS_NAME or not floats or not sizes:
        wanted: list[Port] = [(LOGITS_NAME, "float32", (1, classes, "h", "w"))]
        raise EngineError(
            f"{what}: expected {_describe(inputs, wanted)}, got {_describe(*got)}; build the engine again"
        )


def check_frame(frame: npt.NDArray[np.uint8], contract: InputContract) -> None:
    """Refuse a frame that is not uint8 (H, W, 3) at the contract's size.

    Raises:
        EngineError: Shape or dtype differ.
    """
    expected = (contract.height, contract.width, 3)
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape != expected:
        got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise EngineError(f"frame: expected uint8 {expected}, got {got}; resize it as the input contract says")


def check_class_map(class_map: npt.NDArray[Any], contract: InputContract) -> npt.NDArray[np.uint8]:
    """Return an engine's output as uint8 (H, W).

    Raises:
        EngineError: The output has another shape or dtype.
    """
    expected = (1, contract.height, contract.width)
    if class_map.dtype != np.uint8 or class_map.shape != expected:
        raise EngineError(f"class map: expected uint8 {expected}, got {class_map.dtype} {class_map.shape}")
    only: npt.NDArray[np.uint8] = class_map[0]
    return only


def _describe(inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    sides = (", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in side) for side in (inputs, outputs))
    return " -> ".join(sides)
