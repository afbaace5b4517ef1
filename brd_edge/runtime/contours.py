"""Where class maps have contours: bands of Boundary IoU, and contour pixels of the boundary F-score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["IGNORE", "boundary_band", "boundary_distance", "contour_pixels", "widen"]

IGNORE = 255
"""The label id that no score counts."""


def boundary_distance(height: int, width: int, dilation_ratio: float = 0.02) -> int:
    """Return the width d of the boundary region in pixels.

    Args:
        height: Rows of the label.
        width: Columns of the label.
        dilation_ratio: Fraction of the image diagonal, as in Cheng et al., CVPR 2021.

    Returns:
        The rounded fraction of the diagonal, at least 1.
    """
    return max(1, round(dilation_ratio * math.sqrt(height**2 + width**2)))


def boundary_band(labels: npt.NDArray[np.uint8], distance: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels that lie within `distance` of the contour of their own class.

    This is the union over classes of `mask - erode(mask)` of the published Boundary IoU code
    (Cheng et al., CVPR 2021), which erodes `distance` times by a 3x3 box with zeros around the
    image: a pixel stays inside exactly when the (2 distance + 1)^2 box around it holds one class
    and does not leave the image. `IGNORE` pixels count as inside while eroding, and are not
    marked themselves.

    Args:
        labels: uint8 (H, W), class ids or `IGNORE`.
        distance: Chebyshev distance in pixels, at least 1.

    Returns:
        bool (H, W), true in the band.

    Example:
        >>> boundary_band(np.zeros((5, 5), np.uint8), 1).sum()  # one class: the image border alone
        np.int64(16)
    """
    height, width = labels.shape
    ignored = labels == IGNORE
    band = np.ones(labels.shape, np.bool_)
    size = 2 * distance + 1
    if height >= size and width >= size:
        # 255 can never be the smallest, and 0 never the largest, of a box that holds a class
        smallest = _box(labels, size, np.minimum)
        largest = _box(np.where(ignored, np.uint8(0), labels), size, np.maximum)
        band[distance : height - distance, distance : width - distance] = smallest != largest
    band &= ~ignored
    return band


def contour_pixels(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Mark the pixels that touch another class on one of their four sides.

    Neither the image border nor an `IGNORE` pixel makes a contour.

    Args:
        labels: uint8 (H, W), class ids or `IGNORE`.

    Returns:
        bool (H, W).
    """
    marked = np.zeros(labels.shape, np.bool_)
    known = labels != IGNORE
    for near, far in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        change = (labels[near] != labels[far]) & known[near] & known[far]
        marked[near] |= change
        marked[far] |= change
    return marked


def widen(mask: npt.NDArray[np.bool_], distance: int) -> npt.NDArray[np.bool_]:
    """Mark everything within a Chebyshev distance of a marked pixel, as dilation by a (2 distance + 1)^2 box.

    Args:
        mask: bool (H, W).
        distance: In pixels, from 0.
    """
    if distance == 0:
        return mask
    padded = np.pad(mask, distance)
    return _box(padded, 2 * distance + 1, np.logical_or)


def _box(values: npt.NDArray[Any], size: int, combine: np.ufunc) -> npt.NDArray[Any]:
    """Reduce every size x size box that fits: (H, W) to (H - size + 1, W - size + 1), in O(log size) passes."""
    for _ in range(2):
        span = 1
        while span < size:
            # windows of `span` overlap into windows of `span + step`; overlapping does not matter to min and max
            step = min(span, size - span)
            values = combine(values[:-step], values[step:])
            span += step
        values = values.T
    return values
