"""COCO-Stuff 10K, version 1.1: 171 classes of things and stuff, labels in MATLAB files.

Source: Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018. The release brings no
colours for its things; here every class has one of the PASCAL VOC colour map.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.layouts._cocostuff_classes import COCOSTUFF_NAMES, REMOVED_IDS
from brd_edge.data.layouts._files import map_ids, read_names
from brd_edge.data.layouts.base import Content, Layout, Source, make_palette
from brd_edge.runtime.errors import DataError

__all__ = ["LAYOUT"]

_KEY = "S"
_VERSION_1_0_NAMES = 172

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
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=[_KEY, "names"])
    # scipy raises many kinds for damaged files, and NotImplementedError for MATLAB 7.3 (HDF5) files
    except Exception as error:
        raise DataError(f"{path}: not a MATLAB 5 file ({error}); replace it with an intact copy") from error
    if _KEY not in content:
        raise DataError(f"{path}: expected the variable {_KEY!r}, which holds the label map; it is not there")
    if np.size(content.get("names", ())) == _VERSION_1_0_NAMES:
        raise DataError(f"{path}: annotations of version 1.0, whose ids differ; get cocostuff-10k-v1.1.zip")
    ids = content[_KEY]
    if ids.ndim != 2 or not (np.issubdtype(ids.dtype, np.number) and np.array_equal(ids, np.trunc(ids.real))):
        raise DataError(f"{path}: {_KEY}: expected a matrix of whole numbers, got {ids.dtype} of shape {ids.shape}")
    return map_ids(ids.astype(np.int64), _TRAIN_IDS, path)


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
