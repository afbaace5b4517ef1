"""Intervals of scores against scipy's bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from brd_edge.evaluate.intervals import score_intervals, score_losses
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.metrics import SegmentationMetrics

IMAGES, CLASSES = 24, 3
NAMES = ["miou", "boundary_iou", "pixel_accuracy", "boundary_f", "connectivity_error"]


def make_image(noise: float, i: int) -> SegmentationMetrics:
    """A prediction that is wrong in some blocks; some images are harder, for every noise alike."""
    metrics = SegmentationMetrics(CLASSES, keep_images=True, tolerance_px=1)
    rng = np.random.default_rng(i)
    label = np.kron(rng.integers(0, CLASSES, (4, 6)), np.ones((6, 6), int)).astype(np.uint8)
    guess = label.copy()
    wrong = np.kron(rng.random((8, 12)) < noise * (1 + i % 3), np.ones((3, 3), bool))
    guess[wrong] = (guess[wrong] + 1) % CLASSES
    label[0] = 255
    metrics.update(guess, label)
    return metrics


def merged(images: Sequence[SegmentationMetrics]) -> SegmentationMetrics:
    metrics = SegmentationMetrics(CLASSES, keep_images=True, tolerance_px=1)
    for image in images:
        metrics.merge(image)
    return metrics


def make_metrics(noise: float) -> SegmentationMetrics:
    return merged([make_image(noise, i) for i in range(IMAGES)])


@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_the_scores_themselves(name: str) -> None:
    metrics, better = make_metrics(0.1), make_metrics(0.05)
    mine, theirs = (item.to_json()[name] for item in (metrics, better))
    assert score_intervals(metrics)[name].value == pytest.approx(mine, abs=1e-12)
    assert score_losses(metrics, better)[name].value == pytest.approx(theirs - mine, abs=1e-12)
    assert set(score_intervals(metrics)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_intervals_are_those_of_scipy(name: str) -> None:
    worse, better = ([make_image(noise, i) for i in range(IMAGES)] for noise in (0.1, 0.05))

    def score(images: list[SegmentationMetrics], drawn: np.ndarray) -> float:
        # the metrics' own formulas on what they count of the images drawn
        return float(getattr(merged([images[i] for i in drawn]), name)())

    for found, statistic in (
        (score_intervals(merged(worse))[name], lambda drawn: score(worse, drawn)),
        (score_losses(merged(worse), merged(better))[name], lambda drawn: score(better, drawn) - score(worse, drawn)),
    ):
        theirs = stats.bootstrap(
            (np.arange(IMAGES),),
            statistic,
            n_resamples=1000,
            method="percentile",
            vectorized=False,
            rng=np.random.default_rng(0),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert found.low == pytest.approx(theirs.low, abs=0.17 * width)
        assert found.high == pytest.approx(theirs.high, abs=0.17 * width)


def test_pairing_makes_the_difference_more_certain() -> None:
    worse, better = make_metrics(0.1), make_metrics(0.09)
    paired = score_losses(worse, better)["miou"]
    alone = score_intervals(worse)["miou"]
    assert paired.high - paired.low < 0.8 * (alone.high - alone.low)


def test_equal_predictions_lose_nothing_for_certain() -> None:
    found = score_losses(make_metrics(0.1), make_metrics(0.1))
    assert all((item.value, item.low, item.high) == (0, 0, 0) for item in found.values())


def test_merged_metrics_keep_their_images() -> None:
    both = make_metrics(0.1)
    both.merge(make_metrics(0.1))
    assert len(both.per_image) == both.images == 2 * IMAGES


def test_counts_must_be_there_and_of_the_same_images() -> None:
    with pytest.raises(DataError, match="keep_images=True"):
        score_intervals(SegmentationMetrics(CLASSES))
    more = make_metrics(0.1)
    more.merge(make_metrics(0.1))
    with pytest.raises(DataError, match="the same images and classes"):
        score_losses(make_metrics(0.1), more)
