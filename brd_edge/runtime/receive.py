"""The device's side of a delivery: one process that takes a bundle from request to release.

It talks in lines of JSON over its standard input and output, which SSH carries. While it runs it
holds the device root's lock. Nothing that serves is touched before the last step, the switch; when
the other side goes away before `commit`, or anything fails, what came is thrown away.

    -> {"manifest": …, "signature": …, "engines": […], "options": {…}}
    <- {"event": "need", "incoming": …, "files": {sha256: {"size_bytes": …, "have": …}}}
    -> {"commit": true}                             after the files were uploaded
    <- {"event": "say", "text": …} …
    <- {"event": "done", …}  or  {"event": "error", "message": …}
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from brd_edge.runtime.builders import build_planned
from brd_edge.runtime.bundle import Bundle, open_bundle
from brd_edge.runtime.checking import Bench, Checked, check_engine
from brd_edge.runtime.device import describe_device, misfit
from brd_edge.runtime.errors import BrdEdgeError, BundleError, DeliveryError
from brd_edge.runtime.files import sha256_file
from brd_edge.runtime.heartbeat import heartbeat
from brd_edge.runtime.limits import judge_limit
from brd_edge.runtime.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, parse_manifest
from brd_edge.runtime.releases import (
    Release,
    current_release,
    highest_signed_at,
    list_releases,
    locked_root,
    next_release_name,
    note_signed_at,
    prune,
    switch,
    tree_flush,
)
from brd_edge.runtime.signature import (
    SIGNATURE_NAME,
    Signature,
    parse_public_key,
    trust_key,
    trusted_keys,
    verify_manifest,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["COMMIT", "Request", "receive"]

COMMIT = '{"commit": true}'
"""The line that says that everything was uploaded."""

_LINE_BYTES_MAX = 2 * MANIFEST_BYTES_MAX

Send = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Request:
    """What is to be delivered.

    Attributes:
        manifest: The bytes of `manifest.json`.
        signature: The bytes of `manifest.sig`.
        engines: Names of the engines and build plans to deliver.
        public_key: PEM; trusted from now on if this device trusts nobody yet.
        allow_downgrade: Whether an older bundle than the newest so far is taken.
        keep: How many releases stay on the device.
        bench: How engines are timed.
        latency_ms_p95_max: Limit in place of the bundle's own gate, or None.
    """

    manifest: bytes
    signature: bytes
    engines: tuple[str, ...]
    public_key: str | None
    allow_downgrade: bool
    keep: int
    bench: Bench
    latency_ms_p95_max: float | None


def receive(root: Path, requests: IO[str], send: Send) -> int:
    """Take one delivery.

    Args:
        root: The device root.
        requests: Lines from the other side.
        send: Sends an event to it.

    Returns:
        The exit code: 0 when the bundle serves, 1 otherwise.
    """
    try:
        with locked_root(root):
            _deliver(root, _request(requests), requests, send)
    except BrdEdgeError as error:
        send({"event": "error", "message": str(error)})
        return 1
    except OSError as error:
        send({"event": "error", "message": f"{error.filename or root}: {error.strerror or error}"})
        return 1
    return 0


def _request(requests: IO[str]) -> Request:
    line = requests.readline(_LINE_BYTES_MAX)
    try:
        values = json.loads(line)
        options = values["options"]
        return Request(
            manifest=values["manifest"].encode(),
            signature=values["signature"].encode(),
            engines=tuple(str(name) for name in values["engines"]),
            public_key=options["public_key"],
            allow_downgrade=bool(options["allow_downgrade"]),
            keep=max(1, int(options["keep"])),
            bench=Bench(**options["bench"]),
            latency_ms_p95_max=options["latency_ms_p95_max"],
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeliveryError(
            f"the request was not understood ({type(error).__name__}: {error}); do both sides have the same brd-edge?"
        ) from error


@dataclass(frozen=True)
class _Admitted:
    """A request whose signature holds."""

    request: Request
    digest: str
    manifest: Manifest
    signature: Signature
    trusted: Mapping[str, Ed25519PublicKey]
    first: bool
    """Whether this device trusted nobody before."""


def _deliver(root: Path, request: Request, requests: IO[str], send: Send) -> None:
    admitted = _admit(root, request)
    serving = _already_serving(root, admitted)
    if serving is None:
        serving = _install(root, admitted, requests, send)
    else:
        send({"event": "need", "incoming": str(root / "incoming"), "files": {}})
        _commit(requests)
        bundle = open_bundle(serving.bundle_directory, admitted.trusted, engines=serving.engines)
        found = _canary(bundle, serving.directory, admitted, send)
        serving = replace(serving, engine=found.engine, checks=found.checks)
        serving.write()
    if admitted.first and request.public_key is not None:
        # the account that ships may write here anyway: the first key is taken on its word
        key = trust_key(root / "trusted", request.public_key)
        send({"event": "say", "text": f"trusts the key {key} from now on"})
    note_signed_at(root, max(admitted.signature.signed_at, highest_signed_at(root)))
    switch(root, serving)
    removed = prune(root, request.keep)
    shutil.rmtree(root / "incoming", ignore_errors=True)
    done = {"event": "done", "release": serving.name, "engine": serving.engine, "checks": serving.checks}
    send({**done, "device": describe_device(root), "removed": removed})


def _install(root: Path, admitted: _Admitted, requests: IO[str], send: Send) -> Release:
    """Put a new release together, try it out, and give it its place; nothing serves it yet."""
    staging = root / "staging"
    here = _gather(root, admitted, requests, send)
    _assemble(root, staging / "bundle", admitted, here)
    bundle = open_bundle(staging / "bundle", admitted.trusted, engines=admitted.request.engines)
    _build(bundle, staging / "built", send)
    release = _canary(bundle, staging, admitted, send)
    previous = _readable_current(root)
    final = replace(release, previous=previous.name if previous else None)
    final.write()
    tree_flush(staging)
    place = root / "releases" / next_release_name(root, admitted.manifest.name, admitted.digest)
    staging.rename(place)
    return replace(final, directory=place)


def _readable_current(root: Path) -> Release | None:
    try:
        return current_release(root)
    except DeliveryError:
        return None  # damaged; what is being delivered replaces it


def _admit(root: Path, request: Request) -> _Admitted:
    """Check everything that can be checked before a byte is uploaded."""
    trusted: Mapping[str, Ed25519PublicKey] = trusted_keys(root / "trusted")
    first = not trusted
    if first and request.public_key is not None:
        trusted = dict([parse_public_key(request.public_key.encode(), "the key that was sent")])
    signature = verify_manifest(request.manifest, request.signature, trusted, "the bundle")
    highest = highest_signed_at(root)
    if signature.signed_at < highest and not request.allow_downgrade:
        raise BundleError(
            f"the bundle was signed at {_date(signature.signed_at)}, and one of {_date(highest)} has served here "
            "already; --allow-downgrade ships the older one all the same"
        )
    manifest = parse_manifest(request.manifest, "the bundle")
    device = describe_device(root)
    if not request.engines:
        raise DeliveryError("no engine was chosen for this device")
    for name in request.engines:
        if name not in manifest.engines:
            raise BundleError(f"the bundle has no engine {name!r}: there are {', '.join(manifest.engines)}")
        reason = misfit(manifest.engines[name], device)
        if reason is not None:
            raise DeliveryError(f"{name} does not fit this device: {reason}")
    return _Admitted(request, hashlib.sha256(request.manifest).hexdigest(), manifest, signature, trusted, first)


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _already_serving(root: Path, admitted: _Admitted) -> Release | None:
    current, engines = _readable_current(root), set(admitted.request.engines)
    if current is None or current.manifest_sha256 != admitted.digest or set(current.engines) != engines:
        return None
    try:
        open_bundle(current.bundle_directory, admitted.trusted, engines=current.engines)
    except BundleError:
        return None  # damaged since; the delivery repairs it
    return current


def _wanted(admitted: _Admitted) -> list[str]:
    """Return the paths of the files that this delivery needs."""
    engines = (path for name in admitted.request.engines for path in admitted.manifest.engine_files(name))
    return [*admitted.manifest.common_files(), *engines]


def _gather(root: Path, admitted: _Admitted, requests: IO[str], send: Send) -> dict[str, Path]:
    """Ask for the files that are not on the device yet, and return those that are, by SHA-256."""
    manifest, wanted = admitted.manifest, _wanted(admitted)
    here = _files_here(root, {manifest.files[path].sha256 for path in wanted})
    files: dict[str, dict[str, Any]] = {}
    for path in wanted:
        expected = manifest.files[path]
        if expected.sha256 in here:
            continue
        part = root / "incoming" / expected.sha256
        have = part.stat().st_size if part.is_file() else 0
        if have > expected.size_bytes:
            part.unlink()
            have = 0
        files[expected.sha256] = {"size_bytes": expected.size_bytes, "have": have, "path": path}
    missing_bytes = sum(file["size_bytes"] - file["have"] for file in files.values())
    free_bytes = shutil.disk_usage(root).free
    if missing_bytes > free_bytes:
        raise DeliveryError(f"{root}: {missing_bytes:,} bytes are to come, {free_bytes:,} are free")
    send({"event": "need", "incoming": str((root / "incoming").resolve()), "files": files})
    _commit(requests)
    return here


def _commit(requests: IO[str]) -> None:
    if requests.readline(_LINE_BYTES_MAX).strip() != COMMIT:
        raise DeliveryError("the other side went away before everything was uploaded; what came is kept for next time")


def _files_here(root: Path, wanted: set[str]) -> dict[str, Path]:
    """Return files of earlier releases that have one of the wanted SHA-256."""
    found: dict[str, Path] = {}
    for release in list_releases(root):
        try:
            content = (release.bundle_directory / MANIFEST_NAME).read_bytes()
            files = parse_manifest(content, release.name).files
        except (OSError, BundleError):
            continue
        for path, file in files.items():
            source = release.bundle_directory / path
            if file.sha256 in wanted - found.keys() and source.is_file() and sha256_file(source) == file.sha256:
                found[file.sha256] = source
    return found


def _assemble(root: Path, bundle: Path, admitted: _Admitted, here: Mapping[str, Path]) -> None:
    """Put the bundle together from what was uploaded and what was here."""
    bundle.mkdir(parents=True)
    for path in _wanted(admitted):
        sha256, target = admitted.manifest.files[path].sha256, bundle / path
        source = here.get(sha256, root / "incoming" / sha256)
        if not source.is_file():
            raise DeliveryError(f"{path} was not uploaded; ship again")
        if sha256 not in here and sha256_file(source) != sha256:
            source.unlink()  # an upload that went wrong starts anew next time
            raise DeliveryError(f"{path}: the upload is damaged (its SHA-256 differs); ship again")
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(source, target)
    (bundle / MANIFEST_NAME).write_bytes(admitted.request.manifest)
    (bundle / SIGNATURE_NAME).write_bytes(admitted.request.signature)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)  # a file system without hard links


def _build(bundle: Bundle, built: Path, send: Send) -> None:
    for name in bundle.engines:
        if bundle.manifest.engines[name].build:
            with heartbeat(f"{name}: building", lambda text: send({"event": "say", "text": text})):
                build_planned(bundle, name, built / name)


def _canary(bundle: Bundle, directory: Path, admitted: _Admitted, send: Send) -> Release:
    """Run every engine here before anything relies on it; the fastest that holds the gate will serve."""
    release = Release(directory, admitted.digest, "", bundle.engines, None, {}, int(time.time()))
    asked, engines = admitted.request.latency_ms_p95_max, bundle.manifest.engines
    limits = {name: engine.latency_ms_p95_max if asked is None else asked for name, engine in engines.items()}
    checks = [
        check_engine(
            bundle,
            name,
            release.engine_directory(name),
            bench=replace(admitted.request.bench, gated=limits[name] is not None),
            say=lambda text: send({"event": "say", "text": text}),
        )
        for name in bundle.engines
    ]
    wrong = [f"{check.name}: {check.problem}" for check in checks if check.problem]
    if wrong:
        raise DeliveryError("canary: " + "; ".join(wrong))
    holding = [check for check in checks if _holds(check, limits[check.name], engines[check.name].uncertain)]
    if not holding:
        listed = ", ".join(f"{check.name} {_describe_p95(check)}, limit {limits[check.name]:g}" for check in checks)
        raise DeliveryError(f"canary: no engine holds the gate latency_ms_p95_max on this device: {listed}")
    fastest = min(holding, key=_p50_ms)
    found = {check.name: check.to_json() for check in checks}
    return replace(release, engine=fastest.name, checks=found)


def _holds(check: Checked, limit_ms: float | None, uncertain: str) -> bool:
    return limit_ms is None or judge_limit(*_p95_ms(check), limit_ms, uncertain=uncertain) == "held"


def _p50_ms(check: Checked) -> float:
    assert check.latency_ms is not None
    return float(check.latency_ms["p50"])


def _p95_ms(check: Checked) -> tuple[float, float | None]:
    """Return p95 and the upper end of its interval, if it has one."""
    assert check.latency_ms is not None
    high = check.latency_ms["intervals"]["p95"][1]
    return float(check.latency_ms["p95"]), None if high is None else float(high)


def _describe_p95(check: Checked) -> str:
    value, high = _p95_ms(check)
    return f"{value:.1f} ms (up to {high:.1f})" if high is not None else f"{value:.1f} ms (too few samples for more)"
