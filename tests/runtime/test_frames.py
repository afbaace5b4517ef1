"""Reading images on a device: the form that the training saw."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brd_edge.runtime.frames import read_image, resize_class_map


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_device_sees_a_rotated_image_as_the_training_does(tmp_path: Path, orientation: int) -> None:
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    np.testing.assert_array_equal(read_image(path), np.rot90(pixels, turns))


def test_16_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], np.arange(256).reshape(16, 16))


def test_a_class_map_takes_the_pixel_that_holds_each_centre_at_any_size() -> None:
    random = np.random.default_rng(0)
    sizes = [(176, 360), (456, 1140), (1, 7), (7, 1), *map(tuple, random.integers(1, 1500, (300, 2)).tolist())]
    for old, new in sizes:
        # in exact fractions: floating point falls to the wrong side of an edge at some of these sizes
        nearest = [math.floor((Fraction(i) + Fraction(1, 2)) * old / new) for i in range(new)]
        column = random.integers(0, 256, (old, 1), np.uint8)
        np.testing.assert_array_equal(resize_class_map(column, new, 1), column[nearest], f"{old} to {new} rows")
        np.testing.assert_array_equal(resize_class_map(column.T, 1, new), column[nearest].T, f"{old} to {new} columns")


def test_both_sides_of_a_class_map_are_resized_alike() -> None:
    class_map = np.arange(12, dtype=np.uint8).reshape(3, 4)
    resized = resize_class_map(class_map, 6, 2)
    np.testing.assert_array_equal(resized, np.repeat(class_map[:, [1, 3]], 2, axis=0))
    assert resized.flags.c_contiguous and resized.flags.owndata
    assert resize_class_map(class_map, 3, 4) is class_map
