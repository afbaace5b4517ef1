"""Cityscapes: fine annotations of street scenes, 19 classes that count.

Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016; ids,
names and colours are those of the data set's own scripts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.layouts._files import as_text, list_files, map_ids, read_ids, walk_files
from brd_edge.data.layouts.base import Content, Layout, Palette, Source

__all__ = ["LAYOUT"]

_IMAGE_END = "_leftImg8bit"
_LABEL_END = "_gtFine_labelIds"

# id in the label files, name, colour; the order gives the train ids
_CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
_NAMES = tuple(name for _, name, _ in _CLASSES)
_PALETTE: Palette = tuple(color for _, _, color in _CLASSES)

# 0 to 33 are the ids of the official table; 255 is its licence plate (-1) stored in eight bits
_TRAIN_IDS = {
    **dict.fromkeys(range(34), IGNORE_ID),
    255: IGNORE_ID,
    **{number: i for i, (number, _, _) in enumerate(_CLASSES)},
}

_TREE = """
leftImg8bit/
    train/CITY/CITY_*_leftImg8bit.png
    val/CITY/CITY_*_leftImg8bit.png
gtFine/
    train/CITY/CITY_*_gtFine_labelIds.png
    val/CITY/CITY_*_gtFine_labelIds.png
"""


def _read_label(path: Path) -> NDArray[np.uint8]:
    return map_ids(read_ids(path), _TRAIN_IDS, path)


def _scan_split(base: Path, split: str) -> tuple[tuple[Source, ...], list[str]]:
    images, labels = base / "leftImg8bit" / split, base / "gtFine" / split
    files, problems = list_files(images, frozenset({".png"}))
    found = set()
    for path in files.values():
        if path.stem.endswith(_IMAGE_END):
            found.add(path.relative_to(images).with_suffix("").as_posix().removesuffix(_IMAGE_END))
        else:
            problems.append(f"{path}: expected a name that ends in {_IMAGE_END}.png; move it away")
    label_files, label_problems = walk_files(labels)
    end = f"{_LABEL_END}.png"
    found |= {path.relative_to(labels).as_posix().removesuffix(end) for path in label_files if path.name.endswith(end)}
    pairs = tuple(
        Source(as_text(Path(name).name), images / f"{name}{_IMAGE_END}.png", labels / f"{name}{_LABEL_END}.png")
        for name in sorted(found)
    )
    return pairs, problems + label_problems


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
    name="cityscapes",
    variable="CITYSCAPES_ROOT",
    title="Cityscapes",
    homepage="https://www.cityscapes-dataset.com/downloads/ (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip)",
    expected_tree=_TREE,
    required=("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"),
    scan=_scan,
)
