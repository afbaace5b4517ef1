"""How certain scores are: bootstrap over images, alone and against a reference on the same images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.errors import DataError
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.runtime.statistics import Interval

__all__ = ["score_intervals", "score_losses"]

_DRAWS = 1000
_SEED = 20240131
# rows of what is counted of each image
_ROWS = {"miou": (0, 1), "boundary_iou": (2, 3)}


def score_intervals(metrics: SegmentationMetrics, *, confidence: float = 0.95) -> dict[str, Interval]:
    """Return mIoU and Boundary IoU with intervals over which images happened to be in the split.

    Images are drawn with replacement, all counts of an image together; a class that a draw does not hold is left
    out of its mean, as everywhere.

    Args:
        metrics: With the counts of every image (`keep_images`); at least one image.
        confidence: Of the intervals, 0 to 1.

    Raises:
        DataError: The counts of the images were not kept.
    """
    counts, weights = _counts(metrics), _weights(metrics.images)
    return {name: _interval(counts, counts, weights, name, confidence, alone=True) for name in _ROWS}


def score_losses(
    metrics: SegmentationMetrics, reference: SegmentationMetrics, *, confidence: float = 0.95
) -> dict[str, Interval]:
    """Return how much mIoU and Boundary IoU are lost against a reference, with intervals over images.

    The same images are drawn for both, so that what makes an image easy or hard cancels.

    Args:
        metrics: With the counts of every image.
        reference: The same of what is compared with, on the same images in the same order.
        confidence: Of the intervals, 0 to 1.

    Returns:
        Reference minus score: above 0 where something was lost.

    Raises:
        DataError: The counts of the images were not kept, or are not of the same images.
    """
    mine, theirs = _counts(metrics), _counts(reference)
    if mine.shape != theirs.shape:
        raise DataError(
            f"intervals: expected counts of the same images and classes, got {mine.shape} and {theirs.shape}"
        )
    weights = _weights(metrics.images)
    return {name: _interval(theirs, mine, weights, name, confidence, alone=False) for name in _ROWS}


def _counts(metrics: SegmentationMetrics) -> npt.NDArray[np.float64]:
    if not metrics.keep_images or not metrics.per_image:
        raise DataError("intervals: expected metrics with the counts of every image (keep_images=True), got none")
    return np.stack(metrics.per_image).astype(np.float64)


def _weights(images: int) -> npt.NDArray[np.float64]:
    """Return how often each image is in each draw, (draws + 1, images); the last row takes each image once."""
    drawn = np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), _DRAWS)
    return np.vstack([drawn, np.ones(images, np.int64)]).astype(np.float64)


def _interval(
    first: npt.NDArray[np.float64],
    second: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    name: str,
    confidence: float,
    *,
    alone: bool,
) -> Interval:
    scores = _scores(first, weights, name)
    if not alone:
        scores = scores - _scores(second, weights, name)
    low, high = np.nanpercentile(scores[:-1], (50 * (1 - confidence), 50 * (1 + confidence)))
    return Interval(float(scores[-1]), float(low), float(high), confidence)


def _scores(counts: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
    """Return the mean IoU of every draw."""
    part, whole = (weights @ counts[:, row] for row in _ROWS[name])
    ratio = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    present = (whole > 0).sum(1)
    total = np.nansum(ratio, axis=1)
    return np.where(present > 0, total / np.maximum(present, 1), np.nan)
