"""What an engine returns, as a class map: its own, or computed from its coarse logits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.class_map import ClassMapper
from brd_edge.runtime.engine import EngineInfo
from brd_edge.runtime.runners.checks import Port, check_class_maps, check_interface

__all__ = ["Finish", "checked_output"]

Finish = Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]]
"""From what the engine returned to the class maps uint8 (n, H, W), the caller's own."""


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
    check_interface(what, contract, inputs, outputs, classes=classes, batch_max=info.batch_max)
    if info.logits is None:
        return lambda class_maps: check_class_maps(class_maps, contract)
    count, rows, columns = (int(str(side)) for side in outputs[0][2][1:])
    mapper = ClassMapper(
        count,
        rows,
        columns,
        contract.height,
        contract.width,
        align_corners=info.logits.align_corners,
        compiled=_is_installed("numba"),
    )

    def finish(logits: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        class_maps = np.empty((len(logits), contract.height, contract.width), np.uint8)
        for one, out in zip(logits, class_maps, strict=True):
            mapper.class_map(one[None], out=out)
        return class_maps

    return finish


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # a directory of that name has no origin
    return spec is not None and spec.origin is not None
