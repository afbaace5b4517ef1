"""The cells of a class map that have to be interpolated, with numpy: which classes can win in them, and which do.

A cell is the rectangle between four neighbouring logits, its corners above left, above right, below left and below
right. Most cells with several classes lie on the boundary of two: these are known by the best and the second-best
class of the corners. For the others each class is compared with the best ones at all corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.class_map_grid import LOGIT_MAX, Axis, ByteArray, FloatArray, IndexArray

__all__ = ["UNCLEAR", "Painter", "Rule", "unclear"]

UNCLEAR = np.uint8(255)
"""Stands for the class of a place where several are within the margin; ids end at 254."""

_BLOCK_VALUES = 1 << 15
"""Values that are interpolated at a time: few enough to stay in a second-level cache."""
_BLOCK_CELLS_MAX = 1024

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """When a class cannot win in a cell: it is below another one by the margin at every corner.

    Attributes:
        floor: What the other one must nowhere be below, float32.
        margin: Above 0, float32.
    """

    floor: np.float32
    margin: np.float32


class Painter:
    """Interpolates cells of a class map."""

    def __init__(self, rows: Axis, columns: Axis) -> None:
        """Make tables and buffers for the cells between logits of two axes."""
        width = columns.before.size - 1
        above, below = rows.before[:, None] * width, rows.after[:, None] * width
        corners = above + columns.before, above + columns.after, below + columns.before, below + columns.after
        self._corners = np.stack(corners).reshape(4, -1)
        self._rows, self._columns = _Blocks(rows), _Blocks(columns)
        self._large = (self._rows.large[:, None] | self._columns.large).ravel()
        area = len(self._rows.pixels) * len(self._columns.pixels)
        self._cells_max = max(1, min(_BLOCK_VALUES // area, _BLOCK_CELLS_MAX))
        self._values = np.empty((3, area * self._cells_max), np.float32)
        self._bytes = np.empty((2, area * self._cells_max), np.uint8)

    def paint(
        self, planes: FloatArray, cells: IndexArray, known: tuple[ByteArray, ByteArray], rule: Rule, result: ByteArray
    ) -> None:
        """Compute the pixels of some cells.

        Args:
            planes: float32 (K, h, w), C-contiguous.
            cells: Numbers of the cells, row by row, each with at least one pixel.
            known: Of each place the id of a best class, and the same or `UNCLEAR`, both uint8 (h, w).
            rule: When a class cannot win.
            result: uint8 (H, W), C-contiguous, written where the cells are.
        """
        planes = planes.reshape(len(planes), -1)
        corners = self._corners.take(cells, axis=1, mode="clip")
        best, clear = known[0].ravel(), known[1].ravel()
        first = best.take(corners)
        low, high = first.min(axis=0), first.max(axis=0)
        ids = clear.take(corners), _second(planes, corners, best, rule).take(corners)
        two = _all((first == low) | (first == high)) & (low != high)
        # all other classes are below one of the two at every corner
        two &= _all((ids[0] == low) | (ids[1] == low)) | _all((ids[0] == high) | (ids[1] == high))
        large = self._large.take(cells)
        for chosen, whole in ((two & ~large, False), (two & large, True)):
            for part in self._parts(chosen):
                at = corners.take(part, axis=1, mode="clip")
                self._block(planes, cells[part], at, [low[part], high[part]], whole, result)
        for part in self._parts(~two):
            at = corners.take(part, axis=1, mode="clip")
            order, candidates = _candidates(_possible(planes, at, (low[part], high[part]), rule))
            self._block(planes, cells[part[order]], at.take(order, axis=1), candidates, True, result)

    def _parts(self, chosen: BoolArray) -> list[IndexArray]:
        """Return the places of what is chosen, in parts that fit into the buffers."""
        places = np.flatnonzero(chosen)
        return [places[first : first + self._cells_max] for first in range(0, len(places), self._cells_max)]

    def _block(
        self,
        planes: FloatArray,
        cells: IndexArray,
        corners: IndexArray,
        candidates: Sequence[npt.NDArray[np.integer]],
        whole: bool,
        result: ByteArray,
    ) -> None:
        """Compute the pixels of some cells.

        Cells are the last axis, along which numpy is fast.

        Args:
            planes: float32 (K, h * w).
            cells: Their numbers (n,).
            corners: Places of their corners (4, n).
            candidates: Ids of each cell's first candidate (n,), second candidate and so on, rising; those after the
                first may be of fewer cells, from the beginning.
            whole: Whether cells may have more pixels than most.
            result: uint8 (H, W), written.
        """
        row, column = np.divmod(cells, len(self._columns.large))
        rows, columns = self._rows.of(row, whole), self._columns.of(column, whole)
        shape = len(rows.pixels), len(columns.pixels), len(cells)
        size = shape[0] * shape[1] * shape[2]
        best, value, part = (buffer[:size].reshape(shape) for buffer in self._values)
        ids, wins = (buffer[:size].reshape(shape) for buffer in self._bytes)
        ids[:] = candidates[0]
        for number, classes in enumerate(candidates):
            n = len(classes)
            corner = planes.reshape(-1).take(classes.astype(np.intp) * planes.shape[1] + corners[:, :n], mode="clip")
            a, b, c, d = np.maximum(corner, -LOGIT_MAX, out=corner)
            left, right = columns.weight_before[:, :n], columns.weight_after[:, :n]
            target = value[..., :n] if number else best
            np.multiply(rows.weight_before[:, None, :n], left * a + right * b, out=target)
            np.multiply(rows.weight_after[:, None, :n], left * c + right * d, out=part[..., :n])
            np.add(target, part[..., :n], out=target)
            if number:
                win = wins[..., :n]
                np.greater(target, best[..., :n], out=win.view(np.bool_))
                np.maximum(target, best[..., :n], out=best[..., :n])
                # ids rise, so that the later winner is the larger one
                np.multiply(win, classes.astype(np.uint8), out=win)
                np.maximum(ids[..., :n], win, out=ids[..., :n])
        place = (rows.pixels * result.shape[1])[:, None] + columns.pixels
        result.reshape(-1)[place] = ids


@dataclass(frozen=True)
class _Pixels:
    """Pixels of some cells along one axis and their weights, each (pixels, cells)."""

    pixels: IndexArray
    weight_before: FloatArray
    weight_after: FloatArray


class _Blocks:
    """The pixels of all cells along one axis; where a cell has fewer than others the last one again."""

    def __init__(self, axis: Axis) -> None:
        count = np.diff(axis.start)
        self._usual = int(np.bincount(count[count > 0]).argmax())
        self.large = count > self._usual
        # a cell without pixels may come before all others
        self.pixels = np.maximum(np.minimum(axis.start[:-1] + np.arange(count.max())[:, None], axis.start[1:] - 1), 0)
        self._weights = axis.weight_before[self.pixels], axis.weight_after[self.pixels]

    def of(self, cells: IndexArray, whole: bool) -> _Pixels:
        """Return the pixels of some cells, which unless `whole` have no more than most."""
        end = len(self.pixels) if whole else self._usual
        # numbers are within range: `clip` spares numpy the check of each
        before, after = (weights[:end].take(cells, axis=1, mode="clip") for weights in self._weights)
        return _Pixels(self.pixels[:end].take(cells, axis=1, mode="clip"), before, after)


def unclear(count: ByteArray) -> ByteArray:
    """Return `UNCLEAR` where the count is not 1, else 0."""
    found: ByteArray = np.multiply(count != 1, UNCLEAR)
    return found


def _all(values: BoolArray) -> BoolArray:
    found: BoolArray = values[0] & values[1] & values[2] & values[3]
    return found


def _second(planes: FloatArray, corners: IndexArray, best: ByteArray, rule: Rule) -> ByteArray:
    """Return the id of the second-best class of each place, `UNCLEAR` where a third is within the margin.

    Args:
        planes: float32 (K, h * w).
        corners: The places that matter; of others it is `UNCLEAR`.
        best: Id of a best class, uint8 (h * w,).
        rule: The margin, and the floor that a second-best class must not be below.
    """
    marked = np.zeros(planes.shape[1], np.bool_)
    marked[corners] = True
    places = np.flatnonzero(marked)
    values = np.empty((len(planes), len(places)), np.float32)
    planes.take(places, axis=1, out=values, mode="clip")
    values[best.take(places), np.arange(len(places))] = -np.inf
    second = np.maximum.reduce(values, axis=0)
    near = np.greater_equal(values, second - rule.margin).view(np.uint8)
    count = np.add.reduce(near, axis=0, dtype=np.uint8)
    np.multiply(near, np.arange(len(planes), dtype=np.uint8)[:, None], out=near)
    ids = np.maximum(np.maximum.reduce(near, axis=0), unclear(count))
    ids[second < rule.floor] = UNCLEAR
    found = np.full(planes.shape[1], UNCLEAR)
    found[places] = ids
    return found


def _possible(planes: FloatArray, corners: IndexArray, rivals: Sequence[ByteArray], rule: Rule) -> BoolArray:
    """Return which classes can win in some cells, bool (K, n); at least one of each cell.

    Args:
        planes: float32 (K, h * w).
        corners: Places of the cells' corners (4, n).
        rivals: Ids, each uint8 (n,), that the classes are compared with.
        rule: When a class cannot win.
    """
    values = [planes.take(corner, axis=1, mode="clip") for corner in corners]
    cells = np.arange(corners.shape[1])
    lost = np.zeros(values[0].shape, np.bool_)
    for rival in rivals:
        below = np.ones(lost.shape, np.bool_)
        for value in values:
            limit = value[rival, cells]
            below &= value < np.where(limit >= rule.floor, limit - rule.margin, np.float32(-np.inf))
        lost |= below
    return ~lost


def _candidates(possible: BoolArray) -> tuple[IndexArray, list[IndexArray]]:
    """List the possible classes of each cell.

    Args:
        possible: bool (K, n).

    Returns:
        The cells' order, those with most candidates first, and in this order the ids of their first candidate, of
        their second and so on, rising, each of the cells that have so many.
    """
    counts = np.add.reduce(possible, axis=0, dtype=np.intp)
    order = np.argsort(-counts, kind="stable")
    counts = counts[order]
    classes = np.nonzero(possible.T[order])[1]
    starts = np.cumsum(counts) - counts
    return order, [classes[starts[counts > number] + number] for number in range(counts[0])]
