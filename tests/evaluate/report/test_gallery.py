"""The gallery's pictures are decoded again and compared with the arrays they were made of."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brd_edge.evaluate.report.gallery import (
    Picture,
    ReportSample,
    boundary_differences,
    draw_sample,
    most_differing,
    worst_region,
)
from brd_edge.runtime.metrics import SegmentationMetrics

CROSS = ndimage.generate_binary_structure(2, 1)
PALETTE = [[128, 64, 128], [70, 130, 180], [220, 220, 0]]


def pixels(picture: Picture) -> np.ndarray:
    content = base64.b64decode(picture.uri.split(",", 1)[1], validate=True)
    decoded = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert decoded.shape == (picture.height, picture.width, 3)
    return decoded


def a_label() -> np.ndarray:
    label = np.zeros((60, 80), dtype=np.uint8)
    label[:30] = 1
    label[10:20, 50:70] = 2
    label[50:] = 255
    return label


def test_masks_have_the_palettes_colours_exactly() -> None:
    label = a_label()
    student = np.where(label == 255, 0, label).astype(np.uint8)
    sample = ReportSample("one", np.full((60, 80, 3), 90, np.uint8), label, {"student": student})
    tiles, _ = draw_sample(sample, PALETTE)
    assert [tile.title for tile in tiles] == ["image", "label", "student"]
    colors = np.array(PALETTE, dtype=np.uint8)
    assert np.array_equal(pixels(tiles[2].whole), colors[student])
    shown = pixels(tiles[1].whole)
    assert np.array_equal(shown[label != 255], colors[label[label != 255]])
    assert not (shown[label == 255][:, None] == colors).all(axis=2).any()
    assert np.abs(pixels(tiles[0].whole).astype(int) - 90).max() <= 2  # JPEG


def test_notes_count_errors_on_labelled_pixels_only() -> None:
    label = a_label()
    right = np.where(label == 255, 0, label).astype(np.uint8)
    student, engine = right.copy(), right.copy()
    student[:4, :60] = 0  # 240 of 60 * 80 - 800 = 4000 labelled pixels
    student[55:] = 2  # ignored
    engine[:4, :60], engine[55:], engine[0, 0] = 0, 2, 1
    masks = {"teacher": right, "student": student, "same": student.copy(), "engine": engine}
    tiles, _ = draw_sample(ReportSample("one", np.zeros((60, 80, 3), np.uint8), label, masks), PALETTE)
    notes = {tile.title: tile.notes for tile in tiles[2:]}
    assert notes["teacher"] == ("0.0 % wrong",)
    assert notes["student"] == ("6.0 % wrong",)
    assert notes["same"] == ("6.0 % wrong", "same as student")
    assert notes["engine"] == ("6.0 % wrong", "0.02 % unlike student")  # 1 of 4800


@pytest.mark.parametrize("shape", [(40, 60), (33, 17), (5, 90), (1, 1)])
def test_worst_region_equals_scipys_window_sums(shape: tuple[int, int]) -> None:
    errors = np.random.default_rng(sum(shape)).random(shape) < 0.2
    region = worst_region(errors, share=0.3)
    rows, columns = max(1, round(0.3 * shape[0])), max(1, round(0.3 * shape[1]))
    assert (region.height, region.width) == (rows, columns)
    sums = ndimage.convolve(errors.astype(int), np.ones((rows, columns), dtype=int), mode="constant")
    # of scipy's sums only those whose window lies inside count
    top, left = rows // 2 if rows % 2 else rows // 2 - 1, columns // 2 if columns % 2 else columns // 2 - 1
    inside = sums[top : top + shape[0] - rows + 1, left : left + shape[1] - columns + 1]
    assert region.cut(errors).shape == (rows, columns)
    assert region.cut(errors).sum() == inside.max()


def test_close_up_shows_where_boundaries_differ_and_errors_in_red() -> None:
    label = np.zeros((100, 100), dtype=np.uint8)
    label[:, 60:] = 1
    student, engine = label.copy(), label.copy()
    student[70:88, 5:35] = 2  # the larger error, far from any boundary
    engine[20:40, 58:60] = 1  # a displaced boundary, of the engine alone
    image = np.full((100, 100, 3), 128, np.uint8)
    sample = ReportSample("one", image, label, {"student": student, "engine": engine})
    tiles, place = draw_sample(sample, PALETTE)
    assert place["left"] <= 58
    assert place["left"] + place["width"] >= 60
    assert place["top"] <= 20
    assert place["top"] + place["height"] >= 40
    close = pixels(tiles[-1].close).astype(int)
    top, left = round(place["top"]), round(place["left"])
    red = (close[..., 0] > 150) & (close[..., 1] < 90)
    wrong = (engine != label)[top : top + 30, left : left + 30]
    assert wrong.sum() == 40
    assert (red == wrong).mean() > 0.96  # JPEG smears the edge a little
    assert "errors of engine" in tiles[-1].close.alt


def test_boundary_differences_equal_scipys_erosion() -> None:
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 3, (5, 6)), np.ones((20, 20), int)).astype(np.uint8)
    masks = [np.where(rng.random(label.shape) < 0.1, 0, label).astype(np.uint8) for _ in range(2)]
    distance = round(0.02 * float(np.hypot(*label.shape)))
    inside = np.zeros(label.shape, bool)
    for name in range(3):
        box = np.ones((3, 3))
        inside |= ndimage.binary_erosion(label == name, box, iterations=distance)
    expected = ~inside & ((masks[0] != label) | (masks[1] != label))
    assert expected.any()
    assert np.array_equal(boundary_differences(masks, label), expected)
    # nothing differs: where classes meet is shown
    touching = ndimage.maximum_filter(label, footprint=CROSS) != ndimage.minimum_filter(label, footprint=CROSS)
    assert np.array_equal(boundary_differences([label], label), touching)


def test_images_that_differ_most_at_boundaries_come_first() -> None:
    label = np.zeros((60, 80), np.uint8)
    label[:, 40:] = 1
    drawn = {"right": label, "near": label.copy(), "far": label.copy(), "both": label.copy()}
    drawn["near"][:, 38:40] = 1  # the boundary, two pixels aside
    drawn["far"][20:40, 8:24] = 1  # more wrong pixels, but most of them far from the label's boundary
    drawn["both"][:, 36:40] = 1
    metrics = SegmentationMetrics(2, connectivity=False, keep_images=True)
    other = SegmentationMetrics(2, connectivity=False, keep_images=True)
    for mask in drawn.values():
        metrics.update(mask, label)
        other.update(label, label)
    counts = [np.stack(found.per_image) for found in (metrics, other)]
    assert [list(drawn)[index] for index in most_differing(counts, 3)] == ["both", "near", "far"]
    # among equals the first; never more than there are
    assert most_differing(counts[1:], 9) == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [0, 255])
def test_nothing_wrong_or_nothing_labelled_is_no_error(value: int) -> None:
    label = np.full((20, 30), value, dtype=np.uint8)
    tiles, place = draw_sample(
        ReportSample("one", np.zeros((20, 30, 3), np.uint8), label, {"student": np.zeros((20, 30), np.uint8)}), PALETTE
    )
    assert tiles[2].notes == (("0.0 % wrong",) if value == 0 else ("nothing is labelled",))
    assert place["left"] == pytest.approx(35, abs=2)  # in the middle, for want of anything to show


def test_other_sizes_are_brought_to_the_labels() -> None:
    label = a_label()
    half = np.where(label == 255, 0, label)[::2, ::2].astype(np.uint8)
    tiles, _ = draw_sample(ReportSample("one", np.zeros((30, 40, 3), np.uint8), label, {"student": half}), PALETTE)
    assert {(tile.whole.height, tile.whole.width) for tile in tiles} == {(60, 80)}
    assert tiles[2].notes == ("0.0 % wrong",)


def test_large_pictures_are_reduced() -> None:
    label = np.zeros((1024, 2048), dtype=np.uint8)
    tiles, _ = draw_sample(ReportSample("one", np.zeros((1024, 2048, 3), np.uint8), label, {"student": label}), PALETTE)
    assert {(tile.whole.height, tile.whole.width) for tile in tiles} == {(210, 420)}
