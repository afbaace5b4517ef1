"""Intervals of scores against scipy's bootstrap over images."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from brd_edge.evaluate.gates import Limits, broken_accuracy_gates
from brd_edge.evaluate.intervals import (
    agreement_interval,
    class_iou_intervals,
    score_changes,
    score_intervals,
    score_losses,
)
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


def test_intervals_of_classes_are_those_of_scipy() -> None:
    metrics = merged([make_image(0.1, i) for i in range(IMAGES)])
    counts = np.stack(metrics.per_image)

    def score(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        hit, either = np.moveaxis(counts[drawn.astype(int), :2, 1], -1, 0)
        ratio: np.ndarray = hit.sum(axis) / either.sum(axis)
        return ratio

    found = class_iou_intervals(metrics)
    assert [item.value for item in found] == pytest.approx(metrics.class_iou(), abs=1e-12)
    expected = stats.bootstrap((np.arange(IMAGES),), score, n_resamples=4000, method="percentile", rng=0, axis=-1)
    factor = stats.t(IMAGES - 1).ppf(0.975) / stats.norm.ppf(0.975) * np.sqrt(IMAGES / (IMAGES - 1))
    low, high = (found[1].value + factor * (end - found[1].value) for end in expected.confidence_interval)
    assert found[1].low == pytest.approx(low, abs=0.1 * (high - low))
    assert found[1].high == pytest.approx(high, abs=0.1 * (high - low))
    # a class that nothing holds
    empty = SegmentationMetrics(4, keep_images=True)
    empty.update(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8))
    last = class_iou_intervals(empty)[3]
    assert np.isnan([last.value, last.low, last.high]).all()


def test_agreement_has_an_interval_as_scores_have() -> None:
    shares = np.random.default_rng(1).beta(20, 2, 8)
    found = agreement_interval(shares)
    assert found.value == pytest.approx(shares.mean())
    expected = stats.bootstrap((shares,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    factor = stats.t(7).ppf(0.975) / stats.norm.ppf(0.975) * np.sqrt(8 / 7)
    low, high = (found.value + factor * (end - found.value) for end in expected)
    assert (found.low, found.high) == pytest.approx((low, min(high, 1)), abs=0.1 * (high - low))
    # one image says nothing of others, and where all agree nothing is above 1
    assert agreement_interval([0.99935]).to_json() == {"value": 0.99935, "low": 0, "high": 1, "confidence": 0.95}
    certain = agreement_interval([1.0, 1.0, 1.0])
    assert (certain.low, certain.value, certain.high) == (1, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_intervals_are_those_of_scipy_widened_for_few_images(name: str) -> None:
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
        low, high = found.value + few_images(0.95) * (np.array(theirs) - found.value)
        assert found.low == pytest.approx(low, abs=0.17 * (high - low))
        assert found.high == pytest.approx(high, abs=0.17 * (high - low))


def few_images(confidence: float) -> float:
    level = 0.5 + confidence / 2
    return float(stats.t(IMAGES - 1).ppf(level) / stats.norm.ppf(level) * np.sqrt(IMAGES / (IMAGES - 1)))


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


@pytest.mark.parametrize(("name", "rows"), [("miou", (0, 1)), ("boundary_iou", (2, 3))])
def test_changes_are_those_of_scipy_widened_for_few_images(name: str, rows: tuple[int, int]) -> None:
    before, after = (make_metrics(noise) for noise in (0.05, 0.1))
    found = score_changes(*(np.stack(metrics.per_image) for metrics in (before, after)), margin=0.005)[name]
    assert (found.before, found.after) == (
        pytest.approx(getattr(before, name)(), abs=1e-12),
        pytest.approx(getattr(after, name)(), abs=1e-12),
    )

    def statistic(images: np.ndarray, axis: int) -> np.ndarray:
        assert axis == -1
        return _drawn(after, images, rows) - _drawn(before, images, rows)

    places, theirs = (np.arange(IMAGES),), None
    for interval, confidence in ((found.difference, 0.95), (found.equivalence, 0.90)):
        theirs = stats.bootstrap(
            places,
            statistic,
            n_resamples=0 if theirs else 4000,
            confidence_level=confidence,
            method="percentile",
            vectorized=True,
            bootstrap_result=theirs,
            rng=np.random.default_rng(0),
        )
        low, high = interval.value + few_images(confidence) * (np.array(theirs.confidence_interval) - interval.value)
        assert interval.value == pytest.approx(found.after - found.before, abs=1e-12)
        assert interval.low == pytest.approx(low, abs=0.15 * (high - low))
        assert interval.high == pytest.approx(high, abs=0.15 * (high - low))
        assert interval.confidence == confidence


def _drawn(metrics: SegmentationMetrics, images: np.ndarray, rows: tuple[int, int]) -> np.ndarray:
    """The score of many draws, (draws, images); every class is in every draw."""
    counts = np.stack(metrics.per_image)[images].sum(-3)
    ratios: np.ndarray = counts[..., rows[0], :] / counts[..., rows[1], :]
    return ratios.mean(-1)


def test_verdicts_on_scores() -> None:
    worse, better, same = (np.stack(make_metrics(noise).per_image) for noise in (0.1, 0.05, 0.1))
    for before, after, margin, verdict in (
        (better, worse, 0.005, "worse"),
        (worse, better, 0.005, "better"),
        (worse, same, 1e-9, "equivalent"),
        # what lies wholly within the margin is equivalent, however certain it is
        (better, worse, 0.5, "equivalent"),
    ):
        assert score_changes(before, after, margin=margin)["miou"].verdict == verdict
    mixed = worse.copy()
    mixed[::2] = better[::2]
    mixed[1::2] = (worse - (better - worse))[1::2].clip(0)
    found = score_changes(worse, mixed, margin=0.001)["boundary_iou"]
    assert found.verdict == "undecided", found


def test_two_one_sided_tests_are_those_of_scipy() -> None:
    """On the edge of the margin, the verdict changes where Student's one-sided test says so, up to the bootstrap."""
    before, after = (np.stack(make_metrics(noise).per_image) for noise in (0.1, 0.09))
    found = score_changes(before, after, margin=0.005)["miou"]
    for share, equivalent in ((1.1, True), (0.9, False)):
        margin = share * max(abs(found.equivalence.low), abs(found.equivalence.high))
        assert (score_changes(before, after, margin=margin)["miou"].verdict == "equivalent") == equivalent
    # two tests at 5 % are the interval of 90 %: that of 95 %, which is wider, would not lie within this margin
    inner, outer = (max(-item.low, item.high) for item in (found.equivalence, found.difference))
    margin = (inner + outer) / 2
    assert inner < 0.99 * margin < margin < 0.99 * outer
    assert score_changes(before, after, margin=margin)["miou"].verdict == "equivalent"
    # Student's interval of the mean of pseudo-values (jackknife) is another estimate of the same
    whole = found.difference.value
    left_out = []
    for image in range(IMAGES):
        kept = np.delete(np.arange(IMAGES), image)
        parts = [counts[kept].sum(0) for counts in (after, before)]
        left_out.append(np.subtract(*(np.mean(part[0] / part[1]) for part in parts)))
    pseudo = IMAGES * whole - (IMAGES - 1) * np.array(left_out)
    low, high = stats.t.interval(0.90, IMAGES - 1, pseudo.mean(), stats.sem(pseudo))
    assert found.equivalence.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.equivalence.high == pytest.approx(high, abs=0.15 * (high - low))


def test_one_image_decides_nothing() -> None:
    before, after = (np.stack(make_metrics(noise).per_image)[:1] for noise in (0.05, 0.2))
    assert score_changes(before, after, margin=0.005)["miou"].verdict == "undecided"
    assert score_changes(before, before, margin=0.005)["miou"].verdict == "equivalent"


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_one_image_says_nothing_of_others(noise: float) -> None:
    """Whether something was lost in it or not: a gate is not held, unless the value alone is to decide."""
    reference, metrics = merged([make_image(0.05, 0)]), merged([make_image(noise, 0)])
    lost, alone = score_losses(metrics, reference)["miou"], score_intervals(metrics)["miou"]
    assert (lost.low, lost.high) == (-1, 1)
    assert (alone.low, alone.high) == (0, 1)
    assert lost.value == pytest.approx(reference.miou() - metrics.miou(), abs=1e-12)
    losses = {"miou": lost.to_json()}
    (broken,) = broken_accuracy_gates(Limits(miou_drop_max=99.0), losses)
    assert "but up to 100.00 within the 95 % interval" in broken
    assert broken_accuracy_gates(Limits(miou_drop_max=99.0, uncertain="held"), losses) == []
    # two are more than one, and less than many
    two, many = ([make_image(noise, i) for i in range(count)] for count in (2, IMAGES))
    widths = [item.high - item.low for item in (score_intervals(merged(each))["miou"] for each in (two, many))]
    assert 1 >= widths[0] > widths[1] > 0


def shattered(images: int) -> SegmentationMetrics:
    """Broad stripes across those of the label: each region meets two or three of the other map's."""
    metrics = SegmentationMetrics(2, keep_images=True)
    for i in range(images):
        label = np.ones((47, 47), np.uint8)
        label[[23] if i % 3 == 2 else [15, 31]] = 0
        metrics.update(np.ascontiguousarray(label.T), label)
    return metrics


def test_an_error_above_1_lies_within_its_interval() -> None:
    metrics = shattered(8)
    found = score_intervals(metrics)["connectivity_error"]
    assert found.value == pytest.approx(metrics.connectivity_error()) and found.value > 1
    assert 1 <= found.low < found.value < found.high
    whole = SegmentationMetrics(2, keep_images=True)
    for counts in shattered(8).per_image:
        clean = counts.copy()
        clean[8] = 0
        whole.per_image.append(clean)
    lost = score_losses(metrics, whole)["connectivity_error"]
    assert lost.low < lost.value < lost.high < 0
    assert lost.value == pytest.approx(-found.value)


def test_an_error_of_one_image_has_no_upper_end() -> None:
    metrics = shattered(1)
    better = SegmentationMetrics(2, keep_images=True)
    better.per_image = [metrics.per_image[0].copy()]
    better.per_image[0][8] = 0
    found = score_intervals(metrics)["connectivity_error"]
    assert (found.low, found.high, found.finite) == (0, np.inf, False)
    lost = score_losses(metrics, better)["connectivity_error"]
    assert lost.low < lost.value < -1 and not lost.finite
    before, after = (np.stack(item.per_image) for item in (better, metrics))
    change = score_changes(before, after, margin=0.005)["connectivity_error"]
    assert change.difference.low < change.difference.value < change.difference.high
    assert change.verdict == "undecided"
    assert change.to_json()["difference"] == {**change.difference.to_json(), "low": None, "high": None}
    json.dumps(change.to_json(), allow_nan=False)


def test_classes_that_a_draw_does_not_hold_make_it_no_better() -> None:
    """Each image holds a class of its own, wholly wrong: a draw leaves a third of them out."""
    counts = np.zeros((20, 10, 21), np.int64)
    counts[:, :2, 0] = 100
    counts[np.arange(20), 1, np.arange(1, 21)] = 1
    metrics = SegmentationMetrics(21, keep_images=True)
    metrics.per_image = list(counts)
    found = score_intervals(metrics)["miou"]
    assert (found.low, found.value, found.high) == pytest.approx((1 / 21, 1 / 21, 1 / 21))


@pytest.mark.parametrize("name", ["miou", "boundary_iou"])
def test_a_rare_class_is_in_the_mean_of_every_draw(name: str) -> None:
    """One image of twelve has it, and a third of the draws do not: a mean over the others would be another score."""
    metrics = SegmentationMetrics(3, keep_images=True)
    for number in range(12):
        label = np.zeros((24, 24), np.uint8)
        label[:, 12:] = 1
        guess = label.copy()
        guess[: number + 2, 10:12] = 1
        if number == 5:
            label[4:9, 4:9] = 2
        metrics.update(guess, label)
    counts = np.stack(metrics.per_image).astype(float)
    hit, whole = {"miou": (0, 1), "boundary_iou": (2, 3)}[name]
    assert metrics.to_json()[name] == pytest.approx((counts[:, hit].sum(0) / counts[:, whole].sum(0)).mean())

    rng, drawn = np.random.default_rng(1), []
    for _ in range(4000):
        sums = counts[rng.integers(0, 12, 12)].sum(0)
        # the class is never hit: whatever is drawn, its score is 0
        drawn.append(np.divide(sums[hit], sums[whole], out=np.zeros(3), where=sums[whole] > 0).mean())
    level = stats.t(11).ppf(0.975) / stats.norm.ppf(0.975) * np.sqrt(12 / 11)
    half = level * np.abs(np.percentile(drawn, (2.5, 97.5)) - np.mean(drawn))

    found = score_intervals(metrics)[name]

    assert found.high < 2 / 3
    assert (found.value - found.low, found.high - found.value) == pytest.approx(half, rel=0.15)


def made_up_square() -> SegmentationMetrics:
    """Two halves that are right, and in the right one a square of a class that no label has."""
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 1
    guess = label.copy()
    guess[10:14, 30:34] = 2
    metrics = SegmentationMetrics(3, keep_images=True)
    metrics.update(guess, label)
    return metrics


@pytest.mark.parametrize("images", [1, 3])
def test_a_contour_on_one_side_only_counts_as_zero(images: int) -> None:
    """The right half has 40 contour pixels, to which the prediction adds the 16 around the square: 5/7 are right."""
    metrics = made_up_square()
    for _ in range(images - 1):
        metrics.merge(made_up_square())
    expected = np.mean([1, 2 * (5 / 7) / (1 + 5 / 7), 0])

    assert metrics.boundary_f() == pytest.approx(expected, abs=1e-12)
    assert score_intervals(metrics)["boundary_f"].value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bare", ["before", "after"])
def test_a_score_that_one_side_lacks_is_no_change(bare: str) -> None:
    """Neither the label nor a prediction of one class alone has a contour, which the other prediction has."""
    label = np.zeros((2, 20, 20), np.uint8)
    guess = label.copy()
    guess[:, 5:9, 5:9] = 1
    counts = {}
    for name in ("before", "after"):
        metrics = SegmentationMetrics(2, keep_images=True)
        for image, truth in zip(label if name == bare else guess, label, strict=True):
            metrics.update(image, truth)
        assert np.isnan(metrics.boundary_f()) == (name == bare)
        counts[name] = np.stack(metrics.per_image)

    found = score_changes(counts["before"], counts["after"], margin=0.005)

    assert set(found) == {*NAMES} - {"boundary_f"}


def test_changes_of_what_is_not_there_are_left_out() -> None:
    nothing = np.zeros((5, 10, CLASSES), np.int64)
    assert score_changes(nothing, nothing, margin=0.005) == {}
    with pytest.raises(DataError, match="the same images and classes"):
        score_changes(nothing, nothing[1:], margin=0.005)
