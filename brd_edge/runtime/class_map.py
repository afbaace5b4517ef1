"""Class maps from logits at the decoder's stride: bilinear upsampling and argmax, computed only where it must be.

An engine's logits (1, K, h, w) lie on a coarse grid; the class map wanted is that of the logits upsampled bilinearly
to (H, W). Within a cell, the rectangle between four neighbouring logits, every pixel is a convex combination of the
four: where one class is the best at all four corners it is the best at every pixel between them, and nothing needs to
be interpolated. In street scenes that leaves about one cell in ten, and in it mostly two classes that can win.

The result is not an approximation. It is that of `dense_class_map`, which computes in float32 and in this order, for
corners a b (above), c d (below), and weights u (along the row) and v (down the column) rounded from an exact ratio,

    top = (1 - u) a + u b;  bottom = (1 - u) c + u d;  value = (1 - v) top + v bottom

and takes the class of the largest value, the lowest id where several are equal. `ClassMapper` returns the same bytes,
because it leaves out a class k only where some class m is above it at all four corners *by a margin*. Why that is
right:

- Rounding is monotone and weights are not negative: raising a corner never lowers the value. So value(m) >= value(k)
  where m >= k at all corners. That is not enough: both may be rounded to the same number, and if k is the lower id it
  wins then.
- With corners of magnitude up to B, a value lies within 4.01 * 2^-24 B of the exact combination (products and a sum
  along the row, products and a sum down the column), and within 2^-122 more where numbers underflow, even if
  denormals are flushed to zero.
- Let C be the largest magnitude of the best logits over all places. The margin is 2^-19 C + 2^-118, and m must not be
  below -C at any corner. Raise those corners of k that are below -B, B = 2 C + 2^-117, to -B: value(k) does not fall,
  and they still are below m by the margin. Now m can lose 4.01, k gain 8.02 and the subtraction of the margin err by
  1.01 * 2^-24 C: less than half of the margin, so value(m) > value(k), and k wins nowhere in the cell. (How deep k
  lies does not matter: classes may be masked with -1e9 or -inf.)

A corner whose two best logits are within the margin (exact ties too) has its cells computed. Everything is computed
densely where C is above 2^100, and with numpy also where most cells are mixed. Infinite logits count as +-2^126; NaN is
refused. Sizes need not be multiples.

Other implementations round differently, PyTorch for example the source coordinates: they differ from this one only
where the two best classes are equal up to such rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.class_map_cells import UNCLEAR, Painter, Rule, unclear
from brd_edge.runtime.class_map_grid import ByteArray, FloatArray, IndexArray, interpolation_axis, map_densely
from brd_edge.runtime.errors import EngineError

__all__ = ["ClassMapper", "class_map_from_logits", "dense_class_map"]

_CLASSES_MAX = 255
_MARGIN_SHARE = 2.0**-19
_MARGIN_MIN = 2.0**-118
_SPARSE_MAX = 2.0**100
_MIXED_MAX = 0.7
"""Share of mixed cells from which numpy is faster row by row; what a network returns is far below."""

LogitArray = npt.NDArray[np.floating[Any]]


def class_map_from_logits(logits: LogitArray, height: int, width: int, *, align_corners: bool) -> ByteArray:
    """Return the class map of logits upsampled bilinearly; for many frames, keep a `ClassMapper`.

    Args:
        logits: float32 or float16 (1, K, h, w), K from 1 to 255.
        height: Rows H of the class map; need not be a multiple of h.
        width: Columns W of the class map; need not be a multiple of w.
        align_corners: False as PyTorch's default and ONNX's `half_pixel`; True as the heads of
            segmentation_models_pytorch and ONNX's `align_corners`.

    Returns:
        uint8 (H, W), the lowest of the best class ids, byte for byte that of `dense_class_map`.

    Raises:
        EngineError: The logits are not such an array, or hold NaN; or a size is below 1.

    Example:
        >>> logits = np.zeros((1, 2, 1, 2), np.float32)
        >>> logits[0, :, 0, 0], logits[0, :, 0, 1] = (1, 0), (0, 3)
        >>> class_map_from_logits(logits, 1, 8, align_corners=False).tolist()
        [[0, 0, 0, 1, 1, 1, 1, 1]]
    """
    _, classes, rows, columns = _checked_shape(logits)
    return ClassMapper(classes, rows, columns, height, width, align_corners=align_corners).class_map(logits)


def dense_class_map(logits: LogitArray, height: int, width: int, *, align_corners: bool) -> ByteArray:
    """Return the class map of logits upsampled bilinearly, with every class of every pixel computed.

    Args:
        logits: As in `class_map_from_logits`.
        height: Rows H of the class map.
        width: Columns W of the class map.
        align_corners: As in `class_map_from_logits`.

    Returns:
        uint8 (H, W), the lowest of the best class ids.

    Raises:
        EngineError: As in `class_map_from_logits`.
    """
    shape = _checked_shape(logits)
    _check_sizes(shape, height, width)
    planes = np.asarray(logits[0], np.float32)
    if np.isnan(planes).any():
        raise _not_a_number(planes)
    result = np.empty((height, width), np.uint8)
    rows, columns = (
        interpolation_axis(count, pixels, align_corners=align_corners)
        for count, pixels in zip(shape[2:], result.shape, strict=True)
    )
    map_densely(planes, rows, columns, result)
    return result


class ClassMapper:
    """Class maps from logits of one shape, with tables and buffers that are made once.

    Not for several threads at a time: they would share the buffers. Class maps belong to the caller.

    Attributes:
        mixed_share: Share of the cells that the last class map interpolated, 0 to 1; 1 where it was computed densely.

    Example:
        >>> mapper = ClassMapper(19, 64, 128, 512, 1024, align_corners=True)
        >>> class_map = mapper.class_map(logits)
    """

    def __init__(
        self,
        classes: int,
        rows: int,
        columns: int,
        height: int,
        width: int,
        *,
        align_corners: bool,
        compiled: bool = False,
    ) -> None:
        """Make tables and buffers.

        Args:
            classes: Number of classes K, 1 to 255.
            rows: Rows h of the logits.
            columns: Columns w of the logits.
            height: Rows H of the class map.
            width: Columns W of the class map.
            align_corners: As in `class_map_from_logits`.
            compiled: Whether to compile the work with numba, which takes seconds, once a process, and then is faster.

        Raises:
            EngineError: A size is below 1, or there are more than 255 classes.
            RuntimeMissingError: It is to be compiled, and numba is not installed.
        """
        self._shape = (1, classes, rows, columns)
        _check_sizes(self._shape, height, width)
        self.mixed_share = 0.0
        self._size = height, width
        self._rows = interpolation_axis(rows, height, align_corners=align_corners)
        self._columns = interpolation_axis(columns, width, align_corners=align_corners)
        # a class map that is smaller than its logits has cells without pixels
        self._hit = (np.diff(self._rows.start) > 0)[:, None] & (np.diff(self._columns.start) > 0)
        self._cells = int(np.count_nonzero(self._hit))
        self._row_of_pixel = self._rows.before[self._rows.cell]
        self._column_of_pixel = self._columns.before[self._columns.cell]
        self._painter = Painter(self._rows, self._columns)
        self._ids = np.arange(classes, dtype=np.uint8)[:, None, None]
        self._best = np.empty((rows, columns), np.float32)
        self._near = np.empty((classes, rows, columns), np.bool_)
        self._first = np.empty((rows, columns), np.uint8)
        # the same with the border once more on all sides, and `UNCLEAR` where another class is within the margin
        self._clear = np.empty((rows + 2, columns + 2), np.uint8)
        self._kernel = _compiled_kernel() if compiled else None
        if compiled:
            self.class_map(np.zeros(self._shape, np.float32))

    def class_map(self, logits: LogitArray, *, out: ByteArray | None = None) -> ByteArray:
        """Return the class map of one frame's logits.

        Args:
            logits: float32 or float16 (1, K, h, w), of the shape that the mapper was made for.
            out: Where to write the class map: uint8 (H, W), C-contiguous; new memory when not given.

        Returns:
            uint8 (H, W), the lowest of the best class ids; `out` if it was given.

        Raises:
            EngineError: The logits or `out` are not such arrays, or the logits hold NaN.
        """
        if _checked_shape(logits) != self._shape:
            raise EngineError(f"class map: expected logits {self._shape}, came {logits.shape}")
        result = np.empty(self._size, np.uint8) if out is None else self._checked(out)
        planes = np.ascontiguousarray(logits[0], np.float32)
        np.maximum.reduce(planes, axis=0, out=self._best)
        # both are NaN if any logit is
        largest = max(float(self._best.max()), -float(self._best.min()))
        if np.isnan(largest):
            raise _not_a_number(planes)
        if largest > _SPARSE_MAX:
            return self._map_densely(planes, result)
        rule = Rule(floor=np.float32(-largest), margin=np.float32(_MARGIN_SHARE * largest + _MARGIN_MIN))
        np.subtract(self._best, rule.margin, out=self._best)
        self._find_first(planes)
        # a cell of one class has that of the logit before it; the others are painted over
        spread = self._first.take(self._column_of_pixel, axis=1)
        spread.take(self._row_of_pixel, axis=0, out=result, mode="clip")
        mixed = self._mixed_cells()
        self.mixed_share = len(mixed) / self._cells
        if self.mixed_share > _MIXED_MAX and self._kernel is None:
            return self._map_densely(planes, result)
        if len(mixed):
            self._paint(planes, mixed, rule, result)
        return result

    def _checked(self, out: ByteArray) -> ByteArray:
        if out.shape != self._size or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise EngineError(f"class map: expected out uint8 {self._size}, C-contiguous, came {out.dtype} {out.shape}")
        return out

    def _map_densely(self, planes: FloatArray, result: ByteArray) -> ByteArray:
        self.mixed_share = 1.0
        map_densely(planes, self._rows, self._columns, result)
        return result

    def _paint(self, planes: FloatArray, mixed: IndexArray, rule: Rule, result: ByteArray) -> None:
        if self._kernel is None:
            self._painter.paint(planes, mixed, (self._first, self._clear[1:-1, 1:-1]), rule, result)
            return
        rows, columns = (
            (axis.before, axis.after, axis.start, axis.weight_before, axis.weight_after)
            for axis in (self._rows, self._columns)
        )
        self._kernel(planes, mixed, self._first, rows, columns, rule.floor, rule.margin, result)

    def _find_first(self, planes: FloatArray) -> None:
        """Find a best class of each place, and where no other one is within the margin."""
        np.greater_equal(planes, self._best, out=self._near)
        near = self._near.view(np.uint8)
        count = np.add.reduce(near, axis=0, dtype=np.uint8)
        np.multiply(near, self._ids, out=near)
        np.maximum.reduce(near, axis=0, out=self._first)
        clear = self._clear
        np.maximum(self._first, unclear(count), out=clear[1:-1, 1:-1])
        clear[0, 1:-1], clear[-1, 1:-1] = clear[1, 1:-1], clear[-2, 1:-1]
        clear[:, 0], clear[:, -1] = clear[:, 1], clear[:, -2]

    def _mixed_cells(self) -> IndexArray:
        """Return the numbers of the cells whose corners do not clearly have one class, row by row."""
        first = self._clear[:-1, :-1]
        mixed = first == UNCLEAR
        for other in (self._clear[:-1, 1:], self._clear[1:, :-1], self._clear[1:, 1:]):
            mixed |= first != other
        mixed &= self._hit
        return np.flatnonzero(mixed)


def _checked_shape(logits: LogitArray) -> tuple[int, int, int, int]:
    """Return the shape of logits if they can be logits at all."""
    shape = logits.shape
    if logits.dtype not in (np.float32, np.float16) or len(shape) != 4 or shape[0] != 1:
        raise EngineError(f"class map: expected logits float32 or float16 (1, K, h, w), came {logits.dtype} {shape}")
    return 1, shape[1], shape[2], shape[3]


def _check_sizes(shape: tuple[int, int, int, int], height: int, width: int) -> None:
    if min(*shape, height, width) < 1 or shape[1] > _CLASSES_MAX:
        raise EngineError(
            f"class map: expected 1 to {_CLASSES_MAX} classes and sizes of at least 1, came {shape[1]} classes, "
            f"logits {shape[2]}x{shape[3]}, class map {height}x{width}"
        )


def _not_a_number(planes: FloatArray) -> EngineError:
    classes = np.flatnonzero(np.isnan(planes).any(axis=(1, 2)))
    return EngineError(
        f"class map: expected numbers, came {np.isnan(planes).sum()} NaN among {planes.size} logits (the first in "
        f"class {classes[0]}): the engine computes wrongly, as where its precision overflows; build it at another one"
    )


def _compiled_kernel() -> Callable[..., Any]:
    from brd_edge.runtime.class_map_compiled import compiled_kernel

    return compiled_kernel()
