"""What an engine returns, as a class map: its own, or computed from its coarse logits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.class_map import ClassMapper
from brd_edge.runtime.engine import EngineInfo
from brd_edge.runtime.runners.checks import Port, check_class_map, check_interface

__all__ = ["Finish", "checked_output"]

Finish = Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]]
"""From what the engine returned to the class map uint8 (H, W), the caller's own."""


def checked_output(what: str, info: EngineInfo, inputs: list[Port], outputs: list[Port]) -> Finish:
    """Compare an engine's inputs and outputs with its sidecar, and return what makes class maps of its output.

    Coarse logits are turned into class maps by `brd_edge.runtime.class_map`, compiled where numba is installed.
    The result is for one thread, as the runner is.

    Args:
        what: The engine, for the message.
        info: Its sidecar.
        inputs: Its inputs.
        outputs: Its outputs.

    Raises:
        EngineError: Something differs.
    """
    contract = info.contract
    classes = None if info.logits is None else len(info.classes)
    check_interface(what, contract, inputs, outputs, classes=classes)
    if info.logits is None:
        return lambda class_map: check_class_map(class_map, contract)
    _, count, rows, columns = (int(str(side)) for side in outputs[0][2])
    mapper = ClassMapper(
        count,
        rows,
        columns,
        contract.height,
        contract.width,
        align_corners=info.logits.align_corners,
        compiled=importlib.util.find_spec("numba") is not None,
    )
    return mapper.class_map
