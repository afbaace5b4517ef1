from __future__ import annotations

import copy
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brd_edge.runtime.contours import boundary_band, boundary_distance
from brd_edge.runtime.errors import DataError, EngineError
from brd_edge.runtime.metrics import IGNORE, SegmentationMetrics

CAMVID = Path(os.environ.get("CAMVID_ROOT") or Path(__file__).parents[3] / "shared/camvid")
CASES = [(41, 57, 3), (64, 48, 5), (7, 3, 2), (1, 1, 1), (90, 160, 19)]


def random_pair(rng: np.random.Generator, height: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw blobs with ragged boundaries, a prediction that errs along them and elsewhere, and ignored pixels."""
    scores = ndimage.gaussian_filter(rng.standard_normal((classes, height, width)), (0, 3, 3))
    noise = ndimage.gaussian_filter(rng.standard_normal(scores.shape), (0, 2, 2))
    label = scores.argmax(0).astype(np.uint8)
    prediction = (scores + 0.4 * noise).argmax(0).astype(np.uint8)
    label[ndimage.gaussian_filter(rng.standard_normal((height, width)), 2) > 0.25] = IGNORE
    return prediction, label


def published_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return mask minus its erosion, as `mask_to_boundary` of the Boundary IoU code does with OpenCV."""
    padded = np.pad(mask, 1)
    eroded = ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=distance, border_value=1)
    return mask & ~eroded[1:-1, 1:-1]


def published_boundary_iou(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, ratio: float) -> np.ndarray:
    intersection, union = np.zeros(classes), np.zeros(classes)
    for prediction, label in pairs:
        distance = max(1, round(ratio * math.hypot(*label.shape)))
        ignored = label == IGNORE
        for index in range(classes):
            regions = [
                published_boundary((image == index) | ignored, distance) & ~ignored for image in (prediction, label)
            ]
            intersection[index] += (regions[0] & regions[1]).sum()
            union[index] += (regions[0] | regions[1]).sum()
    with np.errstate(invalid="ignore"):
        return intersection / union


def check_with_cityscapes_scripts(pairs: list[tuple[np.ndarray, np.ndarray]], directory: Path) -> SegmentationMetrics:
    """Score pairs of prediction and label here and with cityscapesScripts, and compare everything that it knows."""
    cs = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    ids = np.zeros(256, np.uint8)  # train id to Cityscapes id; what is ignored becomes 0, unlabeled
    names = {}
    for train_id, label in cs.trainId2label.items():
        if 0 <= train_id < 19:
            ids[train_id], names[train_id] = label.id, label.name
    metrics = SegmentationMetrics(19)
    lists: tuple[list[str], list[str]] = ([], [])
    for image, (prediction, label) in enumerate(pairs):
        metrics.update(prediction, label)
        for name, values, paths in (("prediction", prediction, lists[0]), ("label", label, lists[1])):
            paths.append(str(directory / f"{name}{image}.png"))
            Image.fromarray(ids[values]).save(paths[-1])
    args = copy.copy(cs.args)
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    expected = cs.evaluateImgLists(*lists, args)

    theirs = [expected["classScores"][names[i]] for i in range(19)]
    np.testing.assert_allclose(metrics.class_iou(), theirs, rtol=0, atol=1e-9)
    assert metrics.miou() == pytest.approx(expected["averageScoreClasses"], abs=1e-9)
    inside = np.array(expected["confMatrix"])[np.ix_(ids[:19], ids[:19])]
    np.testing.assert_array_equal(metrics.confusion, inside)
    assert metrics.pixel_accuracy() == pytest.approx(np.trace(inside) / inside.sum(), abs=1e-12)
    return metrics


def test_iou_equals_cityscapes_scripts(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pairs = [random_pair(rng, 90, 160, 16) for _ in range(3)]
    for prediction, label in pairs:
        prediction[:4, :9] = 16  # a class that is in the prediction alone
        label[-4:, -9:] = 17  # one that is in the label alone
        prediction[label == IGNORE] = 18  # and one that is predicted only where nothing counts
    scores = check_with_cityscapes_scripts(pairs, tmp_path).class_iou()
    assert scores[16] == scores[17] == 0
    assert math.isnan(scores[18])


@pytest.mark.skipif(not (CAMVID / "valannot").is_dir(), reason=f"CamVid is not at {CAMVID}; set CAMVID_ROOT")
def test_scores_of_real_masks_equal_both_independent_ones(tmp_path: Path) -> None:
    labels = [np.asarray(Image.open(path)) for path in sorted((CAMVID / "valannot").glob("*.png"))[::12]]
    labels = [np.where(label == 11, IGNORE, label).astype(np.uint8) for label in labels]
    # the street some frames later: right in most places, and wrong as real outlines are
    pairs = [(np.where(mask == IGNORE, 0, mask).astype(np.uint8), label) for mask, label in pairwise(labels)]
    metrics = check_with_cityscapes_scripts(pairs, tmp_path)
    expected = published_boundary_iou(pairs, 19, 0.02)
    np.testing.assert_allclose(metrics.class_boundary_iou(), expected, rtol=0, atol=1e-12)
    assert 0 < metrics.boundary_iou() < metrics.miou() < 1


@pytest.mark.parametrize(("height", "width", "classes"), CASES)
@pytest.mark.parametrize("ratio", [0.02, 0.07])
def test_boundary_iou_equals_the_published_definition(height: int, width: int, classes: int, ratio: float) -> None:
    rng = np.random.default_rng(height)
    pairs = [random_pair(rng, height, width, classes) for _ in range(2)]
    metrics = SegmentationMetrics(classes, dilation_ratio=ratio)
    for prediction, label in pairs:
        metrics.update(prediction, label)
    expected = published_boundary_iou(pairs, classes, ratio)
    np.testing.assert_allclose(metrics.class_boundary_iou(), expected, rtol=0, atol=1e-12)
    if not np.isnan(expected).all():
        assert metrics.boundary_iou() == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_boundary_iou_of_drawn_masks() -> None:
    rows, columns = np.mgrid[:120, :200]
    label = np.zeros((120, 200), np.uint8)
    label[(rows - 60) ** 2 + (columns - 70) ** 2 < 35**2] = 1
    label[20:110, 150:153] = 2  # thinner than the band
    label[:, 195:] = IGNORE
    prediction = np.roll(np.where(label == IGNORE, 0, label).astype(np.uint8), 2, axis=1)
    metrics = SegmentationMetrics(4)
    metrics.update(prediction, label)
    expected = published_boundary_iou([(prediction, label)], 4, 0.02)
    np.testing.assert_allclose(metrics.class_boundary_iou(), expected, rtol=0, atol=1e-12)
    # a thin object lies in its own band altogether: there the two measures agree, elsewhere the band is stricter
    assert expected[2] == metrics.class_iou()[2]
    assert expected[1] < metrics.class_iou()[1]


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8, 30])
def test_band_is_the_union_of_the_classes_boundaries(distance: int) -> None:
    _, label = random_pair(np.random.default_rng(distance), 50, 70, 6)
    ignored = label == IGNORE
    parts = [published_boundary((label == index) | ignored, distance) & (label == index) for index in range(6)]
    np.testing.assert_array_equal(boundary_band(label, distance), np.any(parts, axis=0))


def test_ignored_pixels_make_no_boundary() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[15:25, 15:25] = IGNORE
    assert not boundary_band(label, 3)[3:-3, 3:-3].any()
    # a change of class that lies wholly under ignored pixels is not seen from outside either
    label[15:25] = IGNORE
    label[25:] = 1
    assert not boundary_band(label, 3)[3:-3, 3:-3].any()


def test_boundary_distance() -> None:
    assert boundary_distance(360, 480) == 12
    assert boundary_distance(1024, 2048) == 46
    assert boundary_distance(8, 8) == 1


def test_perfect_prediction_and_only_ignored() -> None:
    _, label = random_pair(np.random.default_rng(1), 60, 80, 4)
    metrics = SegmentationMetrics(5)
    metrics.update(np.where(label == IGNORE, 4, label), label)
    assert metrics.miou() == metrics.boundary_iou() == metrics.pixel_accuracy() == 1.0
    nothing = SegmentationMetrics(5)
    nothing.update(np.zeros((60, 80), np.uint8), np.full((60, 80), IGNORE, np.uint8))
    assert math.isnan(nothing.miou())
    assert math.isnan(nothing.boundary_iou())
    assert math.isnan(nothing.pixel_accuracy())
    assert nothing.to_json() == {
        "miou": None,
        "boundary_iou": None,
        "pixel_accuracy": None,
        "boundary_f": None,
        "connectivity_error": None,
        "class_iou": [None] * 5,
        "class_boundary_iou": [None] * 5,
        "class_boundary_f": [None] * 5,
        "class_connectivity_error": [None] * 5,
    }


def test_merge_equals_one_stream() -> None:
    rng = np.random.default_rng(5)
    pairs = [random_pair(rng, 30 + 10 * index, 50, 6) for index in range(4)]
    whole, first, second = (SegmentationMetrics(6) for _ in range(3))
    for index, (prediction, label) in enumerate(pairs):
        whole.update(prediction, label)
        (first if index % 2 else second).update(prediction.astype(np.int64), label.astype(np.int64))
    first.merge(second)
    assert first.to_json() == whole.to_json()
    assert first.images == whole.images == 4
    with pytest.raises(DataError, match="expected classes 6 to merge, got 7"):
        first.merge(SegmentationMetrics(7))


@pytest.mark.parametrize("tolerance", [0, 1, 4])
def test_boundary_f_score_against_scipy(tolerance: int) -> None:
    """Contours by shifting, nearness by binary dilation; scores of the sums over two images of unlike sizes."""
    rng = np.random.default_rng(7)
    pairs = [random_pair(rng, 40, 60, 4), random_pair(rng, 64, 48, 4)]
    metrics = SegmentationMetrics(5, tolerance_px=tolerance)
    counts = np.zeros((4, 5))
    for prediction, label in pairs:
        metrics.update(prediction, label)
        guess = np.where(label == IGNORE, np.uint8(IGNORE), prediction)
        contours = [[scipy_contour(image, index) for index in range(5)] for image in (guess, label)]
        near = [
            [ndimage.binary_dilation(c, np.ones((3, 3)), tolerance) if tolerance else c for c in row]
            for row in contours
        ]
        for index in range(5):
            counts[:, index] += [
                (contours[0][index] & near[1][index]).sum(),
                contours[0][index].sum(),
                (contours[1][index] & near[0][index]).sum(),
                contours[1][index].sum(),
            ]
    with np.errstate(invalid="ignore"):
        precision, recall = counts[0] / counts[1], counts[2] / counts[3]
        expected = 2 * precision * recall / (precision + recall)

    assert np.isnan(expected[4])
    assert 0.2 < np.nanmean(expected) < 1
    np.testing.assert_allclose(metrics.class_boundary_f(), expected, rtol=1e-12)
    assert metrics.boundary_f() == pytest.approx(np.nanmean(expected))


def scipy_contour(image: np.ndarray, index: int) -> np.ndarray:
    """Pixels of a class with a pixel of another known class above, below, left or right."""
    other = (image != index) & (image != IGNORE)
    cross = ndimage.generate_binary_structure(2, 1)
    return (image == index) & ndimage.binary_dilation(other, cross)


def test_boundary_f_score_of_a_class_on_one_side_only_is_zero() -> None:
    label = np.zeros((20, 20), np.uint8)
    prediction = label.copy()
    prediction[5:9, 5:9] = 1
    metrics = SegmentationMetrics(3)
    metrics.update(prediction, label)

    scores = metrics.class_boundary_f()

    assert scores[:2].tolist() == [0, 0]
    assert np.isnan(scores[2])


@pytest.mark.parametrize(("shift", "expected"), [(3, 1.0), (4, 0.0)])
def test_contours_agree_at_three_pixels_unless_told_otherwise(shift: int, expected: float) -> None:
    """Published scores rest on this default: one straight contour, moved."""
    label, moved = np.zeros((2, 8, 40), np.uint8)
    label[:, 20:] = 1
    moved[:, 20 + shift :] = 1
    metrics = SegmentationMetrics(2)
    metrics.update(moved, label)

    assert metrics.class_boundary_f().tolist() == [expected, expected]


def test_connectivity_can_be_left_out() -> None:
    prediction, label = random_pair(np.random.default_rng(1), 40, 40, 3)
    metrics = SegmentationMetrics(3, connectivity=False)
    metrics.update(prediction, label)

    assert metrics.to_json()["connectivity_error"] is None
    with pytest.raises(DataError, match="expected connectivity False to merge, got True"):
        metrics.merge(SegmentationMetrics(3))


def test_memory_does_not_grow_with_the_images() -> None:
    import tracemalloc

    pairs = [random_pair(np.random.default_rng(seed), 60, 80, 4) for seed in range(3)]
    metrics = SegmentationMetrics(4)
    held = []
    tracemalloc.start()
    for repeat in range(12):
        for prediction, label in pairs:
            metrics.update(prediction, label)
        if repeat in (5, 11):
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[1] <= held[0] + 4096


def test_many_classes_do_not_overflow() -> None:
    label = np.full((20, 20), 254, np.uint8)
    metrics = SegmentationMetrics(255)
    metrics.update(label, label)
    assert metrics.confusion[254, 254] == 400
    assert metrics.confusion.sum() == 400


def test_input_is_left_as_it_was() -> None:
    prediction, label = random_pair(np.random.default_rng(2), 40, 40, 3)
    before = prediction.copy(), label.copy()
    prediction.flags.writeable = label.flags.writeable = False
    SegmentationMetrics(3).update(prediction, label)
    np.testing.assert_array_equal(prediction, before[0])
    np.testing.assert_array_equal(label, before[1])


@pytest.mark.parametrize(
    ("prediction", "label", "error", "words"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((4, 6), np.uint8), EngineError, r"\(4, 6\).*\(4, 5\)"),
        (np.zeros((4, 6), np.float32), np.zeros((4, 6), np.uint8), EngineError, "float32"),
        (np.full((4, 6), 3), np.zeros((4, 6), np.uint8), EngineError, r"0 to 2, got \[3\]"),
        (np.full((4, 6), -1), np.zeros((4, 6), np.uint8), EngineError, r"got \[-1\]"),
        (np.zeros((4, 6), np.uint8), np.full((4, 6), 3), DataError, r"0 to 2 or 255, got \[3\]"),
        (np.zeros((4, 6), np.uint8), np.full((4, 6), 511), DataError, r"got \[511\]"),
        (np.zeros((4, 6), np.uint8), np.zeros((1, 4, 6), np.uint8), DataError, r"\(1, 4, 6\)"),
    ],
)
def test_bad_input_is_refused(prediction: np.ndarray, label: np.ndarray, error: type[Exception], words: str) -> None:
    metrics = SegmentationMetrics(3)
    with pytest.raises(error, match=words):
        metrics.update(prediction, label)
    assert metrics.images == 0
    assert metrics.confusion.sum() == 0


@pytest.mark.parametrize("classes", [0, 256])
def test_number_of_classes_is_checked(classes: int) -> None:
    with pytest.raises(DataError, match="1 to 255 classes"):
        SegmentationMetrics(classes)
