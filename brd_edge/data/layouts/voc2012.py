"""PASCAL VOC 2012 segmentation, with the augmented training labels where they are there.

Source: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; the augmented labels
are those of Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.layouts._files import map_ids, read_ids, read_names
from brd_edge.data.layouts.base import Content, Layout, Palette, Source, make_palette

__all__ = ["LAYOUT"]

_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_PALETTE: Palette = ((0, 0, 0), *make_palette(20))

# 255 is the border around the objects and what the annotators left open
_TRAIN_IDS = {**{i: i for i in range(21)}, 255: IGNORE_ID}

_TREE = """
JPEGImages/*.jpg
SegmentationClass/*.png
ImageSets/Segmentation/train.txt
ImageSets/Segmentation/val.txt
SegmentationClassAug/*.png                  (optional: 10,582 training labels instead of 1,464,
ImageSets/Segmentation/train_aug.txt         both of these together)
"""


def _read_label(path: Path) -> NDArray[np.uint8]:
    return map_ids(read_ids(path), _TRAIN_IDS, path)


def _pairs(base: Path, list_file: Path, labels: str) -> tuple[Source, ...]:
    return tuple(
        Source(name, base / "JPEGImages" / f"{name}.jpg", base / labels / f"{name}.png")
        for name in read_names(list_file)
    )


def _scan(base: Path) -> Content:
    lists, augmented = base / "ImageSets/Segmentation", base / "SegmentationClassAug"
    problems = []
    if augmented.is_dir() and (lists / "train_aug.txt").is_file():
        train = _pairs(base, lists / "train_aug.txt", augmented.name)
    else:
        train = _pairs(base, lists / "train.txt", "SegmentationClass")
        if augmented.is_dir():
            problems.append(f"{lists / 'train_aug.txt'}: missing beside {augmented.name}/; add it, or move that away")
    val = _pairs(base, lists / "val.txt", "SegmentationClass")
    return Content(_NAMES, _PALETTE, {"train": train, "val": val}, _read_label, tuple(problems))


LAYOUT = Layout(
    name="voc2012",
    variable="VOC_ROOT",
    title="PASCAL VOC 2012",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar)",
    expected_tree=_TREE,
    required=(
        "JPEGImages",
        "SegmentationClass",
        "ImageSets/Segmentation/train.txt",
        "ImageSets/Segmentation/val.txt",
    ),
    scan=_scan,
    bases=(".", "VOCdevkit/VOC2012", "VOC2012"),
)
