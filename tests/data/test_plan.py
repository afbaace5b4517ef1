"""Draws: class balance, and images that keep their own size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brd_edge.data.dataset import ClassPixels, Sample, find_class_pixels
from brd_edge.data.plan import Augmentation, Plan
from brd_edge.runtime.contract import SLIDING_WINDOW, InputContract
from brd_edge.runtime.errors import DataError

CONTRACT = InputContract(height=48, width=64, mean=(0, 0, 0), std=(1, 1, 1))
CROPS = Augmentation(crop=(16, 16), scale=(1.0, 1.0), flip=0.5, brightness=0.0, contrast=0.0, saturation=0.0)


def make_sample(name: str, label: np.ndarray) -> Sample:
    return Sample(name, Path("i"), Path("l"), *label.shape, find_class_pixels(label))


def corner_label() -> np.ndarray:
    """One percent of the pixels is of class 1, in a corner."""
    label = np.zeros((48, 64), np.uint8)
    label[44:, 56:] = 1
    return label


def count_hits(augmentation: Augmentation, label: np.ndarray, batches: int = 50) -> float:
    samples = tuple(make_sample(f"{i}", label) for i in range(10))
    plan = Plan(samples, CONTRACT, augmentation, 10, 0, "torch")
    draws = [draw for batch in range(batches) for draw in plan.draws(batch)]
    windows = [label[d.origin[0] : d.origin[0] + 16, d.origin[1] : d.origin[1] + 16] for d in draws]
    assert all(window.shape == (16, 16) for window in windows)
    return float(np.mean([(window == 1).any() for window in windows]))


def test_balanced_crops_see_small_classes() -> None:
    plain, balanced = (count_hits(replace(CROPS, class_balance=p), corner_label()) for p in (0.0, 1.0))
    # of the 33 x 49 places of the window, those whose far edges reach the corner
    assert plain == pytest.approx((33 - 29) * (49 - 41) / (33 * 49), abs=0.03)
    # half of the draws choose the small class, and nearly all of those windows hold some of it
    assert 0.45 < balanced < 0.6


def test_balance_chooses_classes_with_equal_chances_and_centres_nowhere() -> None:
    label = np.zeros((480, 640), np.uint8)
    label[200:210, 300:310] = 1
    samples = (make_sample("a", label),)
    contract = replace(CONTRACT, height=480, width=640)
    plan = Plan(samples, contract, replace(CROPS, class_balance=1.0), 1, 0, "torch")
    draws = [plan.draws(batch)[0] for batch in range(1000)]
    places = [
        (y - d.origin[0], x - d.origin[1])
        for d in draws
        for y, x in samples[0].classes[1].points
        if 0 <= y - d.origin[0] < 16 and 0 <= x - d.origin[1] < 16
    ]
    hit = np.mean([185 <= d.origin[0] <= 209 and 285 <= d.origin[1] <= 309 for d in draws])
    assert 0.45 < hit < 0.55
    # the point may lie anywhere in the window
    for axis in (0, 1):
        values = np.array(places)[:, axis]
        assert values.min() <= 1
        assert values.max() >= 14


def test_without_balance_the_draws_stay_as_they_were() -> None:
    label = corner_label()
    samples = tuple(make_sample(f"{i}", label) for i in range(10))
    without = Plan(samples, CONTRACT, CROPS, 10, 0, "torch").draws(3)
    bare = tuple(replace(sample, classes=()) for sample in samples)
    assert Plan(bare, CONTRACT, replace(CROPS, class_balance=1.0), 10, 0, "torch").draws(3) == without
    half = Plan(samples, CONTRACT, replace(CROPS, class_balance=0.5), 10, 0, "torch").draws(3)
    assert [d.flip for d in half] == [d.flip for d in without]
    assert 0 < sum(a == b for a, b in zip(half, without, strict=True)) < 10


def test_images_in_windows_are_scaled_from_their_own_size() -> None:
    sizes = ((100, 300), (20, 10), (64, 48))
    samples = tuple(Sample(f"{i}", Path("i"), Path("l"), *size, ()) for i, size in enumerate(sizes))
    contract = replace(CONTRACT, resize=SLIDING_WINDOW)
    draws = Plan(samples, contract, replace(CROPS, scale=(2.0, 2.0)), 3, 0, "torch").draws(0)
    assert {draw.index: draw.scaled for draw in draws} == {i: (2 * h, 2 * w) for i, (h, w) in enumerate(sizes)}
    draws = Plan(samples, CONTRACT, replace(CROPS, scale=(2.0, 2.0)), 3, 0, "torch").draws(0)
    assert {draw.scaled for draw in draws} == {(96, 128)}


def test_balance_out_of_range() -> None:
    with pytest.raises(DataError, match=r"class_balance must be from 0 to 1, got 1\.5"):
        replace(CROPS, class_balance=1.5)


def test_class_pixels_as_numbers() -> None:
    found = ClassPixels(3, 7, ((1, 2), (5, 0)))
    assert found.to_json() == [3, 7, 1, 2, 5, 0]
    assert ClassPixels.from_json(found.to_json()) == found
