"""Where the pixels of a class map lie between its logits, and the class map with every pixel computed.

What a class map is, is defined here; `brd_edge.runtime.class_map` makes the same one faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["LOGIT_MAX", "Axis", "ByteArray", "FloatArray", "IndexArray", "interpolation_axis", "map_densely"]

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
IndexArray = npt.NDArray[np.intp]

LOGIT_MAX = np.float32(2.0**126)
"""What infinite logits count as: weighted sums of numbers up to this do not overflow."""


@dataclass(frozen=True)
class Axis:
    """Where the pixels of one axis lie between the n logits of that axis.

    Cell i, from 0 to n, lies between logit i - 1 and logit i. The first and the last cell are what lies outside,
    where the logit at the border goes on.

    Attributes:
        before: Each cell's logit before it, intp (n + 1,).
        after: Each cell's logit after it, intp (n + 1,).
        start: Each cell's first pixel, and at the end the number of pixels, intp (n + 2,).
        cell: Each pixel's cell, not falling, intp (pixels,).
        weight_before: Each pixel's weight of the logit before it, float32 (pixels,), 0 to 1.
        weight_after: Each pixel's weight of the logit after it, float32 (pixels,), 0 to 1.
    """

    before: IndexArray
    after: IndexArray
    start: IndexArray
    cell: IndexArray
    weight_before: FloatArray
    weight_after: FloatArray


def interpolation_axis(logits: int, pixels: int, *, align_corners: bool) -> Axis:
    """Return where the pixels of one axis lie between its logits.

    The source coordinate of pixel i is (i + 1/2) * logits / pixels - 1/2, clamped at the borders (`half_pixel`), or
    i * (logits - 1) / (pixels - 1). It is computed in whole numbers, so that the weight after is rounded once.

    Args:
        logits: Number of logits, at least 1.
        pixels: Number of pixels, at least 1; fewer than logits leave some out.
        align_corners: Whether the first and last pixel lie on the first and last logit.
    """
    place, cells = np.arange(pixels, dtype=np.int64), np.arange(logits + 1, dtype=np.intp)
    if align_corners:
        numerator, denominator = place * (logits - 1), max(pixels - 1, 1)
    else:
        numerator, denominator = (2 * place + 1) * logits - pixels, 2 * pixels
    cell = (numerator // denominator + 1).astype(np.intp)
    before, after = np.maximum(cells - 1, 0), np.minimum(cells, logits - 1)
    fraction = (numerator % denominator / denominator).astype(np.float32)
    weight_after = np.where(before[cell] == after[cell], np.float32(0), fraction)
    start = np.searchsorted(cell, np.arange(logits + 2)).astype(np.intp)
    return Axis(before, after, start, cell, np.float32(1) - weight_after, weight_after)


def map_densely(planes: FloatArray, rows: Axis, columns: Axis, result: ByteArray) -> None:
    """Upsample all logits and take the lowest of the best classes of every pixel, row by row.

    Args:
        planes: float32 (K, h, w) without NaN.
        rows: Of h logits and H pixels.
        columns: Of w logits and W pixels.
        result: uint8 (H, W), written.
    """
    planes = np.clip(planes, -LOGIT_MAX, LOGIT_MAX)
    along = _along_rows(planes, columns)
    value = np.empty((len(planes), result.shape[1]), np.float32)
    part, best, equal = np.empty_like(value), np.empty_like(value[0]), np.empty(value.shape, np.bool_)
    marks = equal.view(np.uint8)
    # the largest rank is that of the lowest id: numpy's argmax is many times slower across planes
    rank = np.arange(255, 255 - len(planes), -1, dtype=np.int64).astype(np.uint8)[:, None]
    bottom, bottom_row = value, -1
    for cell, (first, end) in enumerate(pairwise(rows.start.tolist())):
        if first == end:
            continue
        above, below = int(rows.before[cell]), int(rows.after[cell])
        top = bottom if above == bottom_row else along(above)
        bottom, bottom_row = top if below == above else along(below), below
        for row in range(first, end):
            np.multiply(rows.weight_before[row], top, out=value)
            np.multiply(rows.weight_after[row], bottom, out=part)
            np.add(value, part, out=value)
            np.maximum.reduce(value, axis=0, out=best)
            np.equal(value, best, out=equal)
            np.multiply(marks, rank, out=marks)
            np.subtract(255, np.maximum.reduce(marks, axis=0), out=result[row])


def _along_rows(planes: FloatArray, columns: Axis) -> Callable[[int], FloatArray]:
    """Return what gives one row of logits, interpolated to the pixels of the row, float32 (K, W)."""
    left, right = columns.before[columns.cell], columns.after[columns.cell]

    def along(row: int) -> FloatArray:
        values = planes[:, row]
        found = columns.weight_before * values.take(left, axis=1)
        found += columns.weight_after * values.take(right, axis=1)
        return found

    return along
