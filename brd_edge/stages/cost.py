"""What distillation added to the cost of each engine; part of the stage `benchmark`."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brd_edge.runtime.errors import BrdEdgeError
from brd_edge.stages.context import Context

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["added_cost"]

log = logging.getLogger("brd_edge")


def added_cost(
    context: Context,
    entry: dict[str, Any],
    frames: Sequence[npt.NDArray[np.uint8]],
    *,
    status: str,
    times: MutableMapping[str, npt.NDArray[np.float64]],
) -> dict[str, Any]:
    """Compare an engine with the undistilled student's.

    Args:
        context: Where the stage works.
        entry: The engine, as the stage `build` left it.
        frames: What both are timed on in turns, uint8 (H, W, 3) of the contract's size.
        status: What came of measuring it: `"measured"`, `"built"` where it does not run here, or `"failed"`.
        times: Gets every time that is taken, as `latency.npz` names it.

    Returns:
        The entry of `zero_cost.engines` in `benchmark.json`; `reason` says what could not be compared.
    """
    from brd_edge.evaluate.engine_cost import compare_engines, compare_structure

    settings = context.recipe.benchmark
    result: dict[str, Any] = {"name": entry["name"], "held": None, "reason": ""}
    if not entry["plain"]:
        return {**result, "reason": "the undistilled student's engine was not built"}
    if status == "failed":
        return {**result, "reason": "not compared: the engine failed"}
    student, plain = (context.run.path(kind, entry["name"]) for kind in ("engines", "plain"))
    try:
        if status != "measured":
            cost = compare_structure(student, plain, threads=settings.threads)
            return {**result, **cost.to_json(), "reason": "not timed: the engine does not run here"}
        context.say(f"benchmark: {entry['name']} against the undistilled one (about {settings.cost_budget_s:.0f} s)")
        cost = compare_engines(
            student,
            plain,
            frames,
            threads=settings.threads,
            margin=settings.cost_margin_percent / 100,
            budget_s=settings.cost_budget_s,
        )
    except BrdEdgeError as error:
        return {**result, "reason": str(error)}
    except Exception as error:
        # a vendor's library may raise anything; the other engines do not depend on it
        log.exception("%s against the undistilled one failed", entry["name"])
        return {**result, "reason": f"{type(error).__name__}: {error}"}
    if cost.latency is not None:
        times.update({f"{entry['name']}/cost/{key}": np.array(ms) for key, ms in cost.latency.samples_ms.items()})
    return {**result, **cost.to_json()}
