"""The interpolation of a class map's cells as plain loops, for numba to compile: the same bytes in less time.

numba is optional and imported when a kernel is first asked for. Nothing is kept on disk, because numba's cache is
pickled. Without its fast mathematics it neither reorders sums nor fuses products with them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from brd_edge.runtime.class_map_grid import LOGIT_MAX, ByteArray, FloatArray, IndexArray
from brd_edge.runtime.errors import RuntimeMissingError

__all__ = ["compiled_kernel", "make_kernel"]

_LOGIT_MIN = -LOGIT_MAX
_PADDING = 16
"""Floats between rows of logits: a cache line."""

Function = Callable[..., Any]
AxisArrays = tuple[IndexArray, IndexArray, IndexArray, FloatArray, FloatArray]
"""Of an axis: before, after, start, weight before, weight after."""


@cache
def compiled_kernel() -> Function:
    """Return the kernel for numba; it is compiled when it is first called.

    Raises:
        RuntimeMissingError: numba is not installed.
    """
    try:
        from numba import njit
    except ImportError as error:
        raise RuntimeMissingError(
            "class map: compiled=True needs numba, which is not installed: "
            'run pip install "brd-edge[fast]", or leave it out'
        ) from error
    return make_kernel(njit)


def make_kernel(compile_function: Callable[[Function], Function]) -> Function:
    """Return what does the work of `brd_edge.runtime.class_map_cells.Painter.paint`, with axes as tuples of arrays.

    Args:
        compile_function: What each function is compiled with; one that returns the function leaves it plain.
    """
    copy_rows, find_candidates, paint_cell = (compile_function(f) for f in (_copy_rows, _candidates, _paint_cell))

    def kernel(
        planes: FloatArray,
        cells: IndexArray,
        first: ByteArray,
        rows: AxisArrays,
        columns: AxisArrays,
        floor: np.float32,
        margin: np.float32,
        result: ByteArray,
    ) -> None:
        candidates = np.empty(len(planes), np.intp)
        strip = np.empty((2, len(planes), planes.shape[2] + _PADDING), np.float32)
        height, width = (rows[2][1:] - rows[2][:-1]).max(), (columns[2][1:] - columns[2][:-1]).max()
        along, best = np.empty((2, width), np.float32), np.empty((height, width), np.float32)
        limits = np.empty((2, 4), np.float32)
        last = -1
        for cell in cells:
            i, j = cell // len(columns[0]), cell % len(columns[0])
            above, below, left, right = rows[0][i], rows[1][i], columns[0][j], columns[1][j]
            if i != last:
                copy_rows(planes, above, below, strip)
                last = i
            ids = (first[above, left], first[above, right], first[below, left], first[below, right])
            count = find_candidates(strip, left, right, (min(ids), max(ids)), floor, margin, limits, candidates)
            for number in range(count):
                k = candidates[number]
                paint_cell(strip[:, k], k, number, i, j, rows, columns, along, best, result)

    return compile_function(kernel)


def _copy_rows(planes: FloatArray, above: int, below: int, strip: FloatArray) -> None:
    """Copy two rows of logits to where those of all classes are not a power of two apart, which evicts them."""
    width = planes.shape[2]
    for k in range(len(planes)):
        for x in range(width):
            strip[0, k, x] = max(planes[k, above, x], _LOGIT_MIN)
        for x in range(width):
            strip[1, k, x] = max(planes[k, below, x], _LOGIT_MIN)


def _candidates(
    strip: FloatArray,
    left: int,
    right: int,
    rivals: tuple[int, int],
    floor: np.float32,
    margin: np.float32,
    limits: FloatArray,
    candidates: IndexArray,
) -> int:
    """Write the classes that can win in a cell, rising, and return how many there are."""
    for number, rival in enumerate(rivals):
        for side in range(2):
            for place, x in enumerate((left, right)):
                value = strip[side, rival, x]
                limits[number, 2 * side + place] = value - margin if value >= floor else -np.inf
    count = 0
    for k in range(strip.shape[1]):
        a, b, c, d = strip[0, k, left], strip[0, k, right], strip[1, k, left], strip[1, k, right]
        lost = False
        for number in range(2):
            limit = limits[number]
            lost |= (a < limit[0]) & (b < limit[1]) & (c < limit[2]) & (d < limit[3])
        if not lost:
            candidates[count] = k
            count += 1
    return count


def _paint_cell(
    values: FloatArray,
    k: int,
    number: int,
    i: int,
    j: int,
    rows: AxisArrays,
    columns: AxisArrays,
    along: FloatArray,
    best: FloatArray,
    result: ByteArray,
) -> None:
    """Interpolate one candidate of a cell, and write its id where it is better than those before it."""
    left, right, start = columns[0][j], columns[1][j], columns[2][j]
    a, b, c, d = values[0, left], values[0, right], values[1, left], values[1, right]
    for x in range(columns[2][j + 1] - start):
        along[0, x] = columns[3][start + x] * a + columns[4][start + x] * b
        along[1, x] = columns[3][start + x] * c + columns[4][start + x] * d
    for y in range(rows[2][i], rows[2][i + 1]):
        line = best[y - rows[2][i]]
        for x in range(columns[2][j + 1] - start):
            value = rows[3][y] * along[0, x] + rows[4][y] * along[1, x]
            if number == 0 or value > line[x]:
                line[x] = value
                result[y, start + x] = k
