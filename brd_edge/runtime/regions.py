"""Connected regions of class maps, and which of them belong together.

This needs scipy, which a device need not have: it is imported when regions are first asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.errors import RuntimeMissingError

__all__ = ["OVERLAP_MIN", "REGION_SHARE_MIN", "count_mismatches"]

REGION_SHARE_MIN = 1e-4
"""Regions below this share of the image's pixels are not counted: 17 pixels of 480x360, 210 of 2048x1024."""

OVERLAP_MIN = 0.25
"""Two regions are counterparts when they share this part of the smaller one."""

_Counts = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def count_mismatches(
    prediction: npt.NDArray[np.uint8],
    label: npt.NDArray[np.uint8],
    classes: int,
    *,
    share_min: float = REGION_SHARE_MIN,
    overlap_min: float = OVERLAP_MIN,
) -> _Counts:
    """Count the regions of two class maps, and by how much they are not one to one.

    A region is an 8-connected set of pixels of one class. Two regions of the same class, one in
    each map, are counterparts when their intersection is at least `overlap_min` of the smaller one.
    A region with n counterparts adds |n - 1| to the mismatch: a pole that is cut in two adds 1, as
    do two cars that are merged into one, a region that is missed, and one that is made up.

    Args:
        prediction: uint8 (H, W), class ids; `IGNORE` where the label has it.
        label: uint8 (H, W), class ids or `IGNORE`.
        classes: Number of classes K.
        share_min: Smallest region that counts, as a share of the image's pixels.
        overlap_min: Smallest intersection of counterparts, as a share of the smaller one.

    Returns:
        int64 (K,) mismatches and int64 (K,) regions, of both maps together.

    Raises:
        RuntimeMissingError: scipy is not installed.

    Example:
        >>> label = np.zeros((9, 9), np.uint8); label[:, 4] = 1
        >>> cut = label.copy(); cut[4, 4] = 0
        >>> count_mismatches(cut, label, 2)
        (array([2, 1]), array([3, 3]))
    """
    area_min = max(1, round(share_min * label.size))
    mismatches, regions = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for name in range(classes):
        box = _bounding_box((prediction == name) | (label == name))
        if box is None:
            continue
        maps = [_regions(values[box] == name, area_min) for values in (prediction, label)]
        counts = [len(areas) for _, areas in maps]
        links = _links(maps, overlap_min)
        mismatches[name] = sum(np.abs(links.sum(axis) - 1).sum() for axis in (0, 1))
        regions[name] = sum(counts)
    return mismatches, regions


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _regions(mask: npt.NDArray[np.bool_], area_min: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return a map of region numbers from 1, 0 elsewhere, and the regions' areas."""
    ndimage = _ndimage()
    numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(numbers.ravel(), minlength=count + 1)
    kept = np.flatnonzero(areas >= area_min)
    kept = kept[kept > 0]
    renumbered = np.zeros(count + 1, np.int64)
    renumbered[kept] = np.arange(1, len(kept) + 1)
    return renumbered[numbers], areas[kept]


def _links(
    maps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], overlap_min: float
) -> npt.NDArray[np.int64]:
    """Return 1 for every pair of counterparts, (regions of the first map, regions of the second)."""
    (first, first_areas), (second, second_areas) = maps
    shape = len(first_areas) + 1, len(second_areas) + 1
    shared = np.bincount((first * shape[1] + second).ravel(), minlength=shape[0] * shape[1]).reshape(shape)[1:, 1:]
    smaller = np.minimum(first_areas[:, None], second_areas[None])
    return (shared >= np.maximum(1, overlap_min * smaller)).astype(np.int64)


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise RuntimeMissingError(
            "metrics: the connectivity error needs scipy, which is not installed: run pip install scipy, "
            "or make the metrics with connectivity=False"
        ) from error
    return ndimage
