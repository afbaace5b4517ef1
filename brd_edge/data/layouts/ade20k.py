"""ADE20K scene parsing (ADEChallengeData2016), 150 classes.

Source: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.layouts._ade20k_classes import ADE20K_NAMES, ADE20K_PALETTE
from brd_edge.data.layouts._files import map_ids, pair_directories, read_ids
from brd_edge.data.layouts.base import Content, Layout

__all__ = ["LAYOUT"]

# 0 is void ("other objects"), so every class moves down by one
_TRAIN_IDS = {0: IGNORE_ID, **{i + 1: i for i in range(len(ADE20K_NAMES))}}

_TREE = """
images/
    training/ADE_train_*.jpg
    validation/ADE_val_*.jpg
annotations/
    training/ADE_train_*.png
    validation/ADE_val_*.png
"""


def _read_label(path: Path) -> NDArray[np.uint8]:
    return map_ids(read_ids(path), _TRAIN_IDS, path)


def _scan(base: Path) -> Content:
    train, train_problems = pair_directories(base / "images/training", base / "annotations/training")
    val, val_problems = pair_directories(base / "images/validation", base / "annotations/validation")
    splits = {"train": train, "val": val}
    problems, val_only = tuple(train_problems), tuple(val_problems)
    return Content(ADE20K_NAMES, ADE20K_PALETTE, splits, _read_label, problems, val_problems=val_only)


LAYOUT = Layout(
    name="ade20k",
    variable="ADE20K_ROOT",
    title="ADE20K",
    homepage="http://sceneparsing.csail.mit.edu/ (ADEChallengeData2016.zip)",
    expected_tree=_TREE,
    required=("images/training", "images/validation", "annotations/training", "annotations/validation"),
    scan=_scan,
    bases=(".", "ADEChallengeData2016"),
)
