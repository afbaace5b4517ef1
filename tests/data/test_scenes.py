from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from brd_edge.data.scene_canvas import SUPERSAMPLE, Camera, Light, averaged, fill_polygon, open_canvas
from brd_edge.data.scenes import CLASSES, PALETTE, draw_scene
from brd_edge.runtime.errors import DataError

SIZE = (96, 192)


@cache
def _scenes() -> tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], ...]:
    return tuple(draw_scene(seed, *SIZE) for seed in range(20))


def _digest(seed: int) -> str:
    image, label = draw_scene(seed, *SIZE)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from brd_edge.data.scenes import draw_scene\n"
        f"image, label = draw_scene(5, {SIZE[0]}, {SIZE[1]})\n"
        "print(hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == _digest(5)


def test_other_seeds_give_other_scenes() -> None:
    assert len({image.tobytes() for image, _ in _scenes()}) == len(_scenes())


def test_shapes_dtypes_and_ids() -> None:
    for image, label in _scenes():
        assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8)
        assert (label.shape, label.dtype) == (SIZE, np.uint8)
        assert set(np.unique(label)) <= {*range(len(CLASSES)), 255}
        assert image.std() > 10, "a scene is not a flat colour"
    assert len(PALETTE) == len(CLASSES) == len(set(PALETTE))


def test_every_class_is_there_often_enough_to_be_learnt() -> None:
    labels = np.stack([label for _, label in _scenes()])
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    scenes_with = [(labels == index).any((1, 2)).mean() for index in range(len(CLASSES))]

    assert dict(zip(CLASSES, share[: len(CLASSES)] > 0.002, strict=True)) == dict.fromkeys(CLASSES, True)
    assert min(scenes_with) >= 0.5
    assert share[255] < 0.05
    assert share[0] > share[CLASSES.index("pole")], "roads are large and poles are thin"


def test_poles_are_thin_but_survive() -> None:
    widths = []
    for _, label in _scenes():
        poles = label == CLASSES.index("pole")
        components, count = ndimage.label(poles, np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(components, count):
            if rows.stop - rows.start >= 12:
                widths.append(np.median(poles[rows, columns].sum(1)))
    assert len(widths) > 10
    assert 1 <= np.median(widths) <= 5


def test_a_border_between_classes_is_anti_aliased_and_the_label_is_the_centre_sample() -> None:
    """A triangle drawn on a plain canvas, against the coverage computed from its edge equations."""
    height, width = 24, 32
    pixels = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE, 4), np.uint8)
    camera = Camera(focal_px=30.0, vanish_u_px=16.0, vanish_v_px=12.0, eye_m=1.5, bend_per_m=0.0)
    light = Light(sun=(0.0, 1.0, 0.0), strength=0.0, gain=(1.0, 1.0, 1.0), haze=(0.0, 0.0, 0.0), haze_m=1e9)
    canvas = open_canvas(pixels, camera=camera, light=light)
    corners = np.array([[4.3, 3.1], [28.2, 9.7], [9.6, 21.4]])
    fill_polygon(canvas, corners, (240, 240, 240), 5)

    colours, label = averaged(canvas)

    def inside(u: NDArray[np.float64], v: NDArray[np.float64], slack: float) -> NDArray[np.bool_]:
        result = np.ones(u.shape, bool)
        for (u0, v0), (u1, v1) in zip(corners, np.roll(corners, -1, 0), strict=True):
            distance = ((u1 - u0) * (v - v0) - (v1 - v0) * (u - u0)) / np.hypot(u1 - u0, v1 - v0)
            result &= distance > -slack
        return result

    v, u = (np.mgrid[:height, :width] + 0.5).astype(float)
    surely_in, surely_out = inside(u, v, -0.5), ~inside(u, v, 0.5)
    assert (label[surely_in] == 5).all()
    assert (label[surely_out] == 0).all()
    brightness = np.asarray(colours, dtype=float)[..., 0]
    deep_in, far_out = inside(u, v, -1.2), ~inside(u, v, 1.2)
    assert np.ptp(brightness[deep_in]) == 0
    assert np.ptp(brightness[far_out]) == 0
    levels = np.unique(brightness[~deep_in & ~far_out].round(3))
    assert len(levels) > 4, "pixels on the edge mix both sides in several shares"


def test_edges_in_scenes_mix_the_colours_of_both_sides() -> None:
    """Where the sky meets a building, some pixels lie well between the colours around them."""
    between = total = 0
    for image, label in _scenes():
        grey = image.astype(float).mean(2)
        for row in range(2, SIZE[0] - 2):
            for column in np.flatnonzero(np.diff(label[row].astype(int)) != 0):
                if not 2 <= column < SIZE[1] - 3:
                    continue
                left, right = grey[row, column - 1], grey[row, column + 2]
                if abs(left - right) < 80:
                    continue
                share = (grey[row, column : column + 2] - left) / (right - left)
                total += 1
                between += bool(((share > 0.25) & (share < 0.75)).any())
    assert total > 100
    assert between / total > 0.3


@pytest.mark.parametrize("arguments", [(-1, 96, 192), (0, 8, 192), (0, 96, 99999), (0, 96.5, 192), ("a", 96, 192)])
def test_bad_arguments_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(DataError, match="draw_scene: "):
        draw_scene(*arguments)  # type: ignore[arg-type]


def test_many_seeds_can_be_drawn_at_odd_sizes() -> None:
    for seed in range(40):
        draw_scene(1000 + seed, 33, 50)


def test_a_rectangle_on_the_pixel_grid_is_exact() -> None:
    """Edges on pixel borders: the label holds whole pixels, and no colour leaks by more than one subpixel."""
    pixels = np.zeros((30, 48, 4), np.uint8)
    camera = Camera(focal_px=30.0, vanish_u_px=8.0, vanish_v_px=5.0, eye_m=1.5, bend_per_m=0.0)
    light = Light(sun=(0.0, 1.0, 0.0), strength=0.0, gain=(1.0, 1.0, 1.0), haze=(0.0, 0.0, 0.0), haze_m=1e9)
    canvas = open_canvas(pixels, camera=camera, light=light)
    fill_polygon(canvas, np.array([[3.0, 2.0], [12.0, 2.0], [12.0, 7.0], [3.0, 7.0]]), (255, 255, 255), 4)

    colours, label = averaged(canvas)

    expected = np.zeros((10, 16), np.uint8)
    expected[2:7, 3:12] = 4
    np.testing.assert_array_equal(label, expected)
    assert (colours[3:6, 4:11] == 255).all()
    outside = ndimage.binary_dilation(expected > 0, np.ones((3, 3)), iterations=1) == 0
    assert (colours[outside] == 0).all()


def test_the_label_is_the_centre_subpixel_and_the_image_the_block_mean() -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (24, 36, 4), dtype=np.uint8)
    camera = Camera(focal_px=30.0, vanish_u_px=6.0, vanish_v_px=4.0, eye_m=1.5, bend_per_m=0.0)
    light = Light(sun=(0.0, 1.0, 0.0), strength=0.0, gain=(1.0, 1.0, 1.0), haze=(0.0, 0.0, 0.0), haze_m=1e9)

    colours, label = averaged(open_canvas(pixels.copy(), camera=camera, light=light))

    blocks = pixels.reshape(8, 3, 12, 3, 4).astype(float)
    np.testing.assert_array_equal(label, blocks[:, 1, :, 1, 3])
    np.testing.assert_allclose(colours, blocks[..., :3].mean((1, 3)), atol=1.0)


def test_another_size_shows_the_same_street() -> None:
    small, large = draw_scene(4, 96, 192)[1], draw_scene(4, 288, 576)[1]

    # The centre of every small pixel is the centre of the middle one of nine large pixels.
    assert (small == large[1::3, 1::3]).mean() > 0.95


def test_a_numpy_seed_is_as_good_as_an_int() -> None:
    assert draw_scene(np.int64(6), 40, 40)[0].tobytes() == draw_scene(6, 40, 40)[0].tobytes()  # type: ignore[arg-type]
