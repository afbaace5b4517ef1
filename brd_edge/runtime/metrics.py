"""Accuracy of class maps: confusion matrix, mIoU and Boundary IoU, streamed over a data set.

The same file scores an engine at home and on the device; it needs numpy alone. Label pixels of
`IGNORE` (255) count nowhere: they are neither right nor wrong, belong to no boundary region and
make no boundary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.errors import DataError, EngineError

__all__ = ["IGNORE", "SegmentationMetrics", "boundary_band", "boundary_distance"]

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


class SegmentationMetrics:
    """Streams class maps against labels; scores are over all pixels seen so far.

    Not thread-safe; give each thread its own and `merge` them.

    Attributes:
        classes: Number of classes K.
        dilation_ratio: Width of the boundary region as a fraction of the image diagonal.
        images: Number of images seen.
        confusion: int64 (K, K), pixels by label (row) and prediction (column).
        boundary_intersection: int64 (K,), pixels in both boundary regions of a class.
        boundary_union: int64 (K,), pixels in either boundary region of a class.

    Example:
        >>> metrics = SegmentationMetrics(classes=2)
        >>> metrics.update(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8))
        >>> metrics.miou()
        0.25
    """

    def __init__(self, classes: int, *, dilation_ratio: float = 0.02) -> None:
        """Start with nothing seen.

        Args:
            classes: Number of classes, 1 to 255.
            dilation_ratio: Width of the boundary region as a fraction of the image diagonal, above 0.

        Raises:
            DataError: An argument is out of its range.
        """
        if not 1 <= classes <= IGNORE:
            raise DataError(f"metrics: expected 1 to {IGNORE} classes, got {classes}")
        if not 0 < dilation_ratio < 1:
            raise DataError(f"metrics: expected a dilation_ratio between 0 and 1, got {dilation_ratio}")
        self.classes = classes
        self.dilation_ratio = dilation_ratio
        self.images = 0
        self.confusion = np.zeros((classes, classes), np.int64)
        self.boundary_intersection = np.zeros(classes, np.int64)
        self.boundary_union = np.zeros(classes, np.int64)

    def update(self, prediction: npt.NDArray[Any], label: npt.NDArray[Any]) -> None:
        """Count one image.

        Args:
            prediction: Integers (H, W), class ids 0 to K - 1, at the label's own size.
            label: Integers (H, W), class ids 0 to K - 1 or `IGNORE`.

        Raises:
            DataError: The label is not a class map with ids in range.
            EngineError: The prediction is not a class map with ids in range, or has another size.
        """
        truth = _label_map(label, self.classes)
        guess = _prediction_map(prediction, truth.shape, self.classes)
        valid = truth != IGNORE
        # uint16 holds 255 * 255, and halves the memory that the count reads
        pairs = truth[valid].astype(np.uint16) * np.uint16(self.classes) + guess[valid]
        self.confusion += np.bincount(pairs, minlength=self.classes**2).reshape(self.confusion.shape)

        distance = boundary_distance(truth.shape[0], truth.shape[1], self.dilation_ratio)
        guess = np.where(valid, guess, np.uint8(IGNORE))
        guess_band, truth_band = boundary_band(guess, distance), boundary_band(truth, distance)
        both = self._count(truth[guess_band & truth_band & (guess == truth)])
        self.boundary_intersection += both
        self.boundary_union += self._count(guess[guess_band]) + self._count(truth[truth_band]) - both
        self.images += 1

    def merge(self, other: SegmentationMetrics) -> None:
        """Add what `other` has seen.

        Raises:
            DataError: `other` counts another number of classes or another boundary width.
        """
        if (self.classes, self.dilation_ratio) != (other.classes, other.dilation_ratio):
            raise DataError(
                f"metrics: expected {self.classes} classes and dilation_ratio {self.dilation_ratio} to merge, "
                f"got {other.classes} and {other.dilation_ratio}"
            )
        self.confusion += other.confusion
        self.boundary_intersection += other.boundary_intersection
        self.boundary_union += other.boundary_union
        self.images += other.images

    def class_iou(self) -> npt.NDArray[np.float64]:
        """Return IoU per class, float64 (K,), 0 to 1; NaN for a class in neither prediction nor label."""
        hit = np.diagonal(self.confusion)
        return _ratio(hit, self.confusion.sum(0) + self.confusion.sum(1) - hit)

    def miou(self) -> float:
        """Return the mean IoU over the classes that are present, as cityscapesScripts; NaN without any."""
        return _mean(self.class_iou())

    def pixel_accuracy(self) -> float:
        """Return the fraction of counted pixels that are right; NaN without any."""
        return float(_ratio(np.trace(self.confusion), self.confusion.sum()))

    def class_boundary_iou(self) -> npt.NDArray[np.float64]:
        """Return Boundary IoU per class, float64 (K,), 0 to 1; NaN for a class in neither.

        Cheng et al., CVPR 2021: intersection over union of the parts of the predicted and the
        label mask that lie within d of their own contours, summed over the data set.
        """
        return _ratio(self.boundary_intersection, self.boundary_union)

    def boundary_iou(self) -> float:
        """Return the mean Boundary IoU over the classes that are present; NaN without any."""
        return _mean(self.class_boundary_iou())

    def to_json(self) -> dict[str, Any]:
        """Return all scores as JSON types: fractions 0 to 1, None for what is NaN."""
        return {
            "miou": _or_none(self.miou()),
            "boundary_iou": _or_none(self.boundary_iou()),
            "pixel_accuracy": _or_none(self.pixel_accuracy()),
            "class_iou": [_or_none(value) for value in self.class_iou()],
            "class_boundary_iou": [_or_none(value) for value in self.class_boundary_iou()],
        }

    def _count(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        return np.bincount(ids, minlength=self.classes)


def _box(values: npt.NDArray[np.uint8], size: int, combine: np.ufunc) -> npt.NDArray[np.uint8]:
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


def _label_map(label: npt.NDArray[Any], classes: int) -> npt.NDArray[np.uint8]:
    if label.ndim != 2 or label.size == 0 or not np.issubdtype(label.dtype, np.integer):
        raise DataError(f"label: expected integers (H, W), got {label.dtype} {label.shape}")
    if label.min() < 0 or label.max() > IGNORE or np.any((label >= classes) & (label != IGNORE)):
        raise DataError(f"label: expected ids 0 to {classes - 1} or {IGNORE}, got {np.unique(label).tolist()}")
    return label.astype(np.uint8, copy=False)


def _prediction_map(prediction: npt.NDArray[Any], shape: tuple[int, ...], classes: int) -> npt.NDArray[np.uint8]:
    if prediction.shape != shape or not np.issubdtype(prediction.dtype, np.integer):
        raise EngineError(
            f"prediction: expected integers {shape}, the label's own size, got {prediction.dtype} {prediction.shape}; "
            "resize the class map to the label by nearest neighbour first"
        )
    if prediction.min() < 0 or prediction.max() >= classes:
        raise EngineError(f"prediction: expected ids 0 to {classes - 1}, got {np.unique(prediction).tolist()}")
    return prediction.astype(np.uint8, copy=False)


def _ratio(part: Any, whole: Any) -> npt.NDArray[np.float64]:
    ratio = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=ratio, where=np.asarray(whole) > 0)
    return ratio


def _mean(values: npt.NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
