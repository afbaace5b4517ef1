"""A user's own data set: directories of images and labels beside a `classes.yaml`.

`classes.yaml` names the classes, and may give their colours and what is ignored:

    names: [road, car, person]            # or {7: road, 26: car, 24: person}: names by id
    colors: [[128, 64, 128], [0, 0, 142], [220, 20, 60]]     # optional, in the order of names, or by id
    ignore: 255                           # optional, an id or several; 255 by default
    ignore_color: [0, 0, 0]               # optional, for labels that are colour images

A list of names gives the ids 0, 1, 2, ...; train ids follow the order of the ids. Label files are
single-channel images of ids, or, where `colors` is given, RGB or palette images of exactly those colours.
A palette none of whose used colours is in `classes.yaml`, or that is plain grey levels, colours ids. Where
all of `colors` are grey, as black and white of a mask are, a file of those levels alone is read by them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from reprlib import repr as shorten  # a few lines of YAML can stand for gigabytes of text
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.layouts._files import map_ids, open_label, pair_directories, read_ids, read_text
from brd_edge.data.layouts.base import Content, Layout, Palette, make_palette
from brd_edge.runtime.errors import DataError
from brd_edge.unique_yaml import parse_yaml

__all__ = ["LAYOUT"]

Color = tuple[int, int, int]

_KEYS = ("names", "colors", "ignore", "ignore_color")
_MAX_ID = 65535
_SHOWN_COLORS = 10
_BLACK = (0, 0, 0)

_TREE = """
classes.yaml                                (names: [road, car, ...], optionally colors and ignore)
images/
    train/*.png (or .jpg, ...)
    val/*.png (or .jpg, ...)
labels/
    train/*.png                             (the same names as the images, or all with one ending more)
    val/*.png
"""


@dataclass(frozen=True)
class _Classes:
    """What `classes.yaml` says, names and colours by id in ascending order.

    Attributes:
        names: Names by id.
        colors: Colours by id; empty where there are none.
        ignored: Ids that are void.
        chosen: Whether `ignored` is what the file says, and not what is usual.
        ignored_color: The colour that is void.
    """

    names: dict[int, str]
    colors: dict[int, Color]
    ignored: tuple[int, ...]
    chosen: bool
    ignored_color: Color | None


def _read_classes(path: Path) -> _Classes:
    text = read_text(path)
    try:
        values = parse_yaml(text)
    # besides its own errors YAML passes on those of int(), of dates such as 2001-99-99, of deep nesting, and more
    except Exception as error:
        raise DataError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(values, dict) or "names" not in values:
        raise DataError(f"{path}: expected the key 'names' with the class names, as in 'names: [road, car]'")
    unknown = [key for key in values if key not in _KEYS]
    if unknown:
        raise DataError(f"{path}: unknown key {unknown[0]!r}; there are {', '.join(_KEYS)}")
    written = _by_id(path, "names", values["names"], None)
    names = dict(sorted(written.items()))
    for number, name in written.items():
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: names: expected text for id {number}, got {shorten(name)}")
    if len(set(names.values())) != len(names) or not 1 <= len(names) <= IGNORE_ID:
        given = list(names.values())
        twice = sorted({name for name in given if given.count(name) > 1})
        what = f"{', '.join(map(repr, twice))} more than once" if twice else f"{len(given)} names"
        raise DataError(f"{path}: names: expected 1 to {IGNORE_ID} different names, got {what}")
    colors = _colors(path, values.get("colors"), written)
    ignored_color = None if values.get("ignore_color") is None else _color(path, "ignore_color", values["ignore_color"])
    if ignored_color in colors.values():
        raise DataError(f"{path}: ignore_color: {list(ignored_color or ())} is a class's colour as well")
    usual: list[int] = [] if IGNORE_ID in names else [IGNORE_ID]
    ignored = _ignored(path, values.get("ignore", usual), names)
    return _Classes(names, colors, ignored, "ignore" in values, ignored_color)


def _by_id(path: Path, key: str, value: Any, ids: list[int] | None) -> dict[int, Any]:
    """Read a list (in the order of `ids`, or of 0, 1, 2, ...) or a mapping by id, as it is written."""
    if isinstance(value, list) and value:
        if ids is not None and len(value) != len(ids):
            raise DataError(f"{path}: {key}: expected {len(ids)} entries, one a name, got {len(value)}")
        return dict(zip(ids if ids is not None else range(len(value)), value, strict=True))
    if isinstance(value, dict) and value and all(_is_id(number) for number in value):
        if ids is not None and sorted(value) != sorted(ids):
            raise DataError(f"{path}: {key}: expected the ids {sorted(ids)}, as in names, got {sorted(value)}")
        return dict(value)
    raise DataError(f"{path}: {key}: expected a list, or a mapping by id (0 to {_MAX_ID}), got {shorten(value)}")


def _colors(path: Path, value: Any, names: Mapping[int, str]) -> dict[int, Color]:
    if value is None:
        return {}
    entries = _by_id(path, "colors", value, list(names))
    colors = {number: _color(path, f"colors: {names[number]}", color) for number, color in entries.items()}
    if len(set(colors.values())) != len(colors):
        raise DataError(f"{path}: colors: two classes have the same colour; give each its own")
    return dict(sorted(colors.items()))


def _color(path: Path, key: str, value: Any) -> Color:
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return (value[0], value[1], value[2])
    raise DataError(f"{path}: {key}: expected [red, green, blue] from 0 to 255, got {shorten(value)}")


def _ignored(path: Path, value: Any, names: Mapping[int, str]) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    for number in ids:
        if not _is_id(number):
            raise DataError(
                f"{path}: ignore: expected an id from 0 to {_MAX_ID}, or a list of them, got {shorten(value)}"
            )
        if number in names:
            raise DataError(
                f"{path}: ignore: {number} is the id of {names[number]!r} as well; "
                "where an id below the classes is void, give names by id, as in 'names: {1: road, 2: car}'"
            )
    return tuple(ids)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ID


def _read_label(path: Path, *, classes: _Classes) -> NDArray[np.uint8]:
    numbers = {number: i for i, number in enumerate(classes.names)}
    table = {color: numbers[number] for number, color in classes.colors.items()}
    if classes.ignored_color is not None:
        table[classes.ignored_color] = IGNORE_ID
    _, image = open_label(path)
    if image.mode in {"RGB", "RGBA"}:
        if not classes.colors:
            raise DataError(f"{path}: the label is a colour image; export ids, or give colors in classes.yaml")
        return _map_colors(np.array(image.convert("RGB")), table, path)
    mapped = None
    if classes.colors and image.mode == "P" and not _is_plain(_entries(image)):
        mapped = _map_palette(image, table, classes.ignored, path)
    elif classes.colors and image.mode in {"1", "L", "P"}:
        mapped = _map_greys(image, table, classes, path)
    if mapped is not None:
        return mapped
    remedy = "what is void stands under `ignore` in classes.yaml"
    return map_ids(read_ids(path), {**dict.fromkeys(classes.ignored, IGNORE_ID), **numbers}, path, remedy=remedy)


def _map_palette(
    image: Image.Image, table: Mapping[Color, int], ignored: tuple[int, ...], path: Path
) -> NDArray[np.uint8] | None:
    """Replace the indices of a palette image by the train ids of their colours.

    Tools that save colours as a palette order it as they like, so its indices are no ids.

    Returns:
        uint8 (height, width); None where the palette knows none of the colours, so that the indices are ids.
    """
    entries = _entries(image)
    indices = np.array(image)
    used = np.unique(indices).tolist()
    found = {i: table[entries[i]] for i in used if i < len(entries) and entries[i] in table}
    if not found:
        return None
    # the colour of the usual 255 is seldom listed, nor is the black of what nobody drew; void they are either way
    unlisted = {i for i in used if i in ignored and (i == IGNORE_ID or entries[i : i + 1] in ([], [_BLACK]))}
    strange = [i for i in used if i not in found and i not in unlisted]
    if strange:
        names = [str(list(entries[i])) if i < len(entries) else f"none (index {i})" for i in strange[:_SHOWN_COLORS]]
        shown = ", ".join(names)
        more = ", ..." if len(strange) > _SHOWN_COLORS else ""
        raise DataError(
            f"{path}: unknown color {shown}{more} in the palette, beside colors of classes.yaml; "
            "add it there (colors or ignore_color), or, where the file holds ids, export it without a palette"
        )
    lookup = np.full(256, IGNORE_ID, np.uint8)
    lookup[list(found)] = list(found.values())
    mapped: NDArray[np.uint8] = lookup[indices]
    return mapped


def _entries(image: Image.Image) -> list[Color]:
    # straight from the palette: a transparent entry keeps its colour, as the pixels of an RGBA label do
    return [(red, green, blue) for red, green, blue in np.reshape(image.getpalette("RGB") or [], (-1, 3)).tolist()]


def _is_plain(entries: list[Color]) -> bool:
    """Return whether a palette is what Pillow writes where nobody chose colours: no more than greyscale says."""
    return len(entries) > 1 and all(color == (i, i, i) for i, color in enumerate(entries))


def _map_greys(
    image: Image.Image, table: Mapping[Color, int], classes: _Classes, path: Path
) -> NDArray[np.uint8] | None:
    """Replace the grey levels of a mask, such as 0 and 255, by the train ids of those colours.

    Returns:
        uint8 (height, width); None where the levels are ids: a class has another colour than grey, or a level is no
        class's colour, or is what `classes.yaml` calls void.

    Raises:
        DataError: The levels are neither, as after smoothing.
    """
    if any(len(set(color)) > 1 for color in table):
        return None
    # an index into a plain palette is a level; 1 bit is black and white
    levels = np.array(image if image.mode == "P" else image.convert("L"))
    train_ids = {color[0]: number for color, number in table.items()}
    used, void = np.unique(levels).tolist(), classes.ignored if classes.chosen else ()
    if any(level not in train_ids or level in void for level in used):
        ids = {*classes.names, *classes.ignored}
        strange = [level for level in used if level not in train_ids and level not in ids]
        # with a level of a colour that is no class's id, the file is a mask; without one it holds ids, right or wrong
        if strange and any(level in train_ids and level not in classes.names for level in used):
            shown = ", ".join(map(str, strange[:_SHOWN_COLORS])) + (", ..." if strange[_SHOWN_COLORS:] else "")
            raise DataError(
                f"{path}: grey level {shown} beside those of colors ({', '.join(map(str, train_ids))}); "
                "add it to classes.yaml, or export labels without smoothing (resize and rotate to the nearest pixel)"
            )
        return None
    lookup = np.full(256, IGNORE_ID, np.uint8)
    lookup[list(train_ids)] = list(train_ids.values())
    mapped: NDArray[np.uint8] = lookup[levels]
    return mapped


def _map_colors(pixels: NDArray[np.uint8], table: Mapping[Color, int], path: Path) -> NDArray[np.uint8]:
    """Replace colours (height, width, 3) by train ids (height, width)."""
    packed = _pack(pixels)
    colors = _pack(np.array(list(table), np.uint8))
    order = np.argsort(colors)
    position = np.minimum(np.searchsorted(colors, packed, sorter=order), len(order) - 1)
    nearest = order[position]
    unknown = colors[nearest] != packed
    if unknown.any():
        values = np.unique(packed[unknown])
        shown = ", ".join(str([int(v) >> 16, int(v) >> 8 & 255, int(v) & 255]) for v in values[:_SHOWN_COLORS])
        more = ", ..." if len(values) > _SHOWN_COLORS else ""
        raise DataError(
            f"{path}: unknown color {shown}{more} in {int(unknown.sum())} of {packed.size} pixels; "
            "add it to classes.yaml (colors or ignore_color), or export labels without smoothing"
        )
    return np.array(list(table.values()), np.uint8)[nearest]


def _pack(colors: NDArray[np.uint8]) -> NDArray[np.int64]:
    wide = colors.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _scan(base: Path) -> Content:
    file = base / "classes.yaml"
    classes = _read_classes(file)
    palette: Palette = tuple(classes.colors.values()) if classes.colors else make_palette(len(classes.names))
    train, train_problems = pair_directories(base / "images/train", base / "labels/train")
    val, val_problems = pair_directories(base / "images/val", base / "labels/val")
    return Content(
        tuple(classes.names.values()),
        palette,
        {"train": train, "val": val},
        partial(_read_label, classes=classes),
        tuple(train_problems),
        hashlib.sha256(file.read_bytes()).hexdigest(),
        tuple(val_problems),
    )


LAYOUT = Layout(
    name="folder",
    variable="DATA_ROOT",
    title="Your own data set",
    homepage="your annotation tool: export images and single-channel PNG labels",
    expected_tree=_TREE,
    required=("classes.yaml", "images/train", "images/val", "labels/train", "labels/val"),
    scan=_scan,
)
