"""The index of a prepared data set: `index.json`, written atomically and checked when it is read.

One entry a sample, one line each: id, image, label (relative to the index where they lie beside it, else
absolute), height, width, the SHA-256 of both files, and `classes`: for each class in the label
`[train id, pixels, row, column, row, column, …]`, its size and a few of its pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brd_edge.data.dataset import IGNORE_ID, ClassPixels, Dataset, Sample
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import sha256_file, write_text_atomic

__all__ = [
    "INDEX_NAME",
    "INDEX_VERSION",
    "load_checksums",
    "load_contents",
    "load_dataset",
    "load_essence",
    "save_index",
]

INDEX_NAME = "index.json"
INDEX_VERSION = 2

_SPLITS = ("train", "val")


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
            "classes": [found.to_json() for found in sample.classes],
        }

    head = {
        "version": INDEX_VERSION,
        "name": dataset.name,
        "classes": list(dataset.classes),
        "palette": [list(color) for color in dataset.palette],
    }
    # a line a sample: indented numbers would make the index of a large data set ten times as long
    splits = (
        f'  "{name}": [\n    ' + ",\n    ".join(json.dumps(entry(sample)) for sample in samples) + "\n  ]"
        for name, samples in zip(_SPLITS, (dataset.train, dataset.val), strict=True)
    )
    lines = [*(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())]
    lines.append(' "splits": {\n' + ",\n".join(splits) + "\n }")
    path = directory / INDEX_NAME
    write_text_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


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
    train, val = (_samples(path, _field(path, splits, name, list, "splits."), name, len(classes)) for name in _SPLITS)
    return Dataset(_field(path, values, "name", str, ""), classes, palette, train, val)


def load_checksums(directory: Path) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of every image, by split and id, of a prepared directory.

    Raises:
        DataError: The index is missing or damaged.
    """
    path = directory / INDEX_NAME
    splits = _field(path, _read_json(path), "splits", dict, "")
    return {
        split: {str(entry["id"]): str(entry["image_sha256"]) for entry in _field(path, splits, split, list, "splits.")}
        for split in _SPLITS
    }


def load_contents(directory: Path) -> dict[str, str]:
    """Return what tells the content of every validation sample, by id; the samples' files need not be there.

    Of the image it is the file's SHA-256. Of the label it is what the index says of its pixels, because its file is
    written by preparation, and another version of the PNG writer writes other bytes for the same pixels.

    Raises:
        DataError: The index is missing or damaged.
    """
    path = directory / INDEX_NAME
    found = {}
    for i, entry in enumerate(_field(path, _field(path, _read_json(path), "splits", dict, ""), "val", list, "splits.")):
        where = f"splits.val[{i}]"
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {where}: expected an object, got {type(entry).__name__}")
        kinds = {"id": str, "image_sha256": str, "height": int, "width": int, "classes": list}
        name, *content = (_field(path, entry, key, kind, f"{where}.") for key, kind in kinds.items())
        found[name] = json.dumps(content)
    return found


def load_essence(directory: Path) -> dict[str, Any]:
    """Return the index without the places of images and labels: what trainings and scores follow from.

    Raises:
        DataError: The index is missing or damaged.
    """
    path = directory / INDEX_NAME
    values = _read_json(path)
    splits = {name: _field(path, _field(path, values, "splits", dict, ""), name, list, "splits.") for name in _SPLITS}
    places = ("image", "label")
    bare = {
        name: [{key: value for key, value in entry.items() if key not in places} for entry in entries]
        for name, entries in splits.items()
    }
    return {**values, "splits": bare}


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


def _samples(path: Path, entries: list[Any], split: str, classes: int) -> tuple[Sample, ...]:
    if not entries:
        raise DataError(f"{path}: splits.{split}: expected at least one sample, got none; prepare the data set again")
    samples = tuple(_sample(path, entry, f"splits.{split}[{i}]", classes) for i, entry in enumerate(entries))
    seen: set[str] = set()
    for i, sample in enumerate(samples):
        if sample.id in seen:
            raise DataError(f"{path}: splits.{split}[{i}].id: {sample.id!r} is there twice; prepare the data set again")
        seen.add(sample.id)
    return samples


def _sample(path: Path, entry: Any, where: str, classes: int) -> Sample:
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
    found = tuple(
        _class_pixels(path, value, f"{where}.classes[{i}]", classes, sizes)
        for i, value in enumerate(_field(path, entry, "classes", list, f"{where}."))
    )
    return Sample(_field(path, entry, "id", str, f"{where}."), files["image"], files["label"], **sizes, classes=found)


def _class_pixels(path: Path, value: Any, where: str, classes: int, sizes: Mapping[str, int]) -> ClassPixels:
    if not isinstance(value, list) or len(value) < 4 or len(value) % 2 or not all(type(v) is int for v in value):
        raise DataError(f"{path}: {where}: expected [id, pixels, row, column, ...], got {value!r}")
    found = ClassPixels.from_json(value)
    inside = all(0 <= row < sizes["height"] and 0 <= column < sizes["width"] for row, column in found.points)
    if not (0 <= found.id < classes and found.count >= 1 and inside):
        raise DataError(
            f"{path}: {where}: expected an id below {classes}, at least 1 pixel, and points inside the image, "
            f"got {value!r}; prepare the data set again"
        )
    return found
