"""Listing image directories and reading id images, shared by the layouts."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brd_edge.data._images import require_whole_png
from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.layouts.base import Source
from brd_edge.runtime.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "as_text",
    "bare_name",
    "list_files",
    "map_ids",
    "open_label",
    "pair_directories",
    "read_ids",
    "read_names",
    "read_text",
    "walk_files",
]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

_SHOWN_IDS = 10
_ID_LIMIT = 65536
_UNKNOWN = -1
_LOSSY = frozenset({"JPEG", "MPO", "WEBP", "JPEG2000"})
_DROPPINGS = frozenset({"Thumbs.db", "desktop.ini"})


def list_files(directory: Path, suffixes: frozenset[str]) -> tuple[dict[str, Path], list[str]]:
    """List the files under `directory` by their path without suffix, sub-directories included.

    Hidden files and what file managers leave behind do not count. Ids are text whatever the names are, as `as_text`
    makes it.

    Args:
        directory: Where to look.
        suffixes: Lower-case suffixes that belong there.

    Returns:
        The files by id, sorted, and one sentence for each file that does not belong or has a namesake.
    """
    files: dict[str, Path] = {}
    paths, problems = walk_files(directory)
    for path in paths:
        name = as_text(path.relative_to(directory).with_suffix("").as_posix())
        if path.suffix.lower() not in suffixes:
            problems.append(f"{path}: not one of {', '.join(sorted(suffixes))}; convert it or move it away")
        elif name in files:
            problems.append(f"{path}: the same name as {files[name].name}; keep one of them")
        else:
            files[name] = path
    return files, problems


def as_text(name: str) -> str:
    r"""Return a file name in composed form (NFC), with escapes, as in `caf\udce9`, for bytes that are not UTF-8.

    Some file systems and archives, those of macOS among them, take letters with accents apart: the same name in two
    forms, which looks the same, is one. For bytes that are not UTF-8 Python has lone surrogates, which no file format
    takes.
    """
    return unicodedata.normalize("NFC", name.encode(errors="backslashreplace").decode())


def walk_files(
    directory: Path, *, skip: Callable[[Path], bool] = lambda _directory: False
) -> tuple[list[Path], list[str]]:
    """List all files under `directory` that do not lie in hidden directories and are not hidden themselves.

    Args:
        directory: Where to look.
        skip: Whether a directory below it is left out, with all that it holds.

    Returns:
        The files, sorted, and one sentence for each directory that cannot be listed and for each link to a
        directory, which is not followed because it may lead anywhere, even back to where it is.
    """
    problems: list[str] = []
    paths: list[Path] = []

    def note(error: OSError) -> None:
        problems.append(f"{error.filename}: this directory cannot be read ({error.strerror}); change its permissions")

    for base, directories, names in os.walk(directory, onerror=note):
        hidden = [name for name in directories if name.startswith(".")]
        links = [name for name in directories if (Path(base) / name).is_symlink() and name not in hidden]
        problems += [
            f"{Path(base) / name}: a link to a directory, which is not followed; put it here" for name in links
        ]
        directories[:] = [name for name in directories if name not in hidden and not skip(Path(base, name))]
        paths += [Path(base) / name for name in names if not name.startswith(".") and name not in _DROPPINGS]
    return sorted(paths), problems


def pair_directories(images: Path, labels: Path, label_suffix: str = ".png") -> tuple[tuple[Source, ...], list[str]]:
    """Pair the files of two directories by name.

    All labels may have one ending more than their images, as in `a_mask.png` beside `a.jpg`. A file without its other
    half still makes a pair, whose missing path is where the half should be.

    Returns:
        The pairs, sorted by id, and one sentence for each file that does not belong.
    """
    image_files, image_problems = list_files(images, IMAGE_SUFFIXES)
    label_files, label_problems = list_files(labels, frozenset({label_suffix}))
    ending = _common_ending(image_files, label_files)
    label_files = {name.removesuffix(ending): path for name, path in label_files.items()}
    # a lone label most likely lacks an image of the kind that its neighbours are
    usual = next(iter(image_files.values())).suffix if image_files else ".png"
    pairs = []
    for name in sorted(image_files.keys() | label_files.keys()):
        image, label = image_files.get(name), label_files.get(name)
        if image is None and label is not None:
            image = images / label.relative_to(labels).with_suffix(usual)
        elif label is None and image is not None:
            bare = image.relative_to(images).with_suffix("")
            label = labels / bare.with_name(f"{bare.name}{ending}{label_suffix}")
        if image is not None and label is not None:
            pairs.append(Source(name, image, label))
    return tuple(pairs), image_problems + label_problems


def _common_ending(images: Mapping[str, Path], labels: Mapping[str, Path]) -> str:
    """Return what the names of all labels have behind an image's name, such as `_mask`; nothing where some have not."""
    if not labels or images.keys() & labels.keys():
        return ""
    first = next(iter(labels))
    # names may end like others begin, as 1 and 10 do: an ending begins with a sign
    endings = {first[at:] for at in range(1, len(first)) if first[at] in "_-. " and first[:at] in images}
    found = [end for end in endings if all(n.endswith(end) and n.removesuffix(end) in images for n in labels)]
    return found[0] if len(found) == 1 else ""


def read_names(path: Path) -> list[str]:
    """Read a list file of one sample a line: a name, or the paths of image and label, and return the names.

    Raises:
        DataError: The file cannot be read as text.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    return [bare_name(_first_path(line)) for line in lines if line]


def _first_path(line: str) -> str:
    """Return the first of the paths on a line; a single name may hold blanks."""
    words = line.split()
    are_paths = len(words) > 1 and all(PurePosixPath(word).suffix.lower() in IMAGE_SUFFIXES for word in words)
    return words[0] if are_paths else line


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        DataError: The file cannot be read as text.
    """
    # a pipe or a device would be read for ever
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: cannot be read as text (it is not a regular file)")
    try:
        # Windows programs begin text with a byte order mark
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error


def bare_name(word: str) -> str:
    """Return the file name in `word` without directories and image suffix; ids with dots stay whole."""
    path = PurePosixPath(word)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def read_ids(path: Path) -> NDArray[Any]:
    """Read a single-channel image as the ids that it stores, palette images by their indices.

    Args:
        path: Greyscale (1 to 16 bits) or palette image.

    Returns:
        Integer array (height, width).

    Raises:
        DataError: The file cannot be read or has several channels.
    """
    content, image = open_label(path)
    mode, ids = image.mode, np.array(image)
    if mode not in {"1", "L", "P", "I", "I;16", "I;16B"}:
        raise DataError(f"{path}: expected a single-channel image of ids, got mode {mode}; export ids, not colours")
    if mode == "1":
        return ids.astype(np.uint8)
    return ids // (_grey_scale(content) if mode == "L" else 1)


def open_label(path: Path) -> tuple[bytes, Image.Image]:
    """Read a label file in full.

    Returns:
        The file's content, and its first picture, decoded.

    Raises:
        DataError: The file cannot be read, is damaged, or was compressed so that ids change.
    """
    try:
        content = path.read_bytes()
        require_whole_png(content)
        with Image.open(path) as image:
            image.load()
    # Pillow raises many kinds for damaged files, IndexError and struct.error among them
    except Exception as error:
        raise DataError(f"{path}: the label cannot be read ({error}); replace it with an intact copy") from error
    if image.format in _LOSSY:
        raise DataError(f"{path}: a label compressed as {image.format}, which changes ids; export PNG")
    return content, image


def _grey_scale(content: bytes) -> int:
    """Return the factor by which Pillow stretches greyscale PNGs of 2 and 4 bits to 8 bits."""
    # PNG specification, IHDR: the bit depth is byte 24 of the file, the colour type byte 25 (0 is grey)
    is_grey_png = content[1:4] == b"PNG" and content[25] == 0
    return {2: 85, 4: 17}.get(content[24], 1) if is_grey_png else 1


def map_ids(ids: NDArray[Any], table: Mapping[int, int], path: Path, *, remedy: str = "") -> NDArray[np.uint8]:
    """Replace ids by train ids.

    Args:
        ids: Integer array of any shape.
        table: Train id (or 255) by id; ids are 0 to 65535.
        path: File that the ids come from, for the message.
        remedy: What to do about ids that are not in the table, where the user can, for the message.

    Returns:
        uint8 array of the same shape.

    Raises:
        DataError: An id is not in the table.
    """
    lookup = np.full(_ID_LIMIT + 1, _UNKNOWN, np.int16)
    lookup[list(table)] = list(table.values())
    # what no table can hold lands on the last entry, which stays unknown
    if ids.dtype == np.uint8:
        small = ids
    else:
        # 16-bit ids could not be compared with, or replaced by, a limit that needs 17 bits
        wide = ids.astype(np.int64)
        small = np.where((wide >= 0) & (wide < _ID_LIMIT), wide, _ID_LIMIT)
    mapped: NDArray[np.int16] = lookup[small]
    unknown = mapped == _UNKNOWN
    if unknown.any():
        raise DataError(f"{path}: {_describe_unknown(ids, unknown, table)}{remedy and f'; {remedy}'}")
    return mapped.astype(np.uint8)


def _describe_unknown(ids: NDArray[Any], unknown: NDArray[np.bool_], table: Mapping[int, int]) -> str:
    values = [int(value) for value in np.unique(ids[unknown])]
    shown = ", ".join(map(str, values[:_SHOWN_IDS])) + (", ..." if len(values) > _SHOWN_IDS else "")
    known = sorted(key for key, value in table.items() if value != IGNORE_ID)
    ignored = sorted(key for key, value in table.items() if value == IGNORE_ID)
    ignoring = f" and {_ranges(ignored)} (ignored)" if ignored else ""
    count = int(unknown.sum())
    return f"unknown id {shown} in {count} of {ids.size} pixels; expected {_ranges(known)}{ignoring}"


def _ranges(values: list[int]) -> str:
    """Write sorted integers as `0-10, 12`."""
    parts: list[tuple[int, int]] = []
    for value in values:
        if parts and value == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], value)
        else:
            parts.append((value, value))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
