"""SSH connections to devices: host keys verified, keys or an agent, never a password."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.runtime.errors import DeliveryError, RecipeError
from brd_edge.runtime.files import expand_home

if TYPE_CHECKING:
    import asyncssh

__all__ = ["LOOPBACK", "Device", "connected", "parse_device", "said"]

LOOPBACK = "loopback:"
"""What an address begins with that means a directory of this machine, behind an SSH server of its own."""

_ADDRESS = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9a-fA-F:.]+\]|[^:@\s\[\]]+)(?::(?P<port>\d+))?")
_TIMEOUT_S = 20
_KEEPALIVE_S = 15


@dataclass(frozen=True)
class Device:
    """A device to ship to.

    Attributes:
        address: What people call it: `user@host[:port]`, or `loopback:DIRECTORY`.
        host: Name or address; what `~/.ssh/config` says about it counts.
        user: The account; None takes SSH's own choice.
        port: TCP port; None takes SSH's own choice.
        root: The device root; relative to the account's home where it does not begin with `/`.
        python: The device's Python that has brd-edge installed.
        identity: Private SSH key file; None takes the agent and the usual files.
        known_hosts: File of host keys; None takes the usual one.
        latency_ms_p95_max: Limit for this device in place of the bundle's gate.
    """

    address: str
    host: str
    user: str | None = None
    port: int | None = None
    root: str = "brd-edge"
    python: str = "python3"
    identity: Path | None = None
    known_hosts: Path | None = None
    latency_ms_p95_max: float | None = None


def parse_device(address: str, **settings: Any) -> Device:
    """Read `user@host[:port]`; the port of an IPv6 address follows brackets, as in `me@[fe80::1]:22`.

    Args:
        address: Also `loopback:DIRECTORY`.
        **settings: Other fields of `Device`.

    Raises:
        RecipeError: It is not such an address.
    """
    if address.startswith(LOOPBACK):
        if address == LOOPBACK:
            raise RecipeError(f"{address}: expected a directory after {LOOPBACK}, such as loopback:device")
        return Device(address, "127.0.0.1", **settings)
    found = _ADDRESS.fullmatch(address)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 0 < port < 65536):
        raise RecipeError(f"{address}: expected user@host[:port], or loopback:DIRECTORY to try it on this machine")
    return Device(address, found["host"].strip("[]"), found["user"], port, **settings)


@asynccontextmanager
async def connected(device: Device) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Connect to a device.

    Raises:
        DeliveryError: It cannot be reached, its host key is not known, or it does not let this account in.
    """
    import asyncssh

    if device.address.startswith(LOOPBACK):
        from brd_edge.ship.loopback import loopback_device

        async with loopback_device() as connection:
            yield connection
        return
    for path in (device.identity, device.known_hosts):
        if path is not None and not expand_home(path).is_file():
            raise DeliveryError(f"{path}: not found; --identity and --known-hosts name files of this machine")
    settings: dict[str, Any] = {"preferred_auth": "publickey"}
    if device.port is not None:
        settings["port"] = device.port
    if device.user is not None:
        settings["username"] = device.user
    if device.identity is not None:
        settings["client_keys"] = [str(expand_home(device.identity))]
    if device.known_hosts is not None:
        settings["known_hosts"] = str(expand_home(device.known_hosts))
    try:
        connection = await asyncssh.connect(
            device.host,
            connect_timeout=_TIMEOUT_S,
            login_timeout=_TIMEOUT_S,
            keepalive_interval=_KEEPALIVE_S,
            **settings,
        )
    except (asyncssh.Error, OSError, ValueError) as error:
        raise DeliveryError(said(error, device)) from error
    async with connection:
        yield connection


def _unknown_host(device: Device) -> str:
    """Tell a host that was never seen from one whose key has changed."""
    import asyncssh

    path = expand_home(device.known_hosts or "~/.ssh/known_hosts")
    port = device.port or asyncssh.DEFAULT_PORT
    keys = asyncssh.match_known_hosts(str(path), device.host, device.host, port)[0] if path.is_file() else []
    if keys:
        return (
            f"its host key is not the one in {path}: the device was set up anew, or something between here and "
            "there answers in its place. Nothing was sent; find out which before you replace the key there"
        )
    account = f"{device.user}@{device.host}" if device.user else device.host
    command = f"ssh -p {device.port} {account}" if device.port else f"ssh {account}"
    return (
        f"its host key is not known here; compare its fingerprint once with  {command}  "
        "(which adds it to known_hosts), or name a file with --known-hosts"
    )


def said(error: BaseException, device: Device) -> str:
    """Say what an error of the connection means, and what to do."""
    import asyncssh

    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return _unknown_host(device)
    if isinstance(error, asyncssh.PermissionDenied):
        return "it does not accept your SSH keys; ssh-copy-id adds one, --identity names one (passwords are not used)"
    if isinstance(error, asyncssh.KeyImportError):
        return f"the SSH key cannot be used ({error})"
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT_S} s"
    reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
    return f"cannot be reached ({reason or type(error).__name__})"
