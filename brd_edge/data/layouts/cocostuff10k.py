"""COCO-Stuff 10K, version 1.1: 171 classes of things and stuff, labels in MATLAB files.

Source: Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018. The release brings no
colours for its things; here every class has one of the PASCAL VOC colour map.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.layouts._cocostuff_classes import COCOSTUFF_NAMES, REMOVED_IDS
from brd_edge.data.layouts._files import map_ids, read_names
from brd_edge.data.layouts._matlab import read_matlab
from brd_edge.data.layouts.base import Content, Layout, Source, make_palette
from brd_edge.runtime.errors import DataError

__all__ = ["LAYOUT"]

_KEY = "S"
_VERSION_1_0_NAMES = 172
_MAX_WHOLE = 2.0**53

# 0 is unlabelled; the other ids are 1 to 182 without those that were never annotated
_IDS = tuple(i for i in range(1, 183) if i not in REMOVED_IDS)
_TRAIN_IDS = {0: IGNORE_ID, **{number: i for i, number in enumerate(_IDS)}}

_TREE = """
images/COCO_train2014_*.jpg
annotations/COCO_train2014_*.mat
imageLists/train.txt
imageLists/test.txt                         (used as the validation split)
"""


def _read_label(path: Path) -> NDArray[np.uint8]:
    try:
        found = read_matlab(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a MATLAB 5 file ({error}); replace it with an intact copy") from error
    if _KEY not in found:
        raise DataError(f"{path}: expected the variable {_KEY!r}, which holds the label map; it is not there")
    names = found.get("names")
    if names is not None and math.prod(names.shape) == _VERSION_1_0_NAMES:
        raise DataError(f"{path}: annotations of version 1.0, whose ids differ; get cocostuff-10k-v1.1.zip")
    ids, shape = found[_KEY].numbers, found[_KEY].shape
    if ids is None or ids.ndim != 2 or not (np.isfinite(ids).all() and np.array_equal(ids, np.trunc(ids))):
        kind = "no numbers" if ids is None else ids.dtype
        raise DataError(f"{path}: {_KEY}: expected a matrix of whole numbers, got {kind} of shape {shape}")
    # so that every number fits the integers; what is clipped is no id in any case
    whole = np.clip(ids.astype(np.float64), -_MAX_WHOLE, _MAX_WHOLE).astype(np.int64)
    return map_ids(whole, _TRAIN_IDS, path)


def _pairs(base: Path, list_file: str) -> tuple[Source, ...]:
    return tuple(
        Source(name, base / "images" / f"{name}.jpg", base / "annotations" / f"{name}.mat")
        for name in read_names(base / "imageLists" / list_file)
    )


def _scan(base: Path) -> Content:
    splits = {"train": _pairs(base, "train.txt"), "val": _pairs(base, "test.txt")}
    return Content(COCOSTUFF_NAMES, make_palette(len(COCOSTUFF_NAMES)), splits, _read_label)


LAYOUT = Layout(
    name="cocostuff10k",
    variable="COCOSTUFF_ROOT",
    title="COCO-Stuff 10K",
    homepage="https://github.com/nightrome/cocostuff10k (cocostuff-10k-v1.1.zip)",
    expected_tree=_TREE,
    required=("images", "annotations", "imageLists/train.txt", "imageLists/test.txt"),
    scan=_scan,
    bases=(".", "cocostuff-10k-v1.1", "dataset"),
)
