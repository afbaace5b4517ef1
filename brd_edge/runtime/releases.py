"""The device root: releases, which of them serves, and switching between them without a moment in between.

    ROOT/trusted/KEYID.pub          whose bundles are taken
    ROOT/incoming/SHA256            files on their way, by content, so that an upload can be resumed
    ROOT/staging/                   the release that is being put together
    ROOT/releases/0007-name-1a2b3c/ bundle/ (as it was signed), built/ (engines built here), release.json
    ROOT/current -> releases/…      what serves; renamed into place, so it is the old release or the new one
    ROOT/state.json                 when the newest bundle that ever served was signed

Whoever may write here may do as they like: the directory belongs to the account that ships.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brd_edge.runtime.errors import DeliveryError
from brd_edge.runtime.files import flush_path, write_json_atomic

__all__ = [
    "RELEASE_NAME",
    "Release",
    "current_release",
    "discard",
    "highest_signed_at",
    "list_releases",
    "locked_root",
    "next_release_name",
    "note_signed_at",
    "previous_release",
    "prune",
    "read_release",
    "switch",
    "tree_flush",
]

RELEASE_NAME = "release.json"
_DIRECTORY = re.compile(r"(\d{4,})-.+")


@dataclass(frozen=True)
class Release:
    """A release on the device.

    Attributes:
        directory: `ROOT/releases/…`.
        manifest_sha256: Of the bundle's manifest.
        engine: The engine that serves.
        engines: All engines that were delivered and passed.
        previous: Name of the release that served before, or None.
        checks: What the canary found, by engine, as JSON types.
        installed_at: Seconds since 1970 by the device's clock.
    """

    directory: Path
    manifest_sha256: str
    engine: str
    engines: tuple[str, ...]
    previous: str | None
    checks: dict[str, Any]
    installed_at: int

    @property
    def name(self) -> str:
        """Name of the release's directory."""
        return self.directory.name

    @property
    def bundle_directory(self) -> Path:
        """The bundle, as it was signed."""
        return self.directory / "bundle"

    def engine_directory(self, name: str) -> Path:
        """Return where an engine lies: built here, or as it came."""
        built = self.directory / "built" / name
        return built if built.is_dir() else self.bundle_directory / "engines" / name

    def write(self) -> None:
        """Write `release.json`."""
        values = {
            "manifest_sha256": self.manifest_sha256,
            "engine": self.engine,
            "engines": list(self.engines),
            "previous": self.previous,
            "checks": self.checks,
            "installed_at": self.installed_at,
        }
        write_json_atomic(self.directory / RELEASE_NAME, values)


def read_release(directory: Path) -> Release:
    """Read a release; `ROOT/current` works too.

    Raises:
        DeliveryError: There is no release, or its record is damaged.
    """
    path = directory.resolve() / RELEASE_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["engines"] = tuple(values["engines"])
        return Release(directory.resolve(), **values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DeliveryError(f"{path}: not a release ({error}); ship the bundle again") from error


def list_releases(root: Path) -> list[Release]:
    """Return all readable releases, the newest last."""
    found = []
    for directory in sorted((root / "releases").glob("*"), key=lambda path: _number(path.name)):
        try:
            found.append(read_release(directory))
        except DeliveryError:
            continue
    return found


def current_release(root: Path) -> Release | None:
    """Return the release that serves, or None where nothing was delivered yet."""
    return read_release(root / "current") if (root / "current").is_symlink() else None


def previous_release(root: Path) -> Release:
    """Return the release to roll back to: the one that served before, or the newest older one.

    Raises:
        DeliveryError: There is none.
    """
    current = current_release(root)
    releases = {release.name: release for release in list_releases(root)}
    if current is not None and current.previous in releases:
        return releases[current.previous]
    older = [release for release in releases.values() if current and _number(release.name) < _number(current.name)]
    if not older:
        raise DeliveryError(f"{root}: there is no earlier release to roll back to")
    return older[-1]


@contextmanager
def locked_root(root: Path) -> Iterator[None]:
    """Make the device root where it is not there, and keep other deliveries out of it meanwhile.

    Raises:
        DeliveryError: Another delivery is going on, or the root cannot be written.
    """
    try:
        for name in ("trusted", "incoming", "releases"):
            (root / name).mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("a")
    except OSError as error:
        raise DeliveryError(f"{root}: cannot be used as a device root ({error.strerror or error})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeliveryError(f"{root}: another delivery is going on; try again when it is done") from None
        # what a delivery that was cut off left behind
        discard(root / "staging")
        (root / ".current.new").unlink(missing_ok=True)
        for orphan in (root / "releases").glob("*.removed"):
            discard(orphan)
        yield


def discard(directory: Path) -> None:
    """Remove a directory; a release loses its name first, so that no part of it is taken for one."""
    if not directory.exists():
        return
    if directory.parent.name == "releases" and directory.suffix != ".removed":
        gone = directory.with_name(f"{directory.name}.removed")
        directory.rename(gone)
        directory = gone
    shutil.rmtree(directory, ignore_errors=True)


def next_release_name(root: Path, name: str, manifest_sha256: str) -> str:
    """Return the directory name of the next release."""
    numbers = [_number(path.name) for path in (root / "releases").glob("*")]
    return f"{max(numbers, default=0) + 1:04d}-{name}-{manifest_sha256[:12]}"


def switch(root: Path, release: Release) -> None:
    """Let a release serve; `current` names the old one or the new one at every moment."""
    temporary = root / ".current.new"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path("releases") / release.name)
    temporary.replace(root / "current")
    flush_path(root)


def highest_signed_at(root: Path) -> int:
    """Return when the newest bundle that ever served here was signed; 0 where none did."""
    path = root / "state.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["signed_at"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DeliveryError(f"{path}: damaged ({error}); remove it to accept bundles of any age") from error


def note_signed_at(root: Path, signed_at: int) -> None:
    """Remember when a bundle that is going to serve was signed."""
    write_json_atomic(root / "state.json", {"signed_at": signed_at})


def prune(root: Path, keep: int) -> list[str]:
    """Remove all but the newest `keep` releases; what serves and what served before it stay.

    Returns:
        The names that were removed.
    """
    releases, current = list_releases(root), current_release(root)
    needed = {release.name for release in releases[-keep:]}
    if current is not None:
        needed |= {current.name, current.previous or current.name}
    removed = [release for release in releases if release.name not in needed]
    for release in removed:
        discard(release.directory)
    return [release.name for release in removed]


def tree_flush(directory: Path) -> None:
    """Flush a directory with all that is in it to the disk."""
    for root, _, names in os.walk(directory, topdown=False):
        for name in names:
            flush_path(Path(root) / name)
        flush_path(Path(root))


def _number(name: str) -> int:
    found = _DIRECTORY.fullmatch(name)
    return int(found[1]) if found else 0
