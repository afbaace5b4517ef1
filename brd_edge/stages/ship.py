"""Stage `ship`: the bundle goes to the devices that the recipe names."""

from __future__ import annotations

from typing import Any

from brd_edge.recipe import Recipe
from brd_edge.runtime.errors import RunError
from brd_edge.stages.context import Context, Outcome, Stage

__all__ = ["STAGE"]


def _devices(recipe: Recipe) -> list[str]:
    return [device for device in recipe.ship.devices if device]


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {"devices": _devices(recipe)}


def _plan(recipe: Recipe) -> str:
    devices = _devices(recipe)
    return f"deliver to {', '.join(devices)}" if devices else "nothing: the recipe names no device"


def _missing(recipe: Recipe) -> list[str]:
    if _devices(recipe):
        return ["delivery over SSH is not part of this version: use --until bundle and copy the run's bundle/"]
    return []


def _work(context: Context) -> Outcome:
    problems = _missing(context.recipe)
    if problems:
        raise RunError(f"ship: {problems[0]}")
    return Outcome([], {"devices": []}, "the recipe names no device")


STAGE = Stage(
    name="ship",
    needs=("bundle",),
    code=("ship", "stages/ship.py"),
    settings=_settings,
    work=_work,
    plan=_plan,
    missing=_missing,
)
