"""One delivery to one device: probe, choose, upload, and let the device verify, build, try and switch."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.runtime.bundle import Bundle
from brd_edge.runtime.checking import Bench
from brd_edge.runtime.device import misfit
from brd_edge.runtime.errors import DeliveryError
from brd_edge.runtime.manifest import MANIFEST_NAME
from brd_edge.runtime.receive import COMMIT
from brd_edge.runtime.signature import SIGNATURE_NAME
from brd_edge.ship.transport import LOOPBACK, Device, connected, said

if TYPE_CHECKING:
    import asyncssh

__all__ = ["Delivered", "Options", "ask_device", "deliver", "probe_device", "roll_back"]

_CHUNK = 1 << 18
_ENDING_S = 10

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to deliver.

    Attributes:
        public_key: PEM of the key that signed; a device that trusts nobody yet will trust it.
        engines: Names of the engines to deliver; None takes all that fit.
        allow_downgrade: Whether a device may go back to an older bundle.
        keep: Releases that stay on the device.
        bench: How the device times engines.
        dry_run: Whether to stop after choosing.
    """

    public_key: str
    engines: tuple[str, ...] | None = None
    allow_downgrade: bool = False
    keep: int = 3
    bench: Bench = field(default_factory=lambda: Bench(samples_min=100, samples_max=2000, budget_s=5.0))
    dry_run: bool = False


@dataclass(frozen=True)
class Delivered:
    """What came of a delivery.

    Attributes:
        device: The device's address.
        status: `"serving"`, `"would serve"` (dry run), `"failed"`, `"interrupted"` or `"not tried"`.
        message: Why it failed, or what would be done.
        release: Name of the release on the device.
        engine: The engine that serves.
        engines: The engines that were chosen.
        left_out: Why others were not, of those that were asked for.
        checks: Agreement and latency by engine, as measured on the device.
        profile: What the device is.
        uploaded_bytes: Bytes that went over the network.
        duration_s: Seconds it took.
    """

    device: str
    status: str
    message: str = ""
    release: str | None = None
    engine: str | None = None
    engines: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    uploaded_bytes: int = 0
    duration_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        return asdict(self)


async def deliver(device: Device, bundle: Bundle, options: Options, say: Say) -> Delivered:
    """Deliver a bundle to one device; what fails is told in the result, and leaves the device as it was."""
    import asyncssh

    start = time.monotonic()
    try:
        async with connected(device) as connection:
            try:
                result = await _deliver(connection, device, bundle, options, say)
            except asyncio.CancelledError:
                # not in an orderly way, which the other side could hold up
                connection.abort()
                raise
    except DeliveryError as error:
        result = Delivered(device.address, "failed", str(error))
    except asyncssh.SFTPError as error:
        message = f"the device refused what was uploaded ({error.reason}); is its disk full, or not to be written to?"
        result = Delivered(device.address, "failed", message)
    except (asyncssh.Error, OSError) as error:
        lost = said(error, device).removeprefix("cannot be reached")
        message = f"the connection was lost{lost}; --status shows what serves, ship again to go on"
        result = Delivered(device.address, "failed", message)
    return replace(result, duration_s=round(time.monotonic() - start, 2))


async def probe_device(connection: asyncssh.SSHClientConnection, device: Device) -> dict[str, Any]:
    """Ask a device what it is and what serves on it.

    Raises:
        DeliveryError: brd-edge does not run there.
    """
    result = await connection.run(_command(device, "probe"), check=False, stdin=_no_input())
    if result.exit_status != 0:
        text = str(result.stderr or "").strip().splitlines()
        raise DeliveryError(
            f"{device.python} -m brd_edge.runtime does not run there "
            f"({text[-1] if text else f'exit code {result.exit_status}'}); install the bundle's wheel into it:  "
            'pip install "brd_edge-….whl[openvino]" or [onnxruntime], and name its Python with --python'
        )
    return _answer(str(result.stdout))


async def ask_device(device: Device) -> dict[str, Any]:
    """Connect to a device and probe it.

    Raises:
        DeliveryError: It cannot be reached, or brd-edge does not run there.
    """
    import asyncssh

    try:
        async with connected(device) as connection:
            return await probe_device(connection, device)
    except (asyncssh.Error, OSError) as error:
        raise DeliveryError(said(error, device)) from error


async def roll_back(device: Device, say: Say) -> Delivered:
    """Let a device's earlier release serve again."""
    import asyncssh

    try:
        async with connected(device) as connection:
            result = await connection.run(_command(device, "rollback"), check=False, stdin=_no_input())
    except (asyncssh.Error, OSError) as error:
        return Delivered(device.address, "failed", said(error, device))
    except DeliveryError as error:
        return Delivered(device.address, "failed", str(error))
    if result.exit_status != 0:
        text = str(result.stderr or "").strip().removeprefix("brd-edge: error: ")
        return Delivered(device.address, "failed", text or f"exit code {result.exit_status}")
    try:
        values = _answer(str(result.stdout))
        release, engine = str(values["release"]), str(values["engine"])
    except (DeliveryError, KeyError) as error:
        return Delivered(device.address, "failed", f"it may be rolled back, see --status: {error}")
    say(f"{device.address}: {release} serves again")
    return Delivered(device.address, "serving", "rolled back", release=release, engine=engine)


def _answer(output: str) -> dict[str, Any]:
    """Return the last line of a device's output, an object in JSON; a login may have printed something before it."""
    lines = output.strip().splitlines()
    values = _parsed(lines[-1]) if lines else None
    if values is None:
        raise DeliveryError(f"its answer was not understood ({output.strip()[-80:]!r}); is it another version?")
    return values


def _parsed(line: str) -> dict[str, Any] | None:
    """Return an object in JSON; None for what a login or a library printed, a number among it."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def choose_engines(bundle: Bundle, profile: Mapping[str, Any], wanted: Sequence[str] | None) -> dict[str, str | None]:
    """Return every engine that is wanted with the reason why the device does not get it, None where it does."""
    engines = bundle.manifest.engines
    return {name: misfit(engine, profile) for name, engine in engines.items() if wanted is None or name in wanted}


def _misfits(left_out: Mapping[str, str], bundle: Bundle) -> str:
    """Say why no engine fits, and how many were not looked at."""
    others = len(bundle.manifest.engines) - len(left_out)
    more = [f"{others} {'other was' if others == 1 else 'others were'} not asked for"] if others else []
    lines = [*(f"{name}: {reason}" for name, reason in left_out.items()), *more]
    return "; ".join(lines) or "it has none (none held its gates)"


async def _deliver(
    connection: asyncssh.SSHClientConnection, device: Device, bundle: Bundle, options: Options, say: Say
) -> Delivered:
    profile = await probe_device(connection, device)
    reasons = choose_engines(bundle, profile, options.engines)
    chosen = tuple(name for name, reason in reasons.items() if reason is None)
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    if not chosen:
        raise DeliveryError(f"no engine of the bundle fits it: {_misfits(left_out, bundle)}")
    result = Delivered(device.address, "would serve", engines=chosen, left_out=left_out, profile=profile)
    if options.dry_run:
        serving = f"in place of {profile['current']}" if profile["current"] else "as the first release"
        return replace(result, message=f"would deliver {', '.join(chosen)} {serving}")
    say(f"{device.address}: {profile['model']}, gets {', '.join(chosen)}")
    process = await connection.create_process(_command(device, "receive"), encoding="utf-8")
    async with process:
        try:
            process.stdin.write(_request(device, bundle, options, chosen))
            need = await _event(process, device, say, "need")
            uploaded_bytes = await _upload(connection, device, _asked_for(bundle, chosen, need), say)
            process.stdin.write(COMMIT + "\n")
            done = await _event(process, device, say, "done")
        except asyncio.CancelledError:
            # it is not to switch after all, where it has not yet
            process.terminate()
            process.close()
            raise
        finally:
            # the device's process ends by itself; hanging up on it would leave it to find that out
            with suppress(OSError, TimeoutError):
                process.stdin.write_eof()
                await asyncio.wait_for(process.wait(), _ENDING_S)
    say(f"{device.address}: {done.get('release')} serves with {done.get('engine')}")
    return replace(
        result,
        status="serving",
        release=done.get("release"),
        engine=done.get("engine"),
        checks=done.get("checks") or {},
        profile={**profile, **(done.get("device") or {})},
        uploaded_bytes=uploaded_bytes,
    )


def _request(device: Device, bundle: Bundle, options: Options, chosen: Sequence[str]) -> str:
    request = {
        "manifest": (bundle.directory / MANIFEST_NAME).read_text(encoding="utf-8"),
        "signature": (bundle.directory / SIGNATURE_NAME).read_text(encoding="utf-8"),
        "engines": list(chosen),
        "options": {
            "public_key": options.public_key,
            "allow_downgrade": options.allow_downgrade,
            "keep": options.keep,
            "bench": asdict(options.bench),
            "latency_ms_p95_max": device.latency_ms_p95_max,
        },
    }
    return json.dumps(request) + "\n"


async def _event(process: asyncssh.SSHClientProcess[str], device: Device, say: Say, wanted: str) -> dict[str, Any]:
    """Read events until the one that is waited for; pass on what the device says meanwhile."""
    while line := await process.stdout.readline():
        event = _parsed(line) or {}
        if event.get("event") == "say":
            say(f"{device.address}: {event.get('text')}")
        elif event.get("event") == "error":
            raise DeliveryError(str(event.get("message")))
        elif event.get("event") == wanted:
            return event
    text = (await process.stderr.read()).strip().splitlines()
    reason = f" ({text[-1]})" if text else ""
    raise DeliveryError(f"the device's process ended{reason}; --status shows what serves")


@dataclass(frozen=True)
class _Upload:
    """A file that a device lacks.

    Attributes:
        local: Where it is here.
        remote: Where it goes.
        size_bytes: The whole file.
        have: Bytes of it that are there from an earlier try.
    """

    local: Path
    remote: str
    size_bytes: int
    have: int


def _asked_for(bundle: Bundle, chosen: Sequence[str], need: Mapping[str, Any]) -> list[_Upload]:
    """Return the files that a device asks for, by checksum; it gets none but the bundle's.

    Raises:
        DeliveryError: It asks for something else.
    """
    manifest = bundle.manifest
    engines = (path for name in chosen for path in manifest.engine_files(name))
    paths = {manifest.files[path].sha256: path for path in (*manifest.common_files(), *engines)}
    uploads = []
    try:
        for sha256, wanted in need["files"].items():
            if sha256 not in paths:
                raise DeliveryError(
                    f"the device asks for {sha256!r}, which is no file of this delivery: do not trust it"
                )
            size_bytes, have = manifest.files[paths[sha256]].size_bytes, wanted["have"]
            if type(have) is not int or not 0 <= have <= size_bytes:
                raise DeliveryError(f"the device has {have!r} bytes of {paths[sha256]}, which are {size_bytes:,}")
            uploads.append(_Upload(bundle.directory / paths[sha256], f"{need['incoming']}/{sha256}", size_bytes, have))
    except (KeyError, TypeError, AttributeError) as error:
        raise DeliveryError(f"what the device needs was not understood ({error!r}); is it another version?") from None
    return uploads


async def _upload(
    connection: asyncssh.SSHClientConnection, device: Device, uploads: Sequence[_Upload], say: Say
) -> int:
    """Send the files that the device lacks, going on where an earlier upload stopped."""
    whole_bytes = sum(upload.size_bytes for upload in uploads)
    sent = sum(upload.have for upload in uploads)
    uploaded_bytes, shown = 0, time.monotonic()
    if sent:
        say(f"{device.address}: {sent / 1e6:.1f} MB are there from an earlier try")
    async with connection.start_sftp_client() as sftp:
        for upload in uploads:
            with upload.local.open("rb") as local:
                local.seek(upload.have)
                async with sftp.open(upload.remote, "ab") as remote:
                    while chunk := local.read(_CHUNK):
                        await remote.write(chunk)
                        uploaded_bytes += len(chunk)
                        if time.monotonic() - shown > 1:
                            shown = time.monotonic()
                            part = (sent + uploaded_bytes) / max(1, whole_bytes)
                            say(f"{device.address}: uploading, {100 * part:.0f} % of {whole_bytes / 1e6:.1f} MB")
    say(f"{device.address}: uploaded {uploaded_bytes / 1e6:.1f} MB")
    return uploaded_bytes


def _command(device: Device, name: str) -> str:
    if device.address.startswith(LOOPBACK):
        root, python = str(Path(device.root).resolve()), sys.executable
    else:
        root, python = device.root, device.python
    # a root without a leading slash lies in the account's home, where SSH starts commands
    return shlex.join([python, "-m", "brd_edge.runtime", name, "--root", root])


def _no_input() -> int:
    import asyncssh

    return int(asyncssh.DEVNULL)
