"""How certain scores are: bootstrap over images, alone and against a reference on the same images.

The bootstrap draws images as if each were taken on its own. Frames of one video clip are not: they show the same street
again, so intervals over them are narrower than what another clip would give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.errors import DataError
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.runtime.statistics import Interval, widening

__all__ = [
    "ScoreChange",
    "ScoreVerdict",
    "agreement_interval",
    "class_iou_intervals",
    "score_changes",
    "score_intervals",
    "score_losses",
]

ScoreVerdict = Literal["better", "worse", "equivalent", "undecided"]

_DRAWS = 1000
_SEED = 20240131
# the larger, the worse, without an upper bound
_ERRORS = ("connectivity_error",)
Array = npt.NDArray[np.float64]


def score_intervals(metrics: SegmentationMetrics, *, confidence: float = 0.95) -> dict[str, Interval]:
    """Return every score with its interval over which images happened to be in the split.

    Images are drawn with replacement, all counts of an image together; means are over the classes of the whole split,
    and a draw that does not hold one takes the whole split's score of it. The intervals are widened as Student's are
    against the normal distribution's, so that a few images do not look certain; one image says nothing of others, and
    its interval is all that there is. Every interval holds its value.

    Args:
        metrics: With the counts of every image (`keep_images`); at least one image.
        confidence: Of the intervals, 0 to 1.

    Returns:
        By the names of `SegmentationMetrics.to_json`, within 0 and 1, of `connectivity_error` from 0 without a bound
        (infinite of one image); NaN for a score that was not counted.

    Raises:
        DataError: The counts of the images were not kept.
    """
    counts = _counts(metrics)
    sums = _draws(counts)
    return {
        name: _interval(score(sums), len(counts), confidence, 0.0, _highest(name)) for name, score in _SCORES.items()
    }


def agreement_interval(shares: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Return the mean agreement over images with its interval, drawn and widened as those of `score_intervals` are.

    Args:
        shares: For each image, the share of pixels that agree, 0 to 1; at least one.
        confidence: Of the interval, 0 to 1.

    Returns:
        Within 0 and 1; all of that where there is one image.
    """
    values = np.asarray(shares, np.float64)
    means = _draws(values[:, None, None])[:, 0, 0] / len(values)
    return _interval(means, len(values), confidence, 0.0, 1.0)


def class_iou_intervals(metrics: SegmentationMetrics, *, confidence: float = 0.95) -> list[Interval]:
    """Return the IoU of each class with its interval over images.

    Draws that hold the class neither in a label nor in a prediction say nothing about it and are left out.

    Args:
        metrics: With the counts of every image (`keep_images`); at least one image.
        confidence: Of the intervals, 0 to 1.

    Returns:
        By class id; NaN for a class that is in no label and no prediction.

    Raises:
        DataError: The counts of the images were not kept.
    """
    counts = _counts(metrics)
    sums = _draws(counts)
    ratios = _ratio(sums[:, 0], sums[:, 1])
    return [_interval(scores, len(counts), confidence, 0.0, 1.0) for scores in ratios.T]


def score_losses(
    metrics: SegmentationMetrics, reference: SegmentationMetrics, *, confidence: float = 0.95
) -> dict[str, Interval]:
    """Return how much of every score is lost against a reference, with intervals over images.

    The same images are drawn for both, so that what makes an image easy or hard cancels. The intervals are widened as
    those of `score_intervals`; of one image it is from -1 to 1, whatever was lost in it, and of `connectivity_error`
    without bounds.

    Args:
        metrics: With the counts of every image.
        reference: The same of what is compared with, on the same images in the same order.
        confidence: Of the intervals, 0 to 1.

    Returns:
        Reference minus score, by name: above 0 where something was lost (of `connectivity_error`, which is an error,
        below 0).

    Raises:
        DataError: The counts of the images were not kept, or are not of the same images.
    """
    mine, theirs = _counts(metrics), _counts(reference)
    if mine.shape != theirs.shape:
        raise DataError(
            f"intervals: expected counts of the same images and classes, got {mine.shape} and {theirs.shape}"
        )
    first, second = _draws(theirs), _draws(mine)
    return {
        name: _interval(score(first) - score(second), len(mine), confidence, -_highest(name), _highest(name))
        for name, score in _SCORES.items()
    }


@dataclass(frozen=True)
class ScoreChange:
    """What became of a score from A to B, on the same images. Everything is a fraction.

    Attributes:
        verdict: `"equivalent"`: the change lies within the margin (two one-sided tests at 5 %). Else `"better"` or
            `"worse"`: B is, the 95 % interval does not hold 0. Else `"undecided"`.
        before: The score of A.
        after: The score of B.
        difference: B minus A, with its 95 % interval; above 0 is better, but worse of an error.
        equivalence: The same with the 90 % interval, which the two one-sided tests compare with the margin.
    """

    verdict: ScoreVerdict
    before: float
    after: float
    difference: Interval
    equivalence: Interval

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types: None for an end of an interval that has none."""
        values = asdict(self)
        for name in ("difference", "equivalence"):
            values[name] = {key: end if math.isfinite(end) else None for key, end in values[name].items()}
        return values


def score_changes(
    before: npt.NDArray[np.int64], after: npt.NDArray[np.int64], *, margin: float
) -> dict[str, ScoreChange]:
    """Judge how every score changed from A to B.

    The same images are drawn for both. The intervals are widened as Student's are against the normal distribution's,
    so that a few images do not look certain; a single image decides nothing, unless nothing changed in it.

    Args:
        before: Counts of A, integers (N, 10, K), as `SegmentationMetrics.per_image`; N at least 1.
        after: Counts of B on the same images in the same order.
        margin: Largest change that counts as none, as a fraction above 0.

    Returns:
        The changes by the names of `score_intervals`; a score that one of them lacks (no class is present, or it
        was not counted) is left out.

    Raises:
        DataError: The counts are not of the same images and classes.

    Example:
        >>> score_changes(counts, counts, margin=0.005)["miou"].verdict
        'equivalent'
    """
    if before.shape != after.shape or before.ndim != 3 or not len(before):
        raise DataError(f"changes: expected counts of the same images and classes, got {before.shape}, {after.shape}")
    first, second = _draws(before.astype(np.float64)), _draws(after.astype(np.float64))
    found = {}
    for name, score in _SCORES.items():
        scores = score(first), score(second)
        if not np.isnan(scores[0][-1] + scores[1][-1]):
            found[name] = _change(name, *scores, len(before), margin)
    return found


def _change(name: str, before: Array, after: Array, images: int, margin: float) -> ScoreChange:
    """Judge the values of a score in all draws, the last of which takes each image once."""
    drawn = after - before
    middle = float(drawn[-1])
    if images == 1:
        # every draw is the image itself: where it changed, nothing is known about others
        end = _highest(name) if middle else 0.0
        outer, inner = (Interval(middle, -end, end, confidence) for confidence in (0.95, 0.90))
    else:
        outer, inner = (_widened(middle, drawn[:-1], images, confidence) for confidence in (0.95, 0.90))
    verdict: ScoreVerdict = "undecided"
    if inner.low > -margin and inner.high < margin:
        verdict = "equivalent"
    elif outer.high < 0 or outer.low > 0:
        verdict = "better" if (outer.low > 0) == (name not in _ERRORS) else "worse"
    return ScoreChange(verdict, float(before[-1]), float(after[-1]), outer, inner)


def _widened(middle: float, drawn: Array, images: int, confidence: float) -> Interval:
    """Return the interval of several images' draws around the value itself, which it always holds."""
    factor = widening(images, confidence)
    low, high = np.nanpercentile(drawn, (50 * (1 - confidence), 50 * (1 + confidence)))
    below, above = factor * min(float(low - middle), 0.0), factor * max(float(high - middle), 0.0)
    return Interval(middle, middle + below, middle + above, confidence)


def _counts(metrics: SegmentationMetrics) -> Array:
    if not metrics.keep_images or not metrics.per_image:
        raise DataError("intervals: expected metrics with the counts of every image (keep_images=True), got none")
    return np.stack(metrics.per_image).astype(np.float64)


def _draws(counts: Array) -> Array:
    """Return the sums over the images of each draw, (draws + 1, rows, K); the last one takes each image once."""
    images = len(counts)
    drawn = np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), _DRAWS)
    weights = np.vstack([drawn, np.ones(images, np.int64)]).astype(np.float64)
    return np.tensordot(weights, counts, axes=1)


def _highest(name: str) -> float:
    """Return what a score cannot exceed: regions in many pieces are counted as errors more often than there are any."""
    return math.inf if name in _ERRORS else 1.0


def _interval(scores: Array, images: int, confidence: float, lowest: float, highest: float) -> Interval:
    """Return the interval of the scores of all draws, the last of which is the value itself, within both bounds."""
    value, known = float(scores[-1]), scores[:-1][~np.isnan(scores[:-1])]
    if math.isnan(value) or not known.size:
        return Interval(value, math.nan, math.nan, confidence)
    if images == 1:
        return Interval(value, lowest, highest, confidence)
    found = _widened(value, known, images, confidence)
    return Interval(value, max(found.low, lowest), min(found.high, highest), confidence)


def _ratio(part: Array, whole: Array) -> Array:
    ratio = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _mean(values: Array) -> Array:
    """Return the mean over the classes of the whole split, whose scores are the last row; NaN without any.

    A draw that does not hold a class says nothing about it, and takes the whole split's score of it: a mean over fewer
    classes would be another score, far from this one where the class is a hard one.
    """
    present = ~np.isnan(values[-1])
    known = np.where(np.isnan(values), values[-1], values)[:, present]
    return _ratio(known.sum(-1), np.full(len(known), float(present.sum())))


def _pixel_accuracy(sums: Array) -> Array:
    # every pixel lies in the masks of its label and of its prediction: in both sums of hit and union together, twice
    hit = sums[:, 0].sum(-1)
    return _ratio(hit, (hit + sums[:, 1].sum(-1)) / 2)


def _boundary_f(sums: Array) -> Array:
    near_guess, guess, near_truth, truth = np.moveaxis(sums[:, 4:8], 1, 0)
    precision, recall = _ratio(near_guess, guess), _ratio(near_truth, truth)
    score = _ratio(2 * precision * recall, precision + recall)
    score[(guess + truth > 0) & np.isnan(score)] = 0.0
    return _mean(score)


_SCORES: dict[str, Callable[[Array], Array]] = {
    "miou": lambda sums: _mean(_ratio(sums[:, 0], sums[:, 1])),
    "boundary_iou": lambda sums: _mean(_ratio(sums[:, 2], sums[:, 3])),
    "pixel_accuracy": _pixel_accuracy,
    "boundary_f": _boundary_f,
    "connectivity_error": lambda sums: _mean(_ratio(sums[:, 8], sums[:, 9])),
}
"""From sums of the rows of `SegmentationMetrics.per_image`, (draws, 10, K), to each score, (draws,)."""
