"""A fleet: many devices, served in waves, with an end as soon as too many fail."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brd_edge.runtime.errors import DeliveryError
from brd_edge.ship.delivery import Delivered
from brd_edge.ship.transport import LOOPBACK, Device, parse_device

__all__ = ["Fleet", "loopback_root", "read_fleet", "serve_in_waves", "wave_sizes"]


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
        DeliveryError: It cannot be read or is wrong; the message names every key.
    """
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = _FleetFile.model_validate(content)
    except OSError as error:
        raise DeliveryError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeliveryError(f"{path}: not YAML ({error})") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        expected = "expected devices, waves, parallel and failures_max"
        raise DeliveryError(f"{path}: {expected}\n" + "\n".join(lines)) from None
    devices = tuple(_device(entry) for entry in values.devices)
    addresses = [device.address for device in devices]
    twice = sorted({address for address in addresses if addresses.count(address) > 1})
    if twice:
        raise DeliveryError(f"{path}: every device stands once, but these stand twice: {', '.join(twice)}")
    wave_sizes(values.waves, len(devices))
    return Fleet(devices, values.waves, values.parallel, values.failures_max)


def _device(entry: str | _DeviceEntry) -> Device:
    if isinstance(entry, str):
        return parse_device(entry, **loopback_root(entry))
    settings = {key: value for key, value in entry.model_dump().items() if key != "address" and value is not None}
    return parse_device(entry.address, **{**loopback_root(entry.address), **settings})


def loopback_root(address: str) -> dict[str, str]:
    """Return the root that a loopback address names, as a setting of `Device`."""
    return {"root": address.removeprefix(LOOPBACK)} if address.startswith(LOOPBACK) else {}


def wave_sizes(waves: Sequence[int | str], count: int) -> list[int]:
    """Return how many devices each wave serves.

    Args:
        waves: Devices served in all at the end of each wave; the last one always serves the rest.
        count: Number of devices.

    Raises:
        DeliveryError: An entry is neither a number nor a share.

    Example:
        >>> wave_sizes([1, "25%", "100%"], 20)
        [1, 4, 15]
    """
    ends = []
    for wave in waves:
        text = str(wave)
        share = text.removesuffix("%")
        if not share.isdigit() or int(share) == 0 or (text.endswith("%") and int(share) > 100):
            raise DeliveryError(f"waves: expected numbers such as 1 or shares such as 25%, got {wave!r}")
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
        A result for every device, in the fleet's order; `"not tried"` where the waves ended before.
    """
    limit = asyncio.Semaphore(fleet.parallel)

    async def one(device: Device) -> Delivered:
        async with limit:
            return await deliver(device)

    results: list[Delivered] = []
    sizes = wave_sizes(fleet.waves, len(fleet.devices))
    for number, size in enumerate(sizes, 1):
        failed = sum(result.status == "failed" for result in results)
        if failed > fleet.failures_max:
            say(f"stopped before wave {number}: {failed} failed, at most {fleet.failures_max} may")
            break
        wave = fleet.devices[len(results) : len(results) + size]
        if len(sizes) > 1:
            say(f"wave {number} of {len(sizes)}: {len(wave)} devices")
        results += await asyncio.gather(*(one(device) for device in wave))
    rest = fleet.devices[len(results) :]
    return [*results, *(Delivered(device.address, "not tried", "an earlier wave failed") for device in rest)]
