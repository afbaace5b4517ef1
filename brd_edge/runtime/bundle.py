"""A bundle on disk, verified before anything of it is used.

`open_bundle` checks, in this order: the signature over the manifest, the manifest itself, and that
the directory holds exactly the files that it names, with their checksums. An engine is executable
code, so no runtime sees a byte of a bundle that was not opened this way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.engine import read_engine
from brd_edge.runtime.errors import BundleError, ContractError, EngineError
from brd_edge.runtime.files import sha256_file
from brd_edge.runtime.frames import read_image
from brd_edge.runtime.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME, PLAN_GRAPH_NAME, Manifest, parse_manifest
from brd_edge.runtime.signature import SIGNATURE_BYTES_MAX, SIGNATURE_NAME, Signature, verify_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["Bundle", "open_bundle", "read_regular"]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        directory: Where it lies.
        manifest: What is in it.
        signature: Who signed it, and when.
        engines: Names of the engines and build plans that are here; a device gets those that fit it.
    """

    directory: Path
    manifest: Manifest
    signature: Signature
    engines: tuple[str, ...]

    def plan_graph(self, name: str) -> Path:
        """Return the ONNX graph that the device builds an engine from."""
        return self.directory / "engines" / name / PLAN_GRAPH_NAME

    def engine_directory(self, name: str) -> Path:
        """Return the directory of one of the engines."""
        return self.directory / "engines" / name

    def golden(self, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return a golden frame, uint8 (H, W, 3), and the class map to expect, uint8 (H, W)."""
        frame = read_image(self.directory / "golden" / f"{name}.frame.png")
        class_map = read_image(self.directory / "golden" / f"{name}.class_map.png")[:, :, 0]
        return frame, class_map


def open_bundle(
    directory: Path,
    trusted: Mapping[str, Ed25519PublicKey],
    *,
    engines: Collection[str] | None = None,
    signed: bytes | None = None,
) -> Bundle:
    """Verify a bundle's signature and every file of it.

    Args:
        directory: The bundle's directory.
        trusted: Public keys by key id.
        engines: Names of the engines that must be here, where only some were delivered; None means all.
        signed: What its signature file would hold, where it is not written yet; None reads that file.

    Raises:
        BundleError: It is unsigned, signed by somebody else, altered, incomplete, or holds more than it says.
    """
    if not directory.is_dir():
        raise BundleError(f"{directory}: expected the directory of a bundle, with {MANIFEST_NAME} in it")
    content = read_regular(directory / MANIFEST_NAME, MANIFEST_BYTES_MAX)
    if signed is None:
        if not os.path.lexists(directory / SIGNATURE_NAME):
            raise BundleError(f"{directory}: not signed (there is no {SIGNATURE_NAME}); brd-edge sign does that")
        signed = read_regular(directory / SIGNATURE_NAME, SIGNATURE_BYTES_MAX)
    signature = verify_manifest(content, signed, trusted, str(directory))
    manifest = parse_manifest(content, str(directory))
    chosen = tuple(manifest.engines) if engines is None else tuple(engines)
    unknown = sorted(set(chosen) - set(manifest.engines))
    if unknown:
        raise BundleError(f"{directory}: has no engine {unknown[0]!r}: there are {', '.join(manifest.engines)}")
    _verify_files(directory, manifest, chosen)
    bundle = Bundle(directory, manifest, signature, chosen)
    for name in chosen:
        _verify_sidecar(bundle, name)
    return bundle


def read_regular(path: Path, size_bytes_max: int) -> bytes:
    """Read a small regular file; links, devices and longer files are refused.

    Raises:
        BundleError: It is not there, not a regular file, or too long.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); get the bundle again") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: expected a plain file; get the bundle again")
        if status.st_size > size_bytes_max:
            raise BundleError(f"{path}: {status.st_size:,} bytes, at most {size_bytes_max:,} are expected")
        return file.read(size_bytes_max + 1)


def _verify_files(directory: Path, manifest: Manifest, engines: tuple[str, ...]) -> None:
    wanted = {*manifest.common_files(), *(path for name in engines for path in manifest.engine_files(name))}
    found = set(_plain_files(directory)) - {MANIFEST_NAME, SIGNATURE_NAME}
    problems = [f"{path}: missing" for path in sorted(wanted - found)]
    problems += [f"{path}: not in the manifest" for path in sorted(found - wanted)]
    for path in sorted(wanted & found):
        expected, file = manifest.files[path], directory / path
        if file.stat().st_size != expected.size_bytes:
            problems.append(f"{path}: {file.stat().st_size:,} bytes, the manifest says {expected.size_bytes:,}")
        elif sha256_file(file) != expected.sha256:
            problems.append(f"{path}: altered, its SHA-256 is not the manifest's")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        lines = "\n".join(f"  {line}" for line in problems[:10] + more)
        raise BundleError(f"{directory}: not what was signed; nothing of it was loaded, get it again\n{lines}")


def _plain_files(directory: Path) -> list[str]:
    """Return the paths of all files below a directory; anything but files and directories is refused."""
    found = []
    for root, directories, names in os.walk(directory):
        for name in (*directories, *names):
            path = Path(root) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found.append(path.relative_to(directory).as_posix())
            elif not stat.S_ISDIR(mode):
                raise BundleError(f"{path}: a link or a device; a bundle holds plain files only")
    return found


def _verify_sidecar(bundle: Bundle, name: str) -> None:
    """Compare an engine's sidecar with the manifest, which speaks for the whole bundle."""
    entry = bundle.manifest.engines[name]
    if entry.build:
        return
    try:
        info = read_engine(bundle.engine_directory(name))
    except (EngineError, ContractError) as error:
        raise BundleError(f"{bundle.directory}: engine {name} cannot be used here: {error}") from error
    mine = (entry.runtime, entry.precision, entry.target, bundle.manifest.contract.hash)
    theirs = (info.runtime, info.precision, info.target, info.contract.hash)
    if mine != theirs:
        raise BundleError(f"{bundle.directory}: engine {name}: the manifest says {mine}, its sidecar {theirs}")
