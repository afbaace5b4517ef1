"""The command of the device: `python -m brd_edge.runtime`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brd_edge import __version__
from brd_edge.runtime import commands
from brd_edge.runtime.argument_types import count, positive, threads
from brd_edge.runtime.errors import tell_error

__all__ = ["main"]

DEFAULT_ROOT = Path("~/brd-edge")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program; the process's own when not given.

    Returns:
        The exit code: 0 done, 1 refused or failed, 2 the command line is wrong, 130 interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if getattr(options, "samples_min", 0) > getattr(options, "samples_max", 0):
        parser.error(f"--samples-min {options.samples_min} is more than --samples-max {options.samples_max}")
    try:
        return int(options.run(options))
    except (Exception, KeyboardInterrupt) as error:
        return tell_error(error, extra="onnxruntime")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m brd_edge.runtime", description="Verify, build, measure and run bundles on a device."
    )
    parser.add_argument("--version", action="version", version=f"brd-edge {__version__}")
    commands_ = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands_.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def takes_bundle(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="a release, a bundle's directory or its .tar.gz")
        sub.add_argument(
            "--key", type=Path, action="append", default=[], metavar="KEY.pub", help="whose signature counts"
        )

    takes_bundle(command("verify", commands.verify, "Check signature, checksums, versions and golden frames."))
    takes_bundle(command("build", commands.build, "Build the engines that must be built on this machine."))
    sub = command("bench", commands.bench, "Time every engine that fits this machine.")
    takes_bundle(sub)
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="write everything, with all samples, as JSON")
    sub.add_argument("--samples-min", type=count, default=50, metavar="N", help="fewest samples (50)")
    sub.add_argument("--samples-max", type=count, default=10_000, metavar="N", help="most samples (10000)")
    sub.add_argument("--budget-s", type=positive, default=10.0, metavar="S", help="seconds per engine and figure (10)")
    sub.add_argument("--streams", type=threads, default=0, metavar="N", help="throughput of N streams at once too")
    _takes_threads(sub)
    sub = command("infer", commands.infer_source, "Segment an image, a folder, a video or a camera.")
    takes_bundle(sub)
    sub.add_argument("source", metavar="SOURCE", help="image, folder, video file, or camera[:N]")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for what was found")
    sub.add_argument("--engine", metavar="NAME", help="which engine; the one that serves, or the fastest that fits")
    sub.add_argument("--rate", type=positive, metavar="HZ", help="steady rate of a video; what is late is dropped")
    sub.add_argument("--frames", type=count, metavar="N", help="stop a video or camera after N frames")
    _takes_threads(sub)
    sub = command("unpack", commands.unpack, "Verify an archive and unpack it.")
    takes_bundle(sub)
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="new directory")
    for name, run, text in (
        ("status", commands.status, "Show the releases of this device."),
        ("rollback", commands.rollback, "Let the release before the current one serve again."),
        ("probe", commands.probe, "Print what this device is, as JSON (for brd_edge.ship)."),
        ("receive", commands.receive_delivery, "Take a delivery over standard input (for brd_edge.ship)."),
    ):
        sub = command(name, run, text)
        sub.add_argument("--root", type=Path, default=DEFAULT_ROOT, help=f"device root ({DEFAULT_ROOT})")
    return parser


def _takes_threads(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--threads", type=threads, metavar="N", help="threads of the runtime (its own choice; recipes set theirs)"
    )


if __name__ == "__main__":
    sys.exit(main())
