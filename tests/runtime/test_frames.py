"""Reading images on a device: the form that the training saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brd_edge.runtime.frames import read_image


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
