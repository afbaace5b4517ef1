"""Converting one sample into canonical form, in whatever thread or process it happens."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brd_edge.data._images import check_image, encode_png, is_turned
from brd_edge.data._journal import Converted
from brd_edge.data.dataset import find_class_pixels
from brd_edge.data.layouts.base import Source
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import sha256_file, write_bytes_atomic

__all__ = ["Job", "cannot_convert", "convert", "is_intact", "is_naming", "write_file"]

# writing atomically reads the umask by setting it, and the umask belongs to the whole process
_WRITING = threading.Lock()
# what a sample's name can be to blame for: too long, or a file where another sample needs a directory
_NAMING = frozenset({errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Job:
    """What all samples of a data set have in common.

    Attributes:
        read_label: Reads one label file as train ids.
        root: The data set's directory, resolved; no file may lie outside it.
        out: Directory to write.
    """

    read_label: Callable[[Path], NDArray[np.uint8]]
    root: Path
    out: Path


def convert(job: Job, key: str, source: Source, earlier: Converted | None) -> Converted | list[str]:
    """Convert one sample, unless that was done earlier.

    Args:
        job: What all samples have in common.
        key: `SPLIT/ID`, where the sample is written.
        source: Its files.
        earlier: What an earlier preparation made of it.

    Returns:
        The finished sample, or what is wrong with it, a sentence each.

    Raises:
        OSError: Nothing can be written.
    """
    reasons, state = _look_at(source, job.root)
    if reasons:
        return reasons
    out = job.out
    if earlier is not None and earlier.state == state and is_intact(earlier, out):
        return earlier
    image = _attempt(reasons, lambda: check_image(source.image))
    label = _attempt(reasons, lambda: job.read_label(source.label))
    if image is None or label is None:
        return reasons
    width, height, png = image
    if label.shape != (height, width):
        found = "x".join(str(size) for size in label.shape[::-1])
        turned = " once it is turned upright (EXIF orientation): turn the label, too, or remove the tag"
        turned = turned if label.shape == (width, height) and is_turned(source.image) else ""
        return [f"{source.label}: {found} pixels, but its image {source.image.name} has {width}x{height}{turned}"]
    label_path, image_path = f"labels/{key}.png", f"images/{key}.png"
    try:
        label_sha256 = write_file(out / label_path, encode_png(Image.fromarray(label)))
        image_sha256 = sha256_file(source.image) if png is None else write_file(out / image_path, png)
    except OSError as error:
        if not is_naming(error):
            raise
        return [f"{source.image}: {out / label_path} cannot be written under this name ({error.strerror}); change it"]
    return Converted(
        image=str(source.image) if png is None else image_path,
        label=label_path,
        height=height,
        width=width,
        image_sha256=image_sha256,
        label_sha256=label_sha256,
        classes=find_class_pixels(label),
        state=state,
    )


def _look_at(source: Source, root: Path) -> tuple[list[str], tuple[str | int, ...]]:
    """Return what is wrong with the files before they are read, or else their state."""
    try:
        reasons = _find_missing(source) or _find_links_out(source, root)
        return reasons, () if reasons else _state(source)
    except OSError as error:
        return [f"{error.filename}: cannot be looked at ({error.strerror}); change its permissions or its name"], ()


def _find_missing(source: Source) -> list[str]:
    halves = (("image", source.image, "label", source.label), ("label", source.label, "image", source.image))
    return [
        f"{path}: this {what} is {_kind(path)}; its {other} is {'there' if partner.is_file() else 'missing as well'}"
        for what, path, other, partner in halves
        if not path.is_file()
    ]


def _kind(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"a broken symbolic link (to {path.readlink()})"
    return "not a regular file" if path.exists() else "missing"


def _find_links_out(source: Source, root: Path) -> list[str]:
    """Find files that a symbolic link, theirs or of a directory above, takes out of the data set."""
    return [
        f"{path}: a symbolic link leads out of {root}, to {path.resolve()}; put a copy here, or give a root that "
        "holds both"
        for path in (source.image, source.label)
        if not path.resolve().is_relative_to(root)
    ]


def _attempt(reasons: list[str], read: Callable[[], Any]) -> Any:
    """Return what `read` returns; on `DataError` note the reason and return None."""
    try:
        return read()
    except DataError as error:
        reasons.append(str(error))
        return None


def _state(source: Source) -> tuple[str | int, ...]:
    """Path, size and modification time of both files."""
    image, label = source.image.stat(), source.label.stat()
    return (str(source.image), image.st_size, image.st_mtime_ns, str(source.label), label.st_size, label.st_mtime_ns)


def is_intact(item: Converted, out: Path) -> bool:
    """Say whether what was written for an unchanged source is still there, byte for byte."""
    files = {out / item.label: item.label_sha256}
    if not Path(item.image).is_absolute():
        files[out / item.image] = item.image_sha256
    return all(path.is_file() and sha256_file(path) == digest for path, digest in files.items())


def is_naming(error: OSError) -> bool:
    """Say whether a sample's name is to blame for what could not be written, and not the disk."""
    return error.errno in _NAMING


def cannot_convert(root: Path, out: Path, error: OSError) -> str:
    """Return what an error of the system while files under `root` were read, and others written to `out`, means."""
    if error.errno in _FULL:
        return f"cannot write {out} ({error.strerror}); make room there, and run it again to go on"
    return f"cannot read {root} or write {out} ({error})"


def write_file(path: Path, content: bytes) -> str:
    """Write atomically and return the SHA-256 of the content."""
    with _WRITING:
        write_bytes_atomic(path, content)
    return hashlib.sha256(content).hexdigest()
