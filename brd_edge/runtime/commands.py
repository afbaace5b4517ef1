"""What `python -m brd_edge.runtime` can do on a device; each takes parsed options and returns an exit code."""

from __future__ import annotations

import json
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brd_edge.runtime.archive import opened_bundle, unpack_archive
from brd_edge.runtime.builders import build_planned, built_directory
from brd_edge.runtime.bundle import Bundle, open_bundle
from brd_edge.runtime.checking import Bench, Checked, check_engine
from brd_edge.runtime.device import describe_device, misfit
from brd_edge.runtime.errors import BundleError, DeliveryError
from brd_edge.runtime.files import expand_home, write_json_atomic
from brd_edge.runtime.heartbeat import heartbeat
from brd_edge.runtime.inference import infer
from brd_edge.runtime.receive import receive
from brd_edge.runtime.releases import (
    RELEASE_NAME,
    current_release,
    list_releases,
    locked_root,
    previous_release,
    read_release,
    switch,
)
from brd_edge.runtime.segmenter import Segmenter, keys_for, require_bundle
from brd_edge.runtime.signature import trusted_keys

__all__ = ["bench", "build", "infer_source", "probe", "receive_delivery", "rollback", "status", "unpack", "verify"]


def verify(options: Namespace) -> int:
    """Check signature, checksums, versions and golden frames of a bundle."""
    with _opened(options) as bundle:
        _say(f"signature of {bundle.signature.key_id} and {len(bundle.manifest.files)} files: as signed")
        checks = _check(bundle, options.bundle, None)
    return _conclude(checks)


def bench(options: Namespace) -> int:
    """Time every engine that fits, by the protocol that is used at home, and print or write JSON."""
    how = Bench(
        options.threads,
        options.samples_min,
        options.samples_max,
        options.budget_s,
        engine_alone=True,
        streams=options.streams,
    )
    with _opened(options) as bundle:
        before = describe_device(bundle.directory)
        checks = _check(bundle, options.bundle, how)
        result = {
            "schema_version": 1,
            "bundle": bundle.manifest.name,
            "threads": options.threads,
            "device": before,
            "cpu_mhz_after": describe_device(bundle.directory)["cpu_mhz"],
            "engines": [_measured(bundle, check) for check in checks],
        }
    if options.output is not None:
        write_json_atomic(options.output, result)
        _say(f"written: {options.output}")
    return _conclude(checks)


def build(options: Namespace) -> int:
    """Build the engines that must be built on this machine."""
    with _opened(options) as bundle:
        plans = [name for name, engine in bundle.manifest.engines.items() if engine.build]
        device, built = describe_device(bundle.directory), 0
        for name in plans:
            reason = misfit(bundle.manifest.engines[name], device)
            if reason is not None:
                _say(f"{name}: skipped, {reason}")
                continue
            # beside the bundles, named by what they are built from: an archive's stay when it is closed
            with heartbeat(f"{name}: building", _say):
                build_planned(bundle, name, built_directory(bundle, name))
            built += 1
            print(built_directory(bundle, name))
    if not plans:
        _say("nothing has to be built here: all engines are in the bundle")
    elif not built:
        raise BundleError(f"{options.bundle}: none of its build plans fits this machine")
    return 0


def infer_source(options: Namespace) -> int:
    """Segment an image, a folder, a video or a camera."""
    with (
        _ended_by_services(),
        Segmenter.open(options.bundle, keys=options.key, engine=options.engine, threads=options.threads) as segmenter,
    ):
        _say(f"engine: {segmenter.engine}")
        result = infer(
            segmenter, options.source, options.output, rate_hz=options.rate, frames_max=options.frames, say=_say
        )
    rate = f", {result['rate_hz']:.1f} a second, {result['dropped']} dropped" if "rate_hz" in result else ""
    _say(f"{result['frames']} frames{rate}: {options.output}")
    return 0


def unpack(options: Namespace) -> int:
    """Verify an archive and unpack it."""
    require_bundle(options.bundle)
    bundle = unpack_archive(options.bundle, options.output, keys_for(options.bundle, options.key))
    _say(f"{len(bundle.manifest.files)} files, as signed by {bundle.signature.key_id}: {options.output}")
    return 0


def probe(options: Namespace) -> int:
    """Print what this device is and what serves on it, as one line of JSON."""
    root = expand_home(options.root)
    values, serving, trusted = describe_device(root), None, {}
    try:
        serving = current_release(root)
        trusted = trusted_keys(root / "trusted")
        if serving is not None:
            open_bundle(serving.bundle_directory, trusted, engines=serving.engines)
    except BundleError as error:
        values["problem"] = str(error)
    except DeliveryError as error:
        values["problem"], serving = str(error), None
    values["current"] = None if serving is None else serving.name
    values["manifest_sha256"] = None if serving is None else serving.manifest_sha256
    values["trusted"] = sorted(trusted)
    values["releases"] = [
        {
            "name": release.name,
            "engine": release.engine,
            "installed_at": release.installed_at,
            "checks": release.checks,
        }
        for release in list_releases(root)
    ]
    print(json.dumps(values))
    return 0


def receive_delivery(options: Namespace) -> int:
    """Take a delivery; `brd_edge.ship` talks to this command."""

    def send(event: Mapping[str, Any]) -> None:
        try:
            print(json.dumps(event), flush=True)
        except OSError:
            raise DeliveryError("the other side went away") from None

    try:
        return receive(expand_home(options.root), sys.stdin, send)
    except DeliveryError:
        # nobody is left to tell; do not fail again when the interpreter flushes
        sys.stdout = None
        return 1


def rollback(options: Namespace) -> int:
    """Let the release before the current one serve again, after its golden frames were run."""
    root = expand_home(options.root)
    with locked_root(root):
        release = previous_release(root)
        bundle = open_bundle(release.bundle_directory, trusted_keys(root / "trusted"), engines=release.engines)
        check = check_engine(bundle, release.engine, release.engine_directory(release.engine), bench=None, say=_say)
        if check.problem:
            raise DeliveryError(f"{release.name} cannot serve: {check.problem}; the current release goes on")
        switch(root, release)
    print(json.dumps({"release": release.name, "engine": release.engine}))
    return 0


def status(options: Namespace) -> int:
    """Print the releases of a device root."""
    root = expand_home(options.root)
    serving = current_release(root)
    for release in list_releases(root):
        mark = "*" if serving is not None and release.name == serving.name else " "
        latency = (release.checks.get(release.engine) or {}).get("latency_ms") or {}
        print(f"{mark} {release.name}  {release.engine}  p50 {latency.get('p50', float('nan')):.1f} ms")
    if serving is None:
        _say("nothing was delivered yet")
    return 0


def _check(bundle: Bundle, path: Path, how: Bench | None) -> list[Checked]:
    device, checks = describe_device(bundle.directory), []
    release = read_release(path) if (path / RELEASE_NAME).is_file() else None
    for name in bundle.engines:
        reason = misfit(bundle.manifest.engines[name], device)
        directory = release.engine_directory(name) if release is not None else built_directory(bundle, name)
        if reason is None and not directory.is_dir():
            reason = f"not built yet: python -m brd_edge.runtime build {path}"
        if reason is not None:
            _say(f"{name}: skipped, {reason}")
            continue
        checks.append(check_engine(bundle, name, directory, bench=how, say=_say))
    if not checks:
        raise BundleError(f"{path}: no engine of the bundle can be run on this machine; the lines above say why")
    return checks


def _conclude(checks: list[Checked]) -> int:
    for check in checks:
        if check.problem:
            print(f"{check.name}: FAILED: {check.problem}")
            continue
        latency = check.latency_ms
        timed = "" if latency is None else f", p50 {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms"
        if check.engine_latency_ms is not None:
            timed += f", engine alone p50 {check.engine_latency_ms['p50']:.1f} ms"
        if check.throughput is not None:
            low, high = check.throughput["interval"]
            ends = f"from {low:.1f}" if high is None else f"{low:.1f} to {high:.1f}"
            streams = check.throughput["streams"]
            timed += f", {check.throughput['rate_hz']:.1f} frames/s ({ends}) in {streams} streams"
        energy = "" if check.energy_mj_per_frame is None else f", {check.energy_mj_per_frame:.1f} mJ a frame"
        assert check.agreement is not None
        print(f"{check.name}: golden frames agree ({100 * check.agreement:.3f} %){timed}{energy}")
    return 1 if any(check.problem for check in checks) else 0


def _measured(bundle: Bundle, check: Checked) -> dict[str, Any]:
    """Return an engine's entry, with the keys of `benchmark.json` where both have them."""
    engine = bundle.manifest.engines[check.name]
    kind = {"runtime": engine.runtime, "precision": engine.precision, "target": engine.target}
    return {**check.to_json(), **kind, "samples_ms": list(check.samples_ms)}


@contextmanager
def _opened(options: Namespace) -> Iterator[Bundle]:
    """Open a release, a bundle's directory or an archive."""
    path = options.bundle
    require_bundle(path)
    trusted = keys_for(path, options.key)
    if (path / RELEASE_NAME).is_file():
        release = read_release(path)
        yield open_bundle(release.bundle_directory, trusted, engines=release.engines)
        return
    with opened_bundle(path, trusted) as bundle:
        yield bundle


@contextmanager
def _ended_by_services() -> Iterator[None]:
    """Let SIGTERM, which a service manager sends, end the block as Ctrl-C does: with its files closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
