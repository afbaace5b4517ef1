"""How certain scores are: bootstrap over images, alone and against a reference on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.errors import DataError
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.runtime.statistics import Interval, widening

__all__ = ["ScoreChange", "ScoreVerdict", "score_changes", "score_intervals", "score_losses"]

ScoreVerdict = Literal["better", "worse", "equivalent", "undecided"]

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


@dataclass(frozen=True)
class ScoreChange:
    """What became of a score from A to B, on the same images. Everything is a fraction.

    Attributes:
        verdict: `"equivalent"`: the change lies within the margin (two one-sided tests at 5 %). Else `"better"` or
            `"worse"`: B is, the 95 % interval does not hold 0. Else `"undecided"`.
        before: The score of A.
        after: The score of B.
        difference: B minus A, with its 95 % interval.
        equivalence: The same with the 90 % interval, which the two one-sided tests compare with the margin.
    """

    verdict: ScoreVerdict
    before: float
    after: float
    difference: Interval
    equivalence: Interval


def score_changes(
    before: npt.NDArray[np.int64], after: npt.NDArray[np.int64], *, margin: float
) -> dict[str, ScoreChange]:
    """Judge how mIoU and Boundary IoU changed from A to B.

    The same images are drawn for both. The intervals are widened as Student's are against the normal distribution's,
    so that a few images do not look certain; a single image decides nothing, unless nothing changed in it.

    Args:
        before: Counts of A, integers (N, 4, K), as `SegmentationMetrics.per_image`; N at least 1.
        after: Counts of B on the same images in the same order.
        margin: Largest change that counts as none, as a fraction above 0.

    Returns:
        The changes by `"miou"` and `"boundary_iou"`; a score that neither has (no class is present) is left out.

    Raises:
        DataError: The counts are not of the same images and classes.

    Example:
        >>> score_changes(counts, counts, margin=0.005)["miou"].verdict
        'equivalent'
    """
    if before.shape != after.shape or before.ndim != 3 or not len(before):
        raise DataError(f"changes: expected counts of the same images and classes, got {before.shape}, {after.shape}")
    first, second = before.astype(np.float64), after.astype(np.float64)
    weights = _weights(len(before))
    found = {}
    for name in _ROWS:
        scores = _scores(first, weights, name), _scores(second, weights, name)
        if not np.isnan(scores[0][-1] + scores[1][-1]):
            found[name] = _change(*scores, len(before), margin)
    return found


def _change(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], images: int, margin: float) -> ScoreChange:
    """Judge the scores of all draws, the last of which takes each image once."""
    drawn = after - before
    middle = float(drawn[-1])
    outer, inner = (_widened(middle, drawn[:-1], images, confidence) for confidence in (0.95, 0.90))
    verdict: ScoreVerdict = "undecided"
    if inner.low > -margin and inner.high < margin:
        verdict = "equivalent"
    elif outer.high < 0:
        verdict = "worse"
    elif outer.low > 0:
        verdict = "better"
    return ScoreChange(verdict, float(before[-1]), float(after[-1]), outer, inner)


def _widened(middle: float, drawn: npt.NDArray[np.float64], images: int, confidence: float) -> Interval:
    if images == 1:
        # every draw is the image itself: where it changed, nothing is known about others
        end = 1.0 if middle else 0.0
        return Interval(middle, -end, end, confidence)
    factor = widening(images, confidence)
    low, high = np.nanpercentile(drawn, (50 * (1 - confidence), 50 * (1 + confidence)))
    return Interval(middle, middle + factor * float(low - middle), middle + factor * float(high - middle), confidence)


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
