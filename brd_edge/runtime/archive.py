"""A bundle as one `.tar.gz` file: written so that the same bundle gives the same bytes, read with suspicion.

The manifest and its signature come first. They are read and verified before anything is written
to the disk; after them only members that the manifest names are taken, each with the size and
SHA-256 that it states. Everything about a member but its content is fixed, so an archive whose
headers differ from what `write_archive` writes was altered, and is refused.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from brd_edge.runtime.bundle import Bundle, open_bundle
from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.files import atomic_path
from brd_edge.runtime.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, parse_manifest
from brd_edge.runtime.signature import SIGNATURE_BYTES_MAX, SIGNATURE_NAME, verify_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["ARCHIVE_SUFFIX", "opened_bundle", "unpack_archive", "verify_archive", "write_archive"]

ARCHIVE_SUFFIX = ".tar.gz"

# what gzip writes without a name, at time 0, at this compression level
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
_CHUNK = 1 << 20


def write_archive(path: Path, directory: Path, names: Sequence[str]) -> None:
    """Pack files of a bundle; the same files always give the same bytes.

    Args:
        path: The archive, replaced atomically.
        directory: The bundle's directory.
        names: The manifest, its signature, and then the other files, relative to the directory.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=9, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name in names:
            with (directory / name).open("rb") as file:
                tar.addfile(_member(name, (directory / name).stat().st_size), file)


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o644
    return member


def verify_archive(path: Path, trusted: Mapping[str, Ed25519PublicKey]) -> Manifest:
    """Verify an archive without writing anything to the disk.

    Raises:
        BundleError: It is unsigned, altered, or holds what no bundle holds.
    """
    return _read(path, trusted, None)


def unpack_archive(path: Path, directory: Path, trusted: Mapping[str, Ed25519PublicKey]) -> Bundle:
    """Verify an archive and unpack it into a new directory.

    Args:
        path: The archive.
        directory: Where to; must not exist yet. It appears when everything was verified.
        trusted: Public keys by key id.

    Raises:
        BundleError: The archive is refused; nothing is left behind.
    """
    if directory.exists():
        raise BundleError(f"{directory}: exists already; unpack the bundle somewhere else")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _read(path, trusted, work)
        open_bundle(work, trusted)
        work.chmod(0o755)
        work.rename(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return open_bundle(directory, trusted)


@contextmanager
def opened_bundle(path: Path, trusted: Mapping[str, Ed25519PublicKey]) -> Iterator[Bundle]:
    """Open a bundle, be it a directory or an archive; an archive is unpacked for as long as it is used."""
    if path.is_dir() or not path.exists():
        yield open_bundle(path, trusted)
        return
    with tempfile.TemporaryDirectory(prefix="brd-edge-") as work:
        yield unpack_archive(path, Path(work) / "bundle", trusted)


def _read(path: Path, trusted: Mapping[str, Ed25519PublicKey], out: Path | None) -> Manifest:
    try:
        raw = path.open("rb")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        with raw:
            return _read_members(_Inflated(raw, str(path)), path, trusted, out)
    except OSError as error:
        where = path if out is None else f"{out.parent} (unpacking {path})"
        raise BundleError(
            f"{where}: cannot be {'read' if out is None else 'written'} ({error.strerror or error})"
        ) from error
    except zlib.error as error:
        raise BundleError(f"{path}: damaged ({error}); get the bundle again") from error


def _read_members(stream: _Inflated, path: Path, trusted: Mapping[str, Ed25519PublicKey], out: Path | None) -> Manifest:
    manifest_bytes = stream.member(MANIFEST_NAME, MANIFEST_BYTES_MAX)
    signature_bytes = stream.member(SIGNATURE_NAME, SIGNATURE_BYTES_MAX)
    verify_manifest(manifest_bytes, signature_bytes, trusted, str(path))
    manifest = parse_manifest(manifest_bytes, str(path))
    if out is not None:
        (out / MANIFEST_NAME).write_bytes(manifest_bytes)
        (out / SIGNATURE_NAME).write_bytes(signature_bytes)
    for name in sorted(manifest.files):
        expected = manifest.files[name]
        size_bytes = stream.header(name)
        if size_bytes != expected.size_bytes:
            raise BundleError(f"{path}: {name}: {size_bytes:,} bytes, the manifest says {expected.size_bytes:,}")
        digest = hashlib.sha256()
        with _target(out, name) as file:
            for chunk in stream.content(size_bytes):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != expected.sha256:
            raise BundleError(f"{path}: {name}: altered, its SHA-256 is not the manifest's; get the bundle again")
    stream.end()
    return manifest


@contextmanager
def _target(out: Path | None, name: str) -> Iterator[IO[bytes]]:
    if out is None:
        with io.BytesIO() as nowhere:
            yield nowhere
        return
    file = out / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as opened:
        yield opened


class _Inflated:
    """The tar stream inside an archive, read forwards, with every byte that is not content checked."""

    def __init__(self, raw: IO[bytes], what: str) -> None:
        self._raw, self._what = raw, what
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._crc, self._count = 0, 0
        header = raw.read(len(_GZIP_HEADER))
        if header != _GZIP_HEADER:
            raise BundleError(f"{what}: not an archive that brd-edge wrote (gzip header {header.hex()})")

    def read(self, size_bytes: int) -> bytes:
        """Return exactly so many bytes."""
        parts, missing = [], size_bytes
        while missing and not self._inflate.eof:
            source = self._inflate.unconsumed_tail or self._raw.read(_CHUNK)
            part = self._inflate.decompress(source, missing)
            if not part and not source:
                break
            parts.append(part)
            missing -= len(part)
        if missing:
            raise BundleError(f"{self._what}: ends too early; get the bundle again")
        content = b"".join(parts)
        self._crc, self._count = zlib.crc32(content, self._crc), self._count + size_bytes
        return content

    def header(self, name: str) -> int:
        """Read a member's header and return its size; it must be the plain file `name`, as we write it."""
        block = self.read(tarfile.BLOCKSIZE)
        try:
            found = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise BundleError(f"{self._what}: expected {name}, got a damaged member ({error})") from error
        pure = PurePosixPath(found.name)
        reason = ""
        if pure.is_absolute() or ".." in pure.parts:
            reason = "its path leads out of the bundle"
        elif found.issym() or found.islnk():
            reason = "it is a link"
        elif found.isdev():
            reason = "it is a device"
        elif not found.isreg():
            reason = "it is not a plain file"
        if reason:
            raise BundleError(f"{self._what}: member {found.name!r} is refused: {reason}")
        if name == SIGNATURE_NAME and found.name != name:
            raise BundleError(f"{self._what}: not signed (there is no {name} in it); brd-edge sign does that")
        if found.name != name:
            raise BundleError(f"{self._what}: expected {name}, got {found.name!r}: not what was signed")
        if _member(name, found.size).tobuf(tarfile.USTAR_FORMAT) != block:
            raise BundleError(f"{self._what}: the header of {name} was altered; get the bundle again")
        return found.size

    def content(self, size_bytes: int) -> Iterator[bytes]:
        """Yield a member's content in parts, then skip its padding."""
        for start in range(0, size_bytes, _CHUNK):
            yield self.read(min(_CHUNK, size_bytes - start))
        self._zeros(-size_bytes % tarfile.BLOCKSIZE)

    def member(self, name: str, size_bytes_max: int) -> bytes:
        """Read one whole small member."""
        size_bytes = self.header(name)
        if size_bytes > size_bytes_max:
            raise BundleError(f"{self._what}: {name}: {size_bytes:,} bytes, at most {size_bytes_max:,} are expected")
        return b"".join(self.content(size_bytes))

    def end(self) -> None:
        """Check that nothing follows but the padding and the checksums."""
        blocks = 2 * tarfile.BLOCKSIZE
        self._zeros(blocks + -(self._count + blocks) % tarfile.RECORDSIZE)
        rest = self._inflate.unconsumed_tail
        more = self._inflate.decompress(rest or self._raw.read(_CHUNK), 1) if not self._inflate.eof else b""
        trailer = self._inflate.unused_data + self._raw.read(9)
        expected = self._crc.to_bytes(4, "little") + (self._count % (1 << 32)).to_bytes(4, "little")
        if more or not self._inflate.eof or trailer != expected:
            raise BundleError(f"{self._what}: something follows the bundle, or its end is damaged; get it again")

    def _zeros(self, size_bytes: int) -> None:
        if self.read(size_bytes).strip(b"\0"):
            raise BundleError(f"{self._what}: something is hidden between the members; get the bundle again")
