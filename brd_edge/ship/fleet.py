"""A fleet: many devices, served in waves, with an end as soon as too many fail."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brd_edge.runtime.errors import RecipeError
from brd_edge.ship.delivery import Delivered
from brd_edge.ship.transport import LOOPBACK, Device, parse_device
from brd_edge.unique_yaml import parse_yaml

__all__ = ["Fleet", "loopback_root", "read_fleet", "serve_in_waves", "wave_sizes"]


_EXPECTED = "expected devices (user@host, or address, root, python, …), and if you like waves, parallel, failures_max"


class _DeviceEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    root: str | None = None
    python: str = "python3"
    identity: Path | None = None
    known_hosts: Path | None = None
    latency_ms_p95_max: Annotated[float, Field(gt=0)] | None = None


class _FleetFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    devices: Annotated[tuple[str | _DeviceEntry, ...], Field(min_length=1)]
    waves: Annotated[tuple[int | str, ...], Field(min_length=1)] = (1, "100%")
    parallel: Annotated[int, Field(ge=1, le=256)] = 4
    failures_max: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Fleet:
    """Devices, and how they are served.

    Attributes:
        devices: In the order in which they are served.
        waves: Devices served in all at the end of each wave: a number, or a share such as `"25%"`.
        parallel: Most devices at once.
        failures_max: With more failures than this at the end of a wave, no further wave begins.
    """

    devices: tuple[Device, ...]
    waves: tuple[int | str, ...] = (1, "100%")
    parallel: int = 4
    failures_max: int = 0


def read_fleet(path: Path) -> Fleet:
    """Read a fleet file.

    Example of one:

        devices:
          - edge@camera-1
          - {address: edge@camera-2:2222, root: /data/brd-edge, python: /opt/venv/bin/python}
        waves: [1, 25%, 100%]
        parallel: 4
        failures_max: 0

    Raises:
        RecipeError: It cannot be read or is wrong; the message names every key.
    """
    import yaml

    try:
        content: Any = parse_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise RecipeError(f"{path}: {_EXPECTED}")
        values = _FleetFile.model_validate(content)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise RecipeError("\n".join([f"{path}: {_EXPECTED}", *_problems(error)])) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # YAML's dates may be none, and its lists too deep
        raise RecipeError(f"{path}: not YAML ({error})") from error
    devices = tuple(_device(entry) for entry in values.devices)
    addresses = [device.address for device in devices]
    twice = sorted({address for address in addresses if addresses.count(address) > 1})
    if twice:
        raise RecipeError(f"{path}: every device stands once, but these stand twice: {', '.join(twice)}")
    wave_sizes(values.waves, len(devices))
    return Fleet(devices, values.waves, values.parallel, values.failures_max)


def _problems(error: ValidationError) -> list[str]:
    """Return one line a problem, in the words of the file."""
    lines = []
    for item in error.errors():
        place = [str(part) for part in item["loc"]]
        if place[-1] == "str" and item["type"] == "string_type":
            continue  # a device may be a text or a mapping; what is wrong with the mapping is said too
        place = [part for part in place if part not in ("str", "int", _DeviceEntry.__name__)]
        said = {
            "extra_forbidden": "there is no such key",
            "missing": "is missing",
            "too_short": "at least one is needed",
            "model_type": "expected user@host, or a mapping with address",
        }
        lines.append(f"  {'.'.join(place)}: {said.get(item['type'], item['msg'])}")
    return lines


def _device(entry: str | _DeviceEntry) -> Device:
    if isinstance(entry, str):
        return parse_device(entry, **loopback_root(entry))
    settings = {key: value for key, value in entry.model_dump().items() if key != "address" and value is not None}
    return parse_device(entry.address, **{**loopback_root(entry.address), **settings})


def loopback_root(address: str) -> dict[str, str]:
    """Return the root that a loopback address names, as a setting of `Device`."""
    if not address.startswith(LOOPBACK):
        return {}
    # no shell does it within this word; unlike Path, this leaves the home of an unknown account as it stands
    return {"root": os.path.expanduser(address.removeprefix(LOOPBACK))}  # noqa: PTH111


def wave_sizes(waves: Sequence[int | str], count: int) -> list[int]:
    """Return how many devices each wave serves.

    Args:
        waves: Devices served in all at the end of each wave; the last one always serves the rest.
        count: Number of devices.

    Raises:
        RecipeError: An entry is neither a number nor a share.

    Example:
        >>> wave_sizes([1, "25%", "100%"], 20)
        [1, 4, 15]
    """
    ends = []
    for wave in waves:
        text = str(wave)
        share = text.removesuffix("%")
        if not (share.isascii() and share.isdecimal()) or int(share) == 0 or (text.endswith("%") and int(share) > 100):
            raise RecipeError(f"waves: expected numbers such as 1 or shares such as 25%, got {wave!r}")
        ends.append(min(count, math.ceil(count * int(share) / 100) if text.endswith("%") else int(share)))
    ends = sorted({*ends, count})
    return [end - start for start, end in zip([0, *ends], ends, strict=False) if end > start]


async def serve_in_waves(
    fleet: Fleet, deliver: Callable[[Device], Awaitable[Delivered]], say: Callable[[str], None]
) -> list[Delivered]:
    """Deliver to every device, wave by wave.

    Args:
        fleet: The devices.
        deliver: Delivers to one; does not raise for what goes wrong there.
        say: Is told about the waves.

    Returns:
        A result for every device, in the fleet's order; `"not tried"` where the waves ended before, and `"interrupted"`
        where it was being served when this was cancelled: then, too, it returns, for the others to be told.
    """
    limit = asyncio.Semaphore(fleet.parallel)

    async def one(device: Device) -> Delivered:
        async with limit:
            try:
                return await deliver(device)
            except Exception as error:
                # what nobody thought of must not end the other deliveries
                message = f"unexpected error, please report it: {type(error).__name__}: {error}"
                return Delivered(device.address, "failed", message)

    results: list[Delivered] = []
    why = "an earlier wave failed"
    sizes = wave_sizes(fleet.waves, len(fleet.devices))
    for number, size in enumerate(sizes, 1):
        failed = sum(result.status == "failed" for result in results)
        if failed > fleet.failures_max:
            say(f"stopped before wave {number}: {failed} failed, at most {fleet.failures_max} may")
            break
        wave = fleet.devices[len(results) : len(results) + size]
        if len(sizes) > 1:
            say(f"wave {number} of {len(sizes)}: {len(wave)} devices")
        served = [asyncio.ensure_future(one(device)) for device in wave]
        try:
            results += await asyncio.gather(*served)
        except asyncio.CancelledError:
            ended = await asyncio.gather(*served, return_exceptions=True)
            results += [_so_far(device, found) for device, found in zip(wave, ended, strict=True)]
            why = "the delivery was interrupted"
            break
    rest = fleet.devices[len(results) :]
    return [*results, *(Delivered(device.address, "not tried", why) for device in rest)]


def _so_far(device: Device, found: Delivered | BaseException) -> Delivered:
    if isinstance(found, Delivered):
        return found
    return Delivered(device.address, "interrupted", "it may serve the new release already: --status shows it")
