"""Stage `ship`: the signed bundle goes to the devices that the recipe names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.recipe import Recipe
from brd_edge.runtime.errors import DeliveryError, RecipeError, RunError
from brd_edge.runtime.files import expand_home, sha256_file, write_json_atomic
from brd_edge.stages.bundle import signing_key
from brd_edge.stages.context import Context, Outcome, Stage

if TYPE_CHECKING:
    from brd_edge.ship.fleet import Fleet

__all__ = ["STAGE"]


def _devices(recipe: Recipe) -> list[str]:
    return [device for device in recipe.ship.devices if device]


def _named(recipe: Recipe) -> bool:
    return bool(_devices(recipe)) or recipe.ship.fleet is not None


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {"ship": recipe.ship.model_dump(mode="json"), "devices": _devices(recipe)}


def _files(recipe: Recipe) -> dict[str, str]:
    if not _named(recipe):
        return {}
    fleet = _fleet_path(recipe)
    listed = {"fleet": sha256_file(fleet) if fleet.is_file() else "missing"} if fleet is not None else {}
    # signing the same bundle with another key changes no file of it that the record knows
    return listed | signing_key(recipe)


def _plan(recipe: Recipe) -> str:
    if recipe.ship.fleet is not None:
        return f"deliver to the devices of {recipe.ship.fleet}"
    devices = _devices(recipe)
    return f"deliver to {', '.join(devices)}" if devices else "nothing: the recipe names no device"


def _missing(recipe: Recipe) -> list[str]:
    if not _named(recipe):
        return []
    if find_spec("asyncssh") is None:
        return ['ship: asyncssh is not installed; pip install "brd-edge[ship]"']
    found = []
    if recipe.bundle.key is None:
        found.append("ship: devices take signed bundles only; brd-edge keys NAME, then --set bundle.key=NAME.key")
    try:
        _fleet(recipe)
    except RecipeError as error:
        found.append(f"ship: {error}")
    return found


def _fleet_path(recipe: Recipe) -> Path | None:
    return expand_home(recipe.ship.fleet) if recipe.ship.fleet is not None else None


def _fleet(recipe: Recipe) -> Fleet:
    from brd_edge.ship.fleet import Fleet, loopback_root, read_fleet
    from brd_edge.ship.transport import parse_device

    path = _fleet_path(recipe)
    if path is not None:
        return read_fleet(path)
    settings = {"root": recipe.ship.root, "python": recipe.ship.python}
    return Fleet(tuple(parse_device(name, **(settings | loopback_root(name))) for name in _devices(recipe)))


def _work(context: Context) -> Outcome:
    from brd_edge.ship.report import add_devices, clear_devices

    if not _named(context.recipe):
        clear_devices(context.run.path("report.html"))
        return Outcome([], {"devices": []}, "the recipe names no device")
    problems = _missing(context.recipe)
    if problems:
        raise RunError("\n".join(problems))
    from brd_edge.ship.delivery import Options
    from brd_edge.ship.outcome import format_deliveries
    from brd_edge.ship.shipping import ship_bundle

    key = expand_home(str(context.recipe.bundle.key))
    bundle, fleet = context.run.path("bundle"), _fleet(context.recipe)
    results, outcome = ship_bundle(bundle, fleet, Options(public_key=""), key=key, public_key=None, say=context.say)
    path = context.run.path("ship.json")
    write_json_atomic(path, outcome)
    report = context.run.path("report.html")
    if report.is_file():
        add_devices(report, outcome)
    else:
        # what devices have is told all the same
        context.say(f"note: {report} is missing, so the devices' figures stand in {path} alone")
    table = format_deliveries(results)
    if any(result.status != "serving" for result in results):
        raise DeliveryError(f"not every device serves the bundle; run again to try those that failed\n{table}")
    context.say(table)
    devices = {result.device: result.engine for result in results}
    return Outcome([path], {"devices": devices}, f"{len(results)} devices serve the bundle; see {path}")


STAGE = Stage(
    name="ship",
    needs=("bundle",),
    code=("ship", "runtime", "stages/ship.py"),
    settings=_settings,
    work=_work,
    plan=_plan,
    files=_files,
    missing=_missing,
)
