"""The command `python -m brd_edge.ship`: a bundle to devices over SSH."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brd_edge.runtime.argument_types import positive
from brd_edge.runtime.errors import DeliveryError, InterruptedRunError, RecipeError, tell_error
from brd_edge.runtime.files import write_json_atomic
from brd_edge.ship.delivery import Delivered, Options, ask_device, roll_back
from brd_edge.ship.fleet import Fleet, loopback_root, read_fleet, serve_in_waves
from brd_edge.ship.outcome import format_deliveries
from brd_edge.ship.shipping import ship_bundle
from brd_edge.ship.transport import Device, parse_device

__all__ = ["main"]

_EPILOG = """\
Devices are user@host[:port]; loopback:DIRECTORY is a device on this machine, to try things out.
exit codes: 0 every device serves, 1 one failed, 2 the command line is wrong, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program; the process's own when not given.
    """
    options = _parser().parse_args(arguments)
    logging.getLogger("asyncssh").setLevel(logging.ERROR)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("brd-edge: interrupted; --status shows what devices serve", file=sys.stderr)
        return InterruptedRunError.exit_code
    except Exception as error:
        return tell_error(error, extra="ship")


def _run(options: argparse.Namespace) -> int:
    fleet = _fleet(options)
    if options.status or options.rollback:
        results = asyncio.run(_look(fleet, rollback=options.rollback))
        print(format_deliveries(results))
        return _exit_code(results, failing=("failed",))
    if options.keep < 1:
        raise RecipeError(f"--keep: expected at least 1, got {options.keep}")
    if options.bundle is None:
        raise RecipeError("give the bundle to ship: brd-edge ship BUNDLE --to user@host")
    how = Options(
        public_key="",
        engines=tuple(options.engine) or None,
        allow_downgrade=options.allow_downgrade,
        keep=options.keep,
        dry_run=options.dry_run,
    )
    if how.dry_run:
        fleet = replace(fleet, waves=("100%",), failures_max=len(fleet.devices))
    results, outcome = ship_bundle(options.bundle, fleet, how, key=options.key, public_key=options.public_key, say=_say)
    print(format_deliveries(results))
    if not options.dry_run:
        _keep(options, outcome)
    return _exit_code(results, failing=("failed", "not tried"))


def _exit_code(results: Sequence[Delivered], *, failing: Sequence[str]) -> int:
    statuses = {result.status for result in results}
    if "interrupted" in statuses:
        return InterruptedRunError.exit_code
    return 1 if statuses & set(failing) else 0


def _keep(options: argparse.Namespace, outcome: dict[str, Any]) -> None:
    """Write the report beside the run that the bundle belongs to, or where it was asked for."""
    run = options.bundle.resolve().parent
    path = options.report or (run / "ship.json" if (run / "benchmark.json").is_file() else None)
    if path is not None:
        write_json_atomic(path, outcome)
        _say(f"written: {path}")
    if (run / "report.html").is_file():
        from brd_edge.ship.report import add_devices

        if add_devices(run / "report.html", outcome):
            _say(f"added to {run / 'report.html'}")


async def _look(fleet: Fleet, *, rollback: bool) -> list[Delivered]:
    async def one(device: Device) -> Delivered:
        if rollback:
            return await roll_back(device, _say)
        try:
            profile = await ask_device(device)
        except DeliveryError as error:
            return Delivered(device.address, "failed", str(error))
        current = profile["current"]
        release = next((item for item in profile["releases"] if item["name"] == current), None)
        if release is None:
            return Delivered(device.address, "empty", profile.get("problem", "nothing was delivered yet"))
        if "problem" in profile:
            return Delivered(device.address, "failed", f"damaged, ship again: {profile['problem']}", release=current)
        others = [item["name"] for item in profile["releases"] if item["name"] != current]
        message = f"{profile['model']}; other releases: {', '.join(others) or 'none'}"
        return Delivered(
            device.address, "serving", message, release=current, engine=release["engine"], checks=release["checks"]
        )

    return await serve_in_waves(replace(fleet, waves=("100%",)), one, _say)


def _fleet(options: argparse.Namespace) -> Fleet:
    if (options.fleet is None) == (not options.to):
        raise RecipeError("give either --to user@host (as often as you like) or --fleet fleet.yaml")
    settings = {
        key: value
        for key, value in (
            ("root", options.root),
            ("python", options.python),
            ("identity", options.identity),
            ("known_hosts", options.known_hosts),
            ("latency_ms_p95_max", options.latency_ms_p95_max),
        )
        if value is not None
    }
    if options.fleet is not None:
        if settings:
            given = ", ".join(f"--{key.replace('_', '-')}" for key in settings)
            raise RecipeError(f"{given}: devices of a fleet say that in {options.fleet}, each for itself")
        return read_fleet(options.fleet)
    return Fleet(tuple(parse_device(address, **{**loopback_root(address), **settings}) for address in options.to))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brd-edge ship",
        description="Deliver a signed bundle to devices over SSH, with a canary on each; or see what serves.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="a bundle's directory or its .tar.gz")
    parser.add_argument("--to", action="append", default=[], metavar="DEVICE", help="user@host[:port]; may be repeated")
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="YAML file of devices, waves and limits")
    parser.add_argument("--key", type=Path, metavar="NAME.key", help="private key that signs the bundle first")
    parser.add_argument("--public-key", type=Path, metavar="NAME.pub", help="key of a bundle that is signed already")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--root", metavar="DIR", help="device root (brd-edge in the account's home)")
    parser.add_argument("--python", metavar="PATH", help="the device's Python (python3)")
    parser.add_argument(
        "--identity", type=Path, metavar="FILE", help="SSH private key (the agent's, or the usual ones)"
    )
    parser.add_argument("--known-hosts", type=Path, metavar="FILE", help="host keys (the usual file)")
    parser.add_argument(
        "--latency-ms-p95-max",
        type=positive,
        metavar="MS",
        help="limit on the device, in place of the bundle's gate",
    )
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="releases that stay on the device (3)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where to write JSON (ship.json in the run)")
    parser.add_argument("--allow-downgrade", action="store_true", help="take a bundle that is older than what served")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="look at the devices and say what would be done")
    action.add_argument("--status", action="store_true", help="show what serves")
    action.add_argument("--rollback", action="store_true", help="let the release before serve again")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
