"""Writing files so that an interruption leaves the old content or the new one, never a part.

Each function writes to a temporary name in the same directory, flushes it to the disk and renames
it over the final name, which POSIX makes atomic.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_path",
    "expand_home",
    "flush_path",
    "sha256_file",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_text_atomic",
]

_CHUNK = 1 << 20


def expand_home(path: str | Path) -> Path:
    """Return a path with a leading `~` or `~user` resolved, as a shell does.

    Where there is no such user the path stays as it is, so that it is missed by the name that was
    given (`Path.expanduser` raises a RuntimeError that names neither).
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that is the difference


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it to `path`.

    For writers that want a file name of their own. On an exception the temporary file is removed
    and `path` stays as it was. What is no file but a place to write to, such as `/dev/null` or a
    pipe, is itself what is yielded: it must not be replaced by a file.

    Example:
        >>> with atomic_path(Path("model.onnx")) as temporary:
        ...     onnx.save(model, temporary)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_char_device() or path.is_fifo():
        yield path
        return
    # not the whole name: with what is added it could be too long for the file system
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:16]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush_path(temporary)
        # mkstemp makes the file private; give it the mode that open() would have given
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        flush_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text_atomic(path: Path, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    write_bytes_atomic(path, content.encode())


def write_json_atomic(path: Path, content: Any) -> None:
    """Write `content` to `path` atomically as indented JSON; NaN and infinity are refused."""
    write_text_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def flush_path(path: Path) -> None:
    """Flush a file's content, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
