"""The canonical form of a data set: an index, RGB images, and label PNGs of train ids.

After preparation nothing knows where a data set came from. `index.json` lists every sample with its
native size and the checksums of its two files; labels are single-channel 8-bit PNGs whose pixels are
train ids, with 255 for pixels that are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import sha256_file, write_json_atomic
from brd_edge.runtime.frames import UNREADABLE, fit_frame, read_image

__all__ = [
    "IGNORE_ID",
    "INDEX_NAME",
    "INDEX_VERSION",
    "Dataset",
    "Sample",
    "hold_out_split",
    "load_dataset",
    "read_frame",
    "read_label",
    "save_index",
]

IGNORE_ID = 255
"""The train id of pixels that neither train nor count."""

INDEX_NAME = "index.json"
INDEX_VERSION = 1

_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Sample:
    """One image and its label.

    Attributes:
        id: Name of the sample, unique in its split.
        image: 8-bit RGB image (JPEG or PNG) at native size.
        label: Single-channel 8-bit PNG of train ids at the same size, 255 ignored.
        height: Rows of both files, in pixels.
        width: Columns of both files, in pixels.
    """

    id: str
    image: Path
    label: Path
    height: int
    width: int


@dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    Attributes:
        name: Name of the data set.
        classes: Class names; the position is the train id.
        palette: One RGB colour (0 to 255) a class, for pictures.
        train: Samples to train on.
        val: Samples to validate on.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]


def save_index(directory: Path, dataset: Dataset, *, checksums: Mapping[Path, str] | None = None) -> Path:
    """Write `directory/index.json` atomically.

    Args:
        directory: Where the index goes; files inside it are named relative to it, others absolutely.
        dataset: What to write.
        checksums: SHA-256 digests already known, by the samples' paths; the others are computed.

    Returns:
        The path of the index.
    """
    known = checksums or {}

    def entry(sample: Sample) -> dict[str, Any]:
        return {
            "id": sample.id,
            "image": _portable(sample.image, directory),
            "label": _portable(sample.label, directory),
            "height": sample.height,
            "width": sample.width,
            "image_sha256": known.get(sample.image) or sha256_file(sample.image),
            "label_sha256": known.get(sample.label) or sha256_file(sample.label),
        }

    path = directory / INDEX_NAME
    write_json_atomic(
        path,
        {
            "version": INDEX_VERSION,
            "name": dataset.name,
            "classes": list(dataset.classes),
            "palette": [list(color) for color in dataset.palette],
            "splits": {
                "train": [entry(sample) for sample in dataset.train],
                "val": [entry(sample) for sample in dataset.val],
            },
        },
    )
    return path


def hold_out_split(dataset: Dataset, pattern: str) -> Dataset:
    """Validate on some of the train samples instead of the validation split.

    Video data sets often cut their validation split out of the train sequences, which flatters
    overfitting; holding out whole sequences does not.

    Args:
        dataset: The data set as published; its validation split is left out of the result.
        pattern: Shell pattern of sample ids, for example `0001TP_*`.

    Returns:
        The data set whose validation split is the matching train samples, and whose train split is the rest.

    Raises:
        DataError: No train sample matches, or all do.
    """
    held = tuple(sample for sample in dataset.train if fnmatchcase(sample.id, pattern))
    kept = tuple(sample for sample in dataset.train if not fnmatchcase(sample.id, pattern))
    if not held or not kept:
        few = ", ".join(sample.id for sample in dataset.train[:3])
        raise DataError(
            f"data.hold_out: {pattern!r} matches {len(held)} of {len(dataset.train)} train images; "
            f"expected some but not all. Ids look like {few}"
        )
    return replace(dataset, train=kept, val=held)


def load_dataset(directory: Path) -> Dataset:
    """Read and check `directory/index.json`.

    Every sample's files must exist; their content is not read here.

    Args:
        directory: A directory that preparation wrote.

    Returns:
        The data set, with paths that do not depend on the working directory's index.

    Raises:
        DataError: The index is missing or damaged, or names a file that is not there; the message names
            the file and the key.

    Example:
        >>> dataset = load_dataset(Path("runs/quickstart/prepare"))
        >>> len(dataset.train), dataset.classes[0]
    """
    path = directory / INDEX_NAME
    values = _read_json(path)
    version = _field(path, values, "version", int, "")
    if version != INDEX_VERSION:
        raise DataError(f"{path}: version: expected {INDEX_VERSION}, got {version}; prepare the data set again")
    classes = tuple(_strings(path, _field(path, values, "classes", list, ""), "classes"))
    palette = tuple(_color(path, color, i) for i, color in enumerate(_field(path, values, "palette", list, "")))
    if not 1 <= len(classes) <= IGNORE_ID:
        raise DataError(f"{path}: classes: expected 1 to {IGNORE_ID} names, got {len(classes)}")
    if len(palette) != len(classes):
        raise DataError(f"{path}: palette: expected one colour a class ({len(classes)}), got {len(palette)}")
    splits = _field(path, values, "splits", dict, "")
    train, val = (_samples(path, _field(path, splits, name, list, "splits."), name) for name in _SPLITS)
    return Dataset(_field(path, values, "name", str, ""), classes, palette, train, val)


def read_frame(sample: Sample, contract: InputContract) -> NDArray[np.uint8]:
    """Read a sample's image at the contract's size.

    Args:
        sample: The sample to read.
        contract: Gives height and width; the resize rule is Pillow's anti-aliased `BILINEAR`.

    Returns:
        uint8 array (contract.height, contract.width, 3), RGB, 0 to 255, C-contiguous and writable.

    Raises:
        DataError: The image cannot be read.
    """
    try:
        return fit_frame(read_image(sample.image), contract)
    except DataError as error:
        raise DataError(f"{error}; prepare the data set again") from error


def read_label(sample: Sample) -> NDArray[np.uint8]:
    """Read a sample's label at its native size.

    Args:
        sample: The sample to read.

    Returns:
        uint8 array (sample.height, sample.width) of train ids, 255 ignored, C-contiguous and writable.

    Raises:
        DataError: The label cannot be read, is not a single-channel 8-bit image, or has another size.
    """
    try:
        with Image.open(sample.label) as opened:
            mode, label = opened.mode, np.array(opened)
    except UNREADABLE as error:
        raise DataError(f"{sample.label}: the label cannot be read ({error}); prepare the data set again") from error
    if mode not in {"L", "P"} or label.shape != (sample.height, sample.width):
        raise DataError(
            f"{sample.label}: expected a single-channel 8-bit label of {sample.width}x{sample.height} pixels, "
            f"got mode {mode} of {'x'.join(map(str, label.shape[1::-1]))}; prepare the data set again"
        )
    return label


def _portable(path: Path, directory: Path) -> str:
    """Name `path` relative to `directory` where it lies inside, else absolutely."""
    absolute, base = path.absolute(), directory.absolute()
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else str(absolute)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no index here; prepare the data set first")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); prepare the data set again") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(values).__name__}; prepare the data set again")
    return values


def _field(path: Path, values: Mapping[str, Any], key: str, kind: type, prefix: str) -> Any:
    """Return `values[key]` when it is there and of the JSON type `kind`."""
    if key not in values:
        raise DataError(f"{path}: {prefix}{key}: missing; prepare the data set again")
    value = values[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{path}: {prefix}{key}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _strings(path: Path, values: list[Any], key: str) -> list[str]:
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{path}: {key}[{i}]: expected str, got {type(value).__name__}")
    return values


def _color(path: Path, value: Any, i: int) -> tuple[int, int, int]:
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return (value[0], value[1], value[2])
    raise DataError(f"{path}: palette[{i}]: expected [red, green, blue] from 0 to 255, got {value!r}")


def _samples(path: Path, entries: list[Any], split: str) -> tuple[Sample, ...]:
    if not entries:
        raise DataError(f"{path}: splits.{split}: expected at least one sample, got none; prepare the data set again")
    samples = tuple(_sample(path, entry, f"splits.{split}[{i}]") for i, entry in enumerate(entries))
    seen: set[str] = set()
    for i, sample in enumerate(samples):
        if sample.id in seen:
            raise DataError(f"{path}: splits.{split}[{i}].id: {sample.id!r} is there twice; prepare the data set again")
        seen.add(sample.id)
    return samples


def _sample(path: Path, entry: Any, where: str) -> Sample:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: {where}: expected an object, got {type(entry).__name__}")
    files = {}
    for key in ("image", "label"):
        files[key] = path.parent / _field(path, entry, key, str, f"{where}.")
        if not files[key].is_file():
            raise DataError(f"{path}: {where}.{key}: no file at {files[key]}; put it back or prepare again")
        digest = _field(path, entry, f"{key}_sha256", str, f"{where}.")
        if len(digest) != 64:
            raise DataError(f"{path}: {where}.{key}_sha256: expected 64 hexadecimal digits, got {digest!r}")
    sizes = {key: _field(path, entry, key, int, f"{where}.") for key in ("height", "width")}
    for key, size in sizes.items():
        if size < 1:
            raise DataError(f"{path}: {where}.{key}: expected at least 1, got {size}")
    return Sample(_field(path, entry, "id", str, f"{where}."), files["image"], files["label"], **sizes)
