"""The connectivity error on drawn cases, and against a slow flood fill."""

from __future__ import annotations

import subprocess
import sys
from collections import deque

import numpy as np
import pytest
from scipy import ndimage

from brd_edge.runtime.metrics import IGNORE, SegmentationMetrics
from brd_edge.runtime.regions import count_mismatches


def _street() -> np.ndarray:
    """Ground (0) with a pole (1) and two cars (2)."""
    label = np.zeros((60, 80), np.uint8)
    label[5:50, 10:13] = 1
    label[40:50, 30:45] = 2
    label[40:50, 50:65] = 2
    return label


def test_equal_maps_have_no_error() -> None:
    label = _street()
    mismatches, regions = count_mismatches(label, label, 3)

    assert mismatches.tolist() == [0, 0, 0]
    assert regions.tolist() == [2, 2, 4]


def test_a_cut_pole() -> None:
    cut = _street()
    cut[20:24, 10:13] = 0

    mismatches, regions = count_mismatches(cut, _street(), 3)

    # one pole has two counterparts, each of which has one
    assert (mismatches[1], regions[1]) == (1, 3)
    assert (mismatches[0], mismatches[2]) == (0, 0)


def test_a_region_split_in_three() -> None:
    split = _street()
    split[40:50, 34] = 0
    split[40:50, 40] = 0

    mismatches, regions = count_mismatches(split, _street(), 3)

    assert (mismatches[2], regions[2]) == (2, 6)


def test_a_merged_pair() -> None:
    merged = _street()
    merged[44:46, 45:50] = 2

    mismatches, regions = count_mismatches(merged, _street(), 3)

    assert (mismatches[2], regions[2]) == (1, 3)


def test_a_missed_and_a_made_up_region() -> None:
    wrong = _street()
    wrong[5:50, 10:13] = 0
    wrong[5:15, 60:70] = 2

    mismatches, regions = count_mismatches(wrong, _street(), 3)

    assert (mismatches[1], regions[1]) == (1, 1)
    assert (mismatches[2], regions[2]) == (1, 5)


def test_a_ragged_outline_alone_is_no_error() -> None:
    ragged = _street()
    ragged[40:50:2, 29] = 2
    ragged[40, 30:45:3] = 0

    assert count_mismatches(ragged, _street(), 3)[0].tolist() == [0, 0, 0]


def test_diagonal_steps_hold_together_and_specks_do_not_count() -> None:
    label = np.zeros((100, 120), np.uint8)
    rows = np.arange(10, 60)
    label[rows, rows] = 1
    speckled = label.copy()
    speckled[80, 100] = 1  # one pixel is below 1e-4 of 12000

    assert count_mismatches(label, label, 2)[1].tolist() == [2, 2]
    mismatches, regions = count_mismatches(speckled, label, 2, share_min=2 / label.size)
    assert (mismatches[1], regions[1]) == (0, 2)
    assert count_mismatches(speckled, label, 2, share_min=1e-9)[0][1] == 1


@pytest.mark.parametrize(("height", "width", "least"), [(360, 480, 17), (1024, 2048, 210)])
def test_the_smallest_region_that_counts_is_the_rounded_share(height: int, width: int, least: int) -> None:
    """A ten-thousandth of the pixels: 17.28 of the one size, 209.7 of the other."""
    for area in (least - 1, least):
        label = np.zeros((height, width), np.uint8)
        label[height // 2, :area] = 1

        regions = count_mismatches(label, label, 2)[1]

        assert regions.tolist() == [2, 2 * (area == least)]


def test_ignored_pixels_take_no_part() -> None:
    label = _street()
    label[18:26] = IGNORE  # a void stripe cuts the pole of the label
    whole = _street()
    metrics = SegmentationMetrics(3)

    metrics.update(whole, label)

    assert metrics.class_connectivity_error().tolist() == [0, 0, 0]
    assert metrics.connectivity_error() == 0


def _flood_fill(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    found = []
    while left:
        region, queue = set(), deque([left.pop()])
        while queue:
            row, column = queue.popleft()
            region.add((row, column))
            for near in [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    queue.append(near)
        found.append(region)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_random_maps_against_a_flood_fill(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, label = (
        ndimage.gaussian_filter(rng.standard_normal((3, 40, 50)), (0, 1.5, 1.5)).argmax(0).astype(np.uint8)
        for _ in range(2)
    )
    expected = []
    for name in range(3):
        first, second = (
            [region for region in _flood_fill(image == name) if len(region) >= 4] for image in (prediction, label)
        )
        linked = [[len(a & b) >= max(1, 0.25 * min(len(a), len(b))) for b in second] for a in first]
        table = np.array(linked, int).reshape(len(first), len(second))
        expected.append((abs(table.sum(0) - 1).sum() + abs(table.sum(1) - 1).sum(), len(first) + len(second)))

    mismatches, regions = count_mismatches(prediction, label, 3, share_min=4 / 2000)

    assert list(zip(mismatches.tolist(), regions.tolist(), strict=True)) == expected
    assert sum(mismatches) > 3


def test_without_scipy_the_error_says_what_to_do() -> None:
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "import numpy as np\n"
        "from brd_edge.runtime.errors import RuntimeMissingError\n"
        "from brd_edge.runtime.metrics import SegmentationMetrics\n"
        "frame = np.zeros((8, 8), np.uint8)\n"
        "SegmentationMetrics(2, connectivity=False).update(frame, frame)\n"
        "try:\n    SegmentationMetrics(2).update(frame, frame)\n"
        "except RuntimeMissingError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install scipy" in done.stdout
