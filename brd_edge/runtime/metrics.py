"""Accuracy of class maps, streamed over a data set: IoU, boundaries, connected regions.

The same file scores an engine at home and on the device; only the connectivity error needs more than
numpy. Everything is a sum of counts over images, so memory does not grow with the data set, and many
processes that merge their counts get the same scores as one. Label pixels of `IGNORE` (255) count
nowhere: they are neither right nor wrong, belong to no boundary and no region, and make no boundary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.contours import IGNORE, boundary_band, boundary_distance, contour_pixels, widen
from brd_edge.runtime.errors import DataError, EngineError
from brd_edge.runtime.regions import count_mismatches

__all__ = ["IGNORE", "SegmentationMetrics"]


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
        tolerance_px: Chebyshev distance in pixels at which contours still agree (boundary F-score).
        boundaries: Whether boundary regions and contours are counted.
        connectivity: Whether connected regions are counted.
        contours: int64 (4, K), contour pixels of the prediction that are near the label's, contour
            pixels of the prediction, and the same two of the label.
        mismatches: int64 (K,), by how much the regions of both are not one to one.
        regions: int64 (K,), regions of both.
        per_image: int64 (10, K) for each image, if they are kept: pixels in both masks, pixels in either, the same
            two within the boundary regions, the four rows of `contours`, `mismatches` and `regions`; their sums over
            images give the scores.

    Example:
        >>> metrics = SegmentationMetrics(classes=2)
        >>> metrics.update(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8))
        >>> metrics.miou()
        0.25
    """

    def __init__(
        self,
        classes: int,
        *,
        dilation_ratio: float = 0.02,
        tolerance_px: int = 3,
        boundaries: bool = True,
        connectivity: bool = True,
        keep_images: bool = False,
    ) -> None:
        """Start with nothing seen.

        Args:
            classes: Number of classes, 1 to 255.
            dilation_ratio: Width of the boundary region as a fraction of the image diagonal, above 0.
            tolerance_px: Distance in pixels at which contours still agree, from 0.
            boundaries: Whether to count what Boundary IoU and the boundary F-score need.
            connectivity: Whether to count connected regions, which needs scipy and takes longest.
            keep_images: Whether to keep each image's counts, which intervals are drawn from; memory then grows with
                the data set, by 80 bytes a class and image.

        Raises:
            DataError: An argument is out of its range.
        """
        if not 1 <= classes <= IGNORE:
            raise DataError(f"metrics: expected 1 to {IGNORE} classes, got {classes}")
        if not 0 < dilation_ratio < 1:
            raise DataError(f"metrics: expected a dilation_ratio between 0 and 1, got {dilation_ratio}")
        if tolerance_px < 0:
            raise DataError(f"metrics: expected a tolerance_px of at least 0, got {tolerance_px}")
        self.classes = classes
        self.dilation_ratio = dilation_ratio
        self.tolerance_px = tolerance_px
        self.boundaries = boundaries
        self.connectivity = connectivity
        self.keep_images = keep_images
        self.per_image: list[npt.NDArray[np.int64]] = []
        self.images = 0
        self.confusion = np.zeros((classes, classes), np.int64)
        self.boundary_intersection = np.zeros(classes, np.int64)
        self.boundary_union = np.zeros(classes, np.int64)
        self.contours = np.zeros((4, classes), np.int64)
        self.mismatches = np.zeros(classes, np.int64)
        self.regions = np.zeros(classes, np.int64)

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
        confusion = np.bincount(pairs, minlength=self.classes**2).reshape(self.confusion.shape)
        self.confusion += confusion

        guess = np.where(valid, guess, np.uint8(IGNORE))
        counts = np.zeros((10, self.classes), np.int64)
        counts[0] = np.diagonal(confusion)
        counts[1] = confusion.sum(0) + confusion.sum(1) - counts[0]
        if self.boundaries:
            counts[2:4] = self._count_boundary_regions(guess, truth)
            counts[4:8] = self._count_contours(guess, truth)
        if self.connectivity:
            counts[8:] = count_mismatches(guess, truth, self.classes)
        self.boundary_intersection += counts[2]
        self.boundary_union += counts[3]
        self.contours += counts[4:8]
        self.mismatches += counts[8]
        self.regions += counts[9]
        if self.keep_images:
            self.per_image.append(counts)
        self.images += 1

    def merge(self, other: SegmentationMetrics) -> None:
        """Add what `other` has seen.

        Raises:
            DataError: `other` counts with other settings.
        """
        for name in ("classes", "dilation_ratio", "tolerance_px", "boundaries", "connectivity", "keep_images"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise DataError(f"metrics: expected {name} {mine} to merge, got {theirs}")
        self.confusion += other.confusion
        self.boundary_intersection += other.boundary_intersection
        self.boundary_union += other.boundary_union
        self.contours += other.contours
        self.mismatches += other.mismatches
        self.regions += other.regions
        self.images += other.images
        self.per_image += other.per_image

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

    def class_boundary_f(self) -> npt.NDArray[np.float64]:
        """Return the boundary F-score per class, float64 (K,), 0 to 1; NaN for a class without contour in both.

        The harmonic mean of the share of predicted contour pixels that lie within `tolerance_px` of
        the label's contour of the class, and the share of the label's that lie near the predicted
        one (Csurka et al., BMVC 2013), with counts summed over the data set.
        """
        near_guess, guess, near_truth, truth = self.contours.astype(np.float64)
        precision, recall = _ratio(near_guess, guess), _ratio(near_truth, truth)
        # a class that only one of the two has is found by nobody: 0, not undefined
        score = _ratio(2 * precision * recall, precision + recall)
        score[(guess + truth > 0) & np.isnan(score)] = 0.0
        return score

    def boundary_f(self) -> float:
        """Return the mean boundary F-score over the classes that have a contour; NaN without any."""
        return _mean(self.class_boundary_f())

    def class_connectivity_error(self) -> npt.NDArray[np.float64]:
        """Return the connectivity error per class, float64 (K,), from 0; NaN for a class without regions.

        The sum over connected regions, of the prediction and of the label, of |n - 1|, n being the
        number of counterparts of a region in the other map, divided by the number of regions: 0 when
        regions are one to one, 1 when all are missed, and more when they fall into many pieces. See
        `brd_edge.runtime.regions.count_mismatches`. This measure is this project's own.
        """
        return _ratio(self.mismatches, self.regions)

    def connectivity_error(self) -> float:
        """Return the mean connectivity error over the classes that have regions; NaN without any."""
        return _mean(self.class_connectivity_error())

    def to_json(self) -> dict[str, Any]:
        """Return all scores as JSON types: fractions 0 to 1, None for what is NaN."""
        return {
            "miou": _or_none(self.miou()),
            "boundary_iou": _or_none(self.boundary_iou()),
            "pixel_accuracy": _or_none(self.pixel_accuracy()),
            "boundary_f": _or_none(self.boundary_f()),
            "connectivity_error": _or_none(self.connectivity_error()),
            "class_iou": [_or_none(value) for value in self.class_iou()],
            "class_boundary_iou": [_or_none(value) for value in self.class_boundary_iou()],
            "class_boundary_f": [_or_none(value) for value in self.class_boundary_f()],
            "class_connectivity_error": [_or_none(value) for value in self.class_connectivity_error()],
        }

    def _count_boundary_regions(
        self, guess: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        distance = boundary_distance(truth.shape[0], truth.shape[1], self.dilation_ratio)
        guess_band, truth_band = boundary_band(guess, distance), boundary_band(truth, distance)
        both = self._count(truth[guess_band & truth_band & (guess == truth)])
        either = self._count(guess[guess_band]) + self._count(truth[truth_band]) - both
        return both, either

    def _count_contours(self, guess: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        guess_contour, truth_contour = contour_pixels(guess), contour_pixels(truth)
        counts = np.zeros((4, self.classes), np.int64)
        for name in range(self.classes):
            mine, theirs = guess_contour & (guess == name), truth_contour & (truth == name)
            counts[1, name] = np.count_nonzero(mine)
            counts[3, name] = np.count_nonzero(theirs)
            if mine.any() and theirs.any():
                counts[0, name] = np.count_nonzero(mine & widen(theirs, self.tolerance_px))
                counts[2, name] = np.count_nonzero(theirs & widen(mine, self.tolerance_px))
        return counts

    def _count(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        return np.bincount(ids, minlength=self.classes)


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
