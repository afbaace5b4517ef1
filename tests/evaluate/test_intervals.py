"""Intervals of scores against scipy's bootstrap over images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brd_edge.evaluate.intervals import score_intervals, score_losses
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.metrics import SegmentationMetrics

IMAGES, CLASSES = 24, 3


def make_metrics(noise: float, *, keep: bool = True) -> SegmentationMetrics:
    """Predictions that are wrong in some blocks; some images are harder, for every noise alike."""
    metrics = SegmentationMetrics(CLASSES, connectivity=False, keep_images=keep)
    for i in range(IMAGES):
        rng = np.random.default_rng(i)
        label = np.kron(rng.integers(0, CLASSES, (4, 6)), np.ones((6, 6), int)).astype(np.uint8)
        guess = label.copy()
        wrong = np.kron(rng.random((8, 12)) < noise * (1 + i % 3), np.ones((3, 3), bool))
        guess[wrong] = (guess[wrong] + 1) % CLASSES
        label[0] = 255
        metrics.update(guess, label)
    return metrics


def score(metrics: SegmentationMetrics, images: np.ndarray, rows: tuple[int, int]) -> float:
    counts = np.stack(metrics.per_image)[images].sum(0)
    part, whole = counts[rows[0]], counts[rows[1]]
    return float(np.mean(part[whole > 0] / whole[whole > 0]))


def test_estimates_are_the_scores_themselves() -> None:
    metrics = make_metrics(0.1)
    found = score_intervals(metrics)
    assert found["miou"].value == pytest.approx(metrics.miou(), abs=1e-12)
    assert found["boundary_iou"].value == pytest.approx(metrics.boundary_iou(), abs=1e-12)
    losses = score_losses(metrics, make_metrics(0.05))
    assert losses["miou"].value == pytest.approx(make_metrics(0.05).miou() - metrics.miou(), abs=1e-12)


@pytest.mark.parametrize(("name", "rows"), [("miou", (0, 1)), ("boundary_iou", (2, 3))])
def test_intervals_are_those_of_scipy(name: str, rows: tuple[int, int]) -> None:
    worse, better = make_metrics(0.1), make_metrics(0.05)
    for found, statistic in (
        (score_intervals(worse)[name], lambda images: score(worse, images, rows)),
        (score_losses(worse, better)[name], lambda images: score(better, images, rows) - score(worse, images, rows)),
    ):
        theirs = stats.bootstrap(
            (np.arange(IMAGES),),
            statistic,
            n_resamples=1500,
            method="percentile",
            vectorized=False,
            rng=np.random.default_rng(0),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert found.low == pytest.approx(theirs.low, abs=0.15 * width)
        assert found.high == pytest.approx(theirs.high, abs=0.15 * width)


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
        score_intervals(make_metrics(0.1, keep=False))
    more = make_metrics(0.1)
    more.merge(make_metrics(0.1))
    with pytest.raises(DataError, match="the same images and classes"):
        score_losses(make_metrics(0.1), more)
