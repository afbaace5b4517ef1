"""Drawn street scenes with exact labels: a data set that needs no download.

A scene is a perspective street with buildings, sky, trees, cars, people, poles and signs, drawn
from a seed. Colours overlap between classes (grey pavement beside grey asphalt, shop boards that
are no signs, downpipes and trunks that are no poles) and the sensor is noisy, so that a
segmentation model has something to learn and boundaries are worth measuring.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brd_edge.data.scene_canvas import (
    IGNORE,
    SUPERSAMPLE,
    Camera,
    Canvas,
    Light,
    Spot,
    averaged,
    fill_polygon,
    noise_tile,
    open_canvas,
    tint,
)
from brd_edge.data.scene_objects import paint_car, paint_person, paint_tree, pick_car
from brd_edge.data.scene_posts import paint_lamp, paint_sign
from brd_edge.data.scene_street import (
    Building,
    Shadow,
    Street,
    paint_building,
    paint_ground,
    paint_sky,
    paint_skyline,
    plan_street,
)
from brd_edge.runtime.errors import DataError

__all__ = ["CLASSES", "PALETTE", "draw_scene"]

CLASSES: tuple[str, ...] = ("road", "pavement", "building", "sky", "tree", "car", "person", "pole", "sign")
PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (70, 130, 180),
    (107, 142, 35),
    (0, 0, 142),
    (220, 20, 60),
    (153, 153, 153),
    (220, 220, 0),
)

_MIN_SIDE_PX = 32
_MAX_SIDE_PX = 2048
_HALF_TURN = 3.141592653589793


@dataclass(frozen=True)
class _Item:
    """Something to paint: its depth, and what paints it."""

    depth_m: float
    paint: Callable[[np.random.Generator, Canvas], None]


def draw_scene(seed: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws one street scene and its label.

    The same seed and size give the same bytes. Another size shows the same street from the same
    place, with other noise.

    Args:
        seed: 0 or larger.
        height: rows, 32 to 2048 pixels.
        width: columns, 32 to 2048 pixels.

    Returns:
        The image, uint8 (height, width, 3), RGB; and the label, uint8 (height, width), ids into
        `CLASSES`, or 255 (ignored) on the bonnet of the camera's own car. The label is the class
        at the centre of each pixel; the image averages 3x3 samples of each pixel.

    Raises:
        DataError: if the seed is negative or not an integer, or the size is out of range.

    Example:
        >>> image, label = draw_scene(7, 160, 320)
        >>> image.shape, label.shape, label.dtype
        ((160, 320, 3), (160, 320), dtype('uint8'))
    """
    seed = _checked(seed, "seed", 0, None)
    height = _checked(height, "height", _MIN_SIDE_PX, _MAX_SIDE_PX)
    width = _checked(width, "width", _MIN_SIDE_PX, _MAX_SIDE_PX)
    # What stands where does not depend on the size; the texture of the pixels does.
    plan_rng, pixel_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    canvas = _render(plan_rng, pixel_rng, height, width)
    colours, label = averaged(canvas)
    return _expose(plan_rng, pixel_rng, colours), label


def _checked(value: int, name: str, low: int, high: int | None) -> int:
    """The value as a plain int within low..high."""
    wanted = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"
    try:
        number = operator.index(value)
    except TypeError:
        raise DataError(f"draw_scene: {name} must be {wanted}, got {value!r}; pass a whole number") from None
    if number < low or (high is not None and number > high):
        raise DataError(f"draw_scene: {name} must be {wanted}, got {number}; choose a value in that range")
    return number


def _render(plan_rng: np.random.Generator, pixel_rng: np.random.Generator, height: int, width: int) -> Canvas:
    """The scene at three times its size, before averaging and sensor noise."""
    camera = _plan_camera(plan_rng, height, width)
    light = _plan_light(plan_rng)
    street = plan_street(plan_rng)
    tile = noise_tile(plan_rng, 256, (7, 16, 40, 110))
    items, shadows = _plan_items(plan_rng, street, tile)
    pixels = np.empty((height * SUPERSAMPLE, width * SUPERSAMPLE, 4), dtype=np.uint8)
    horizon = round(camera.vanish_v_px * SUPERSAMPLE)
    paint_sky(plan_rng, pixels[:horizon], light=light, tile=tile)
    paint_ground(
        pixel_rng,
        pixels[horizon:],
        first_row=horizon,
        street=street,
        shadows=shadows,
        camera=camera,
        light=light,
        tile=tile,
    )
    canvas = open_canvas(pixels, camera=camera, light=light)
    paint_skyline(plan_rng, canvas, width)
    for item in sorted(items, key=lambda item: -item.depth_m):
        item.paint(plan_rng, canvas)
    if plan_rng.random() < 0.3:
        _paint_bonnet(plan_rng, canvas, height, width)
    return canvas


def _plan_camera(rng: np.random.Generator, height: int, width: int) -> Camera:
    zoom, across, up, eye, bend = rng.uniform((0.68, 0.36, 0.38, 1.25, -0.0012), (0.95, 0.64, 0.54, 1.9, 0.0012))
    return Camera(
        focal_px=float(zoom) * min(width, 2 * height),
        vanish_u_px=float(across) * width,
        vanish_v_px=float(up) * height,
        eye_m=float(eye),
        bend_per_m=float(bend),
    )


def _plan_light(rng: np.random.Generator) -> Light:
    side, ahead, strength, warm, haze = rng.uniform((-0.8, -0.6, 0.0, -0.08, 150.0), (0.8, 0.6, 1.0, 0.1, 235.0))
    return Light(
        sun=(float(side), 0.6, float(ahead)),
        strength=float(strength),
        gain=(1.0 + float(warm), 1.0, 1.0 - float(warm)),
        haze=(float(haze) * 0.98, float(haze), min(255.0, float(haze) * 1.05)),
        haze_m=float(rng.uniform(60.0, 400.0)),
    )


def _plan_items(
    rng: np.random.Generator, street: Street, tile: NDArray[np.float32]
) -> tuple[list[_Item], list[Shadow]]:
    """Places everything that stands in the street, in no particular order, and the shadows below it."""
    items: list[_Item] = []
    shadows: list[Shadow] = []
    for side in (-1, 1):
        items += _plan_buildings(rng, street, side)
        items += _plan_trees(rng, street, side, tile, shadows)
        items += _plan_posts(rng, street, side)
    items += _plan_cars(rng, street, shadows)
    items += _plan_people(rng, street, shadows)
    return items, shadows


def _kerb(street: Street, side: int) -> float:
    return street.left_m if side < 0 else street.right_m


def _wall(street: Street, side: int) -> float:
    return street.wall_left_m if side < 0 else street.wall_right_m


def _in_side_street(street: Street, near_m: float, far_m: float) -> bool:
    return street.side_street is not None and near_m < street.side_street[1] and far_m > street.side_street[0]


def _plan_buildings(rng: np.random.Generator, street: Street, side: int) -> list[_Item]:
    items = []
    near = float(rng.uniform(1.5, 5.0))
    tall = float(rng.uniform(5.5, 16.0))
    while near < 110.0:
        far = near + float(rng.uniform(8.0, 22.0))
        height = tall * float(rng.uniform(0.6, 1.5))
        back = float(rng.uniform(0.0, 1.5)) * (rng.random() < 0.3)
        gap = float(rng.uniform(3.0, 14.0)) * (rng.random() < 0.3)
        if street.side_street is not None and _in_side_street(street, near, far):
            # The block ends at the corner; the next one begins behind the side street.
            far, gap = street.side_street[0], street.side_street[1] - street.side_street[0]
        if far - near > 3.0:
            wall = _wall(street, side) + side * back
            # Everything beside a block stands on the street's side of its wall: the far end is its depth.
            block = Building(side=side, wall_m=wall, near_m=near, far_m=far, height_m=height)
            items.append(_Item(far, partial(paint_building, building=block)))
        near = far + gap
    return items


def _plan_trees(
    rng: np.random.Generator, street: Street, side: int, tile: NDArray[np.float32], shadows: list[Shadow]
) -> list[_Item]:
    if rng.random() < 0.3:
        return []
    items = []
    line = _kerb(street, side) + side * float(rng.uniform(0.5, 1.2))
    step = float(rng.uniform(9.0, 20.0))
    z = float(rng.uniform(6.0, 16.0))
    while z < 90.0:
        bush = bool(rng.random() < 0.2)
        spot = Spot(line + float(rng.uniform(-0.3, 0.3)), z)
        if not _in_side_street(street, z - 1, z + 1):
            items.append(_Item(z, partial(paint_tree, spot=spot, tile=tile, bush=bush)))
            shadows.append(Shadow(spot.x_m, z, 1.8, 1.6))
        z += step * float(rng.uniform(0.7, 1.5))
    return items


def _plan_posts(rng: np.random.Generator, street: Street, side: int) -> list[_Item]:
    """Lamps, bollards, signs and traffic lights along one kerb."""
    items = []
    line = _kerb(street, side) + side * 0.45
    step, z = float(rng.uniform(13.0, 28.0)), float(rng.uniform(5.0, 16.0))
    while z < 75.0:
        items.append(_Item(z, partial(paint_lamp, spot=Spot(line, z), bollard=False)))
        z += step
    if rng.random() < 0.3:
        row = np.arange(float(rng.uniform(5.0, 10.0)), 26.0, float(rng.uniform(2.0, 3.5))).tolist()
        items += [_Item(z, partial(paint_lamp, spot=Spot(line, z), bollard=True)) for z in row]
    for _ in range(int(rng.integers(1, 5))):
        z = float(rng.uniform(6.5, 26.0))
        spot = Spot(line + side * float(rng.uniform(0.0, 0.8)), z)
        items.append(_Item(z, partial(paint_sign, spot=spot, traffic_light=False)))
    if street.side_street is not None or street.zebra_m is not None:
        corner = street.side_street[0] if street.side_street is not None else street.zebra_m
        z = float(corner or 0.0) - 0.8
        items.append(_Item(z, partial(paint_sign, spot=Spot(line, z), traffic_light=bool(rng.random() < 0.7))))
    return items


def _plan_cars(rng: np.random.Generator, street: Street, shadows: list[Shadow]) -> list[_Item]:
    """Parked cars along the kerbs, moving ones in the lanes, and now and then one that crosses."""
    places: list[tuple[Spot, float]] = []
    for side in (-1, 1):
        if not street.parking[side > 0]:
            continue
        z, full = float(rng.uniform(6.0, 14.0)), float(rng.uniform(0.3, 0.95))
        while z < 80.0:
            if rng.random() < full and not _in_side_street(street, z - 3.0, z + 3.0):
                yaw = 0.0 if side > 0 else _HALF_TURN
                places.append((Spot(_kerb(street, side) - side * 1.15, z), yaw + float(rng.uniform(-0.05, 0.05))))
            z += float(rng.uniform(5.6, 7.5))
    for lane_m, yaw in ((0.0, 0.0), (-3.2, _HALF_TURN), (-3.2, _HALF_TURN)):
        if rng.random() < 0.55:
            spot = Spot(lane_m + float(rng.uniform(-0.3, 0.3)), float(rng.uniform(9.0, 60.0)))
            places.append((spot, yaw + float(rng.uniform(-0.08, 0.08))))
    if street.side_street is not None and rng.random() < 0.5:
        middle = sum(street.side_street) / 2
        yaw = _HALF_TURN / 2 * (1 if rng.random() < 0.5 else -1) + float(rng.uniform(-0.4, 0.4))
        places.append((Spot(float(rng.uniform(-12.0, 12.0)), middle), yaw))
    items = []
    for spot, yaw in places:
        car = pick_car(rng, yaw)
        long, wide = car.size_m[0] / 2, car.size_m[1] / 2
        turned = abs(abs(yaw) - _HALF_TURN / 2) < 0.8
        shadows.append(Shadow(spot.x_m, spot.z_m, (long if turned else wide) * 1.15, (wide if turned else long) * 1.1))
        items.append(_Item(spot.z_m, partial(paint_car, spot=spot, car=car)))
    return items


def _plan_people(rng: np.random.Generator, street: Street, shadows: list[Shadow]) -> list[_Item]:
    """Groups on the pavements, and some people who cross the road."""
    spots = []
    for _ in range(int(rng.integers(2, 7))):
        side = -1 if rng.random() < 0.5 else 1
        kerb, wall = _kerb(street, side), _wall(street, side)
        x, z = kerb + side * 0.3 + float(rng.random()) * (wall - kerb - side * 0.7), float(rng.uniform(6.0, 32.0))
        group = rng.uniform((-0.5, -0.8), (0.5, 0.8), (int(rng.integers(1, 4)), 2)).tolist()
        spots += [Spot(x + aside, z + behind) for aside, behind in group]
    if street.zebra_m is not None:
        for _ in range(int(rng.integers(0, 4))):
            x = float(rng.uniform(street.left_m, street.right_m))
            spots.append(Spot(x, street.zebra_m + float(rng.uniform(0.3, 2.7))))
    shadows += [Shadow(spot.x_m, spot.z_m, 0.35, 0.3) for spot in spots]
    return [_Item(spot.z_m, partial(paint_person, spot=spot)) for spot in spots]


def _paint_bonnet(rng: np.random.Generator, canvas: Canvas, height: int, width: int) -> None:
    """The bonnet of the camera's own car along the bottom of the image, to be ignored."""
    rise, middle, grey = (float(v) for v in rng.uniform((0.04, 0.4, 20.0), (0.1, 0.6, 120.0)))
    shares = np.asarray([[-0.55, 0.0], [-0.5, 0.5], [-0.3, 0.85], [0.0, 1.0], [0.3, 0.85], [0.5, 0.5], [0.55, 0.0]])
    corners = np.asarray([middle, 1.02]) + shares * [0.85, -rise - 0.02]
    fill_polygon(canvas, corners * [width, height], tint(canvas.light, (grey, grey, grey + 6), 1.0), IGNORE)
    shine = np.asarray([middle, 1.02]) + shares * [0.55, -(rise + 0.02) * 0.6]
    fill_polygon(canvas, shine * [width, height], tint(canvas.light, (grey, grey, grey + 6), 1.0, 1.25), IGNORE)


def _expose(
    plan_rng: np.random.Generator, pixel_rng: np.random.Generator, colours: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Exposure, uneven brightness and sensor noise."""
    exposure = float(plan_rng.uniform(0.6, 1.2))
    read, shot = (float(v) for v in plan_rng.uniform((2.5, 0.2), (9.0, 0.9)))
    uneven = Image.fromarray(plan_rng.integers(104, 152, (4, 6), dtype=np.uint8))
    field = np.asarray(uneven.resize((colours.shape[1], colours.shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)
    signal = colours.astype(np.float32) * (field * np.float32(exposure / 128.0))[..., None]
    # Photon noise grows with the square root of the signal, read-out noise does not.
    spread = np.sqrt(np.float32(read * read) + np.float32(shot) * signal)
    spread *= pixel_rng.standard_normal(colours.shape, dtype=np.float32)
    signal += spread
    np.rint(signal, out=signal)
    result: NDArray[np.uint8] = np.minimum(np.maximum(signal, 0, out=signal), 255, out=signal).astype(np.uint8)
    return result
