"""Things that stand in a drawn street: cars, people, trees, poles and signs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.scene_canvas import (
    CAR,
    PERSON,
    POLE,
    SIGN,
    SUPERSAMPLE,
    TREE,
    Canvas,
    Colour,
    FloatArray,
    billboard,
    fill_disc,
    fill_polygon,
    fill_post,
    paste_pixels,
    pick,
    project,
    tint,
)

__all__ = ["CarShape", "Spot", "paint_car", "paint_lamp", "paint_person", "paint_sign", "paint_tree", "pick_car"]

_Points: TypeAlias = tuple[tuple[float, float], ...]
_Outline: TypeAlias = tuple[_Points, str, _Points]
_Place: TypeAlias = Callable[[FloatArray, FloatArray | float], FloatArray]

_BODIES: tuple[Colour, ...] = (
    (60, 60, 64),
    (150, 152, 156),
    (208, 208, 206),
    (34, 34, 38),
    (140, 40, 36),
    (46, 66, 112),
    (124, 116, 100),
    (64, 84, 66),
    (168, 146, 110),
)
_GLASS: tuple[Colour, ...] = ((44, 50, 58), (84, 98, 110))
_CLOTHES: tuple[Colour, ...] = (
    (48, 50, 58),
    (90, 88, 86),
    (150, 146, 140),
    (120, 46, 42),
    (50, 66, 104),
    (72, 88, 62),
    (176, 150, 112),
    (28, 28, 30),
)
_SKIN: tuple[Colour, ...] = ((206, 164, 138), (150, 108, 84), (92, 66, 52))
_LEAVES: tuple[Colour, ...] = (
    (74, 96, 52),
    (58, 78, 50),
    (98, 112, 58),
    (128, 108, 56),
    (84, 88, 66),
    (118, 78, 48),
)
_BARK: tuple[Colour, ...] = ((78, 66, 56), (96, 90, 84), (58, 50, 46))
_METAL: tuple[Colour, ...] = ((112, 114, 118), (78, 80, 84), (146, 148, 150), (58, 72, 64))
_PLATES: tuple[Colour, ...] = ((40, 82, 160), (212, 190, 60), (206, 206, 204), (186, 44, 40), (42, 104, 70))
_RED: Colour = (188, 42, 38)
_WHITE: Colour = (214, 214, 210)

# Outlines seen from the right, from the lower rear corner over the roof to the lower front corner:
# (share of the length, share of the height); the materials belong to the edges between them.
_SEDAN: _Outline = (
    (
        (-0.5, 0.2),
        (-0.5, 0.6),
        (-0.46, 0.68),
        (-0.36, 0.7),
        (-0.2, 1.0),
        (0.08, 1.0),
        (0.27, 0.68),
        (0.46, 0.58),
        (0.5, 0.45),
        (0.5, 0.2),
    ),
    "bbbgbgbbb",
    ((-0.31, 0.7), (-0.18, 0.94), (0.07, 0.94), (0.22, 0.7)),
)
_HATCH: _Outline = (
    (
        (-0.5, 0.2),
        (-0.5, 0.6),
        (-0.42, 0.96),
        (-0.3, 1.0),
        (0.08, 1.0),
        (0.28, 0.66),
        (0.46, 0.56),
        (0.5, 0.42),
        (0.5, 0.2),
    ),
    "bgbbgbbb",
    ((-0.43, 0.68), (-0.38, 0.93), (0.07, 0.93), (0.23, 0.68)),
)
_VAN: _Outline = (
    ((-0.5, 0.15), (-0.5, 0.55), (-0.49, 0.95), (-0.45, 1.0), (0.3, 1.0), (0.43, 0.56), (0.5, 0.46), (0.5, 0.15)),
    "bgbbgbb",
    ((0.02, 0.6), (0.02, 0.9), (0.29, 0.9), (0.38, 0.6)),
)


@dataclass(frozen=True)
class Spot:
    """A place on the ground, metres to the right of and ahead of the camera."""

    x_m: float
    z_m: float


@dataclass(frozen=True)
class CarShape:
    """Size, outline and colours of a car; `yaw` 0 drives away from the camera."""

    size_m: tuple[float, float, float]
    outline: FloatArray
    materials: str
    window: FloatArray
    body: Colour
    glass: Colour
    yaw: float


def pick_car(rng: np.random.Generator, yaw: float) -> CarShape:
    """Draws a sedan, a hatchback, a van or a lorry."""
    kind = float(rng.random())
    if kind < 0.42:
        (outline, materials, window), size = _SEDAN, (4.4, 1.8, 1.45)
    elif kind < 0.8:
        (outline, materials, window), size = _HATCH, (3.9, 1.75, 1.52)
    elif kind < 0.94:
        (outline, materials, window), size = _VAN, (4.9, 1.95, 2.1)
    else:
        (outline, materials, window), size = _VAN, (7.5, 2.4, 3.1)
    scale = float(rng.uniform(0.93, 1.08))
    length, width, height = (scale * s for s in size)
    return CarShape(
        size_m=(length, width, height),
        outline=np.asarray(outline) * [length, height],
        materials=materials,
        window=np.asarray(window) * [length, height],
        body=pick(rng, _BODIES, 16.0),
        glass=pick(rng, _GLASS),
        yaw=yaw,
    )


def paint_car(rng: np.random.Generator, canvas: Canvas, spot: Spot, car: CarShape) -> None:
    """Paints a car as a prism: the faces turned towards the camera, far ones first, then the near flank."""
    width = car.size_m[1]
    sine, cosine = math.sin(car.yaw), math.cos(car.yaw)
    near_side = 1.0 if spot.x_m * cosine - spot.z_m * sine < 0 else -1.0
    lights = tint(canvas.light, (190, 36, 30) if cosine > 0 else (226, 222, 200), spot.z_m)

    def place(points: FloatArray, across: FloatArray | float) -> FloatArray:
        """Points (along, up) at an offset across the car to image points."""
        along, up = points[..., 0], points[..., 1]
        world = np.stack([spot.x_m + along * sine + across * cosine, up, spot.z_m + along * cosine - across * sine], -1)
        return project(canvas.camera, world)

    _paint_wheels(canvas, spot, car, place, -near_side * width * 0.46)
    for face in _faces(canvas, spot, car):
        ends = car.outline[[face, face + 1, face + 1, face]]
        across = np.asarray([-0.5, -0.5, 0.5, 0.5]) * width
        glass = car.materials[face] == "g"
        rise = abs(float(ends[1, 1] - ends[0, 1])) / (abs(float(ends[1, 0] - ends[0, 0])) + 1e-6)
        factor = 0.82 if rise > 1.0 else 1.12
        colour = tint(canvas.light, car.glass if glass else car.body, spot.z_m, factor)
        fill_polygon(canvas, place(ends, across), colour, CAR)
        if face in (0, len(car.materials) - 1):
            _paint_face(canvas, ends, width=width, place=place, lights=lights, depth_m=spot.z_m)
    flank = 0.85 + 0.3 * canvas.light.strength * canvas.light.sun[0] * near_side * cosine
    fill_polygon(canvas, place(car.outline, near_side * width / 2), tint(canvas.light, car.body, spot.z_m, flank), CAR)
    glass_colour = tint(canvas.light, car.glass, spot.z_m, float(rng.uniform(0.7, 1.2)))
    fill_polygon(canvas, place(car.window, near_side * width / 2), glass_colour, CAR)
    _paint_wheels(canvas, spot, car, place, near_side * width * 0.5)


def _faces(canvas: Canvas, spot: Spot, car: CarShape) -> list[int]:
    """Edges of the outline whose faces look at the camera, the farthest first."""
    sine, cosine = math.sin(car.yaw), math.cos(car.yaw)
    # The camera in the car's own frame: along the car, and up.
    eye = np.asarray([-spot.x_m * sine - spot.z_m * cosine, canvas.camera.eye_m])
    begin, end = car.outline[:-1], car.outline[1:]
    # The outline runs clockwise (rear, roof, front), so the outside lies to its left.
    normal = np.stack([begin[:, 1] - end[:, 1], end[:, 0] - begin[:, 0]], axis=-1)
    to_eye = eye - (begin + end) / 2
    seen = (normal * to_eye).sum(axis=-1) > 0
    distance = (to_eye**2).sum(axis=-1)
    return [int(i) for i in np.argsort(-distance, kind="stable") if seen[i]]


def _paint_face(
    canvas: Canvas, ends: FloatArray, *, width: float, place: _Place, lights: tuple[int, int, int], depth_m: float
) -> None:
    """Lights and number plate on the rear or the front face."""
    low, high = sorted((float(ends[0, 1]), float(ends[1, 1])))
    along = float(ends[:, 0].mean())

    def patch(left: float, right: float, bottom: float, top: float, colour: tuple[int, int, int]) -> None:
        rows = [low + (high - low) * share for share in (bottom, top)]
        points = np.asarray([[along, rows[0]], [along, rows[0]], [along, rows[1]], [along, rows[1]]])
        fill_polygon(canvas, place(points, np.asarray([left, right, right, left]) * width), colour, CAR)

    patch(-0.47, -0.3, 0.55, 0.85, lights)
    patch(0.3, 0.47, 0.55, 0.85, lights)
    patch(-0.14, 0.14, 0.3, 0.5, tint(canvas.light, (206, 204, 190), depth_m))
    patch(-0.5, 0.5, 0.0, 0.12, tint(canvas.light, (30, 30, 32), depth_m))


def _paint_wheels(canvas: Canvas, spot: Spot, car: CarShape, place: _Place, across: float) -> None:
    radius = 0.1 + 0.15 * car.size_m[2]
    ring = np.asarray([[1, 0], [0.71, 0.71], [0, 1], [-0.71, 0.71], [-1, 0], [-0.71, -0.71], [0, -1], [0.71, -0.71]])
    for at in (-0.31, 0.31):
        centre = np.asarray([at * car.size_m[0], radius])
        fill_polygon(canvas, place(centre + ring * radius, across), tint(canvas.light, (26, 26, 28), spot.z_m), CAR)
        hub = tint(canvas.light, (120, 120, 122), spot.z_m)
        fill_polygon(canvas, place(centre + ring * radius * 0.5, across), hub, CAR)


def paint_person(rng: np.random.Generator, canvas: Canvas, spot: Spot) -> None:
    """Paints a walking or standing person of 1.1 to 1.9 m."""
    height = float(rng.uniform(1.55, 1.9) if rng.random() < 0.85 else rng.uniform(1.1, 1.4))
    stride = float(rng.uniform(0.02, 0.3))
    lean = float(rng.uniform(-0.05, 0.05))
    coat, trousers = (tint(canvas.light, pick(rng, _CLOTHES, 18.0), spot.z_m) for _ in range(2))
    skin = tint(canvas.light, pick(rng, _SKIN), spot.z_m)
    hair = tint(canvas.light, pick(rng, _BARK), spot.z_m, 0.6)
    swing = float(rng.uniform(0.0, 0.22))
    skirt = float(rng.uniform(0.42, 0.62))
    broad = float(rng.uniform(0.2, 0.27))

    def part(points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        fill_polygon(canvas, billboard(canvas.camera, spot.x_m, spot.z_m, np.asarray(points) * height), colour, PERSON)

    for foot in (-stride, stride):
        part([(-0.07, 0.5), (0.07, 0.5), (foot + 0.05, 0.0), (foot - 0.04, 0.0)], trousers)
    for hand in (-1.0, 1.0):
        reach = hand * (broad * 0.5 + swing)
        part([(hand * broad * 0.4, 0.82), (hand * broad * 0.55, 0.8), (reach + 0.03, 0.45), (reach - 0.03, 0.45)], coat)
    half = broad / 2
    part([(-half * 0.8, skirt - 0.1), (half * 0.8, skirt - 0.1), (half + lean, 0.83), (-half + lean, 0.83)], coat)
    head = billboard(canvas.camera, spot.x_m, spot.z_m, np.asarray([lean, 0.915]) * height)
    size = canvas.camera.focal_px * height / spot.z_m
    fill_disc(canvas, head, (0.05 * size, 0.07 * size), skin, PERSON)
    crown = head - np.asarray([0.0, 0.035 * size])
    fill_disc(canvas, crown, (0.055 * size, 0.04 * size), hair, PERSON)


def paint_tree(rng: np.random.Generator, canvas: Canvas, spot: Spot, tile: NDArray[np.float32], bush: bool) -> None:
    """Paints a tree, or a bush without a trunk; the ragged crown comes from the noise `tile` (256, 256)."""
    grown = float(rng.uniform(0.7, 1.3))
    trunk = 0.3 if bush else float(rng.uniform(2.0, 3.6))
    half_x, half_y = (1.3 * grown, 0.7 * grown) if bush else (2.2 * grown, float(rng.uniform(1.6, 3.2)) * grown)
    bark = tint(canvas.light, pick(rng, _BARK), spot.z_m)
    thick = float(rng.uniform(0.12, 0.22))
    offset = rng.integers(0, 256, 2)
    leaves = pick(rng, _LEAVES, 14.0)
    dense = float(rng.uniform(0.45, 0.9))
    if not bush:
        top = trunk + half_y
        stem = np.asarray([[-thick, 0.0], [thick, 0.0], [thick * 0.5, top], [-thick * 0.5, top]])
        fill_polygon(canvas, billboard(canvas.camera, spot.x_m, spot.z_m, stem), bark, TREE)
    centre = billboard(canvas.camera, spot.x_m, spot.z_m, np.asarray([0.0, trunk + half_y * 0.8])) * SUPERSAMPLE
    scale = canvas.camera.focal_px / spot.z_m * SUPERSAMPLE
    radii = (half_x * scale, half_y * scale)
    _paint_crown(canvas, centre, radii=radii, tile=tile, offset=offset, leaves=leaves, dense=dense, depth_m=spot.z_m)


def _paint_crown(
    canvas: Canvas,
    centre: FloatArray,
    *,
    radii: tuple[float, float],
    tile: NDArray[np.float32],
    offset: NDArray[np.int64],
    leaves: Colour,
    dense: float,
    depth_m: float,
) -> None:
    """Paints leaves where a paraboloid plus noise is positive; lengths in subpixels."""
    columns, rows = canvas.image.size
    left, right = (int(np.clip(centre[0] + s * 1.35 * radii[0], 0, columns)) for s in (-1, 1))
    top, bottom = (int(np.clip(centre[1] + s * 1.35 * radii[1], 0, rows)) for s in (-1, 1))
    if right - left < 2 or bottom - top < 2:
        return
    across = (np.arange(left, right, dtype=np.float32) - np.float32(centre[0])) / np.float32(radii[0])
    down = (np.arange(top, bottom, dtype=np.float32) - np.float32(centre[1])) / np.float32(radii[1])
    u = np.mod((across * 85).astype(np.int64) + offset[0], 256)
    v = np.mod((down * 85).astype(np.int64) + offset[1], 256)
    texture = tile[np.ix_(v, u)]
    body = np.float32(dense) - (down * down)[:, None] - (across * across)[None, :]
    mask = body + texture * np.float32(1.3) > 0
    sun = canvas.light.sun
    shade = 0.85 + 0.4 * texture[::-1, ::-1] - (0.3 * down)[:, None] + np.float32(0.25 * sun[0]) * across[None, :]
    keep = canvas.light.haze_m / (canvas.light.haze_m + depth_m)
    colour = np.asarray(leaves, np.float32) * np.asarray(canvas.light.gain, np.float32) * np.float32(keep)
    haze = np.asarray(canvas.light.haze, np.float32) * np.float32(1 - keep)
    pixels = np.clip(shade[..., None] * colour + haze, 0, 255).astype(np.uint8)
    paste_pixels(canvas, pixels, mask, (left, top), TREE)


def _paint_pole(canvas: Canvas, spot: Spot, height_m: float, width_m: float, colour: Colour) -> FloatArray:
    """Paints an upright pole and returns its top in pixels."""
    ends = billboard(canvas.camera, spot.x_m, spot.z_m, np.asarray([[0.0, height_m], [0.0, 0.0]]))
    width_px = canvas.camera.focal_px * width_m / spot.z_m
    fill_post(canvas, ends, width_px=width_px, colour=tint(canvas.light, colour, spot.z_m), label=POLE)
    top: FloatArray = ends[0]
    return top


def paint_lamp(rng: np.random.Generator, canvas: Canvas, spot: Spot, bollard: bool) -> None:
    """Paints a street lamp whose arm reaches over the road, or a bollard; class pole."""
    metal = pick(rng, _METAL)
    height, arm, width = (float(v) for v in rng.uniform((4.5, 0.8, 0.1), (8.0, 2.2, 0.17)))
    if bollard:
        _paint_pole(canvas, spot, 1.0, width, metal)
        return
    _paint_pole(canvas, spot, height, width, metal)
    reach = -math.copysign(arm, spot.x_m)
    beam = [[0.0, height - 0.12], [0.0, height + 0.05], [reach, height + 0.45], [reach, height + 0.25]]
    head = [[reach, height + 0.2], [reach, height + 0.5], [reach * 1.5, height + 0.5], [reach * 1.5, height + 0.3]]
    for shape in (beam, head):
        corners = billboard(canvas.camera, spot.x_m, spot.z_m, np.asarray(shape))
        fill_polygon(canvas, corners, tint(canvas.light, metal, spot.z_m), POLE)


def paint_sign(rng: np.random.Generator, canvas: Canvas, spot: Spot, traffic_light: bool) -> None:
    """Paints a sign (disc, triangle, square or board) or a traffic light on a pole; classes sign and pole."""
    metal = pick(rng, _METAL)
    height, size = (float(v) for v in rng.uniform((2.2, 0.34), (3.0, 0.5)))
    kind = int(rng.integers(0, 5))
    plate = pick(rng, _PLATES)
    lamp = int(rng.integers(0, 3))
    reverse = bool(rng.random() < 0.15)
    top = _paint_pole(canvas, spot, height + 0.2, 0.09, metal)
    pixels_per_m = canvas.camera.focal_px / spot.z_m
    # Even the farthest plate is a few pixels wide, or nobody could learn it.
    radius = max(size * pixels_per_m, 1.8)
    if traffic_light:
        _paint_traffic_light(canvas, top, max(0.3 * pixels_per_m, 1.8), lamp, spot.z_m)
        return
    face = tint(canvas.light, metal if reverse else plate, spot.z_m)
    rim = face if reverse else tint(canvas.light, _RED, spot.z_m)
    inner = face if reverse else tint(canvas.light, _WHITE, spot.z_m)
    if kind == 0:
        fill_disc(canvas, top, (radius, radius), rim, SIGN)
        fill_disc(canvas, top, (radius * 0.68, radius * 0.68), inner, SIGN)
    elif kind == 1:
        corners = np.asarray([[-1.1, 0.8], [1.1, 0.8], [0.0, -1.1]])
        fill_polygon(canvas, top + corners * radius, rim, SIGN)
        fill_polygon(canvas, top + (corners * 0.55 + [0.0, 0.1]) * radius, inner, SIGN)
    elif kind == 2:
        fill_disc(canvas, top, (radius, radius), face, SIGN)
    else:
        wide = 0.9 if kind == 3 else 1.9
        corners = np.asarray([[-wide, -0.9], [wide, -0.9], [wide, 0.9], [-wide, 0.9]])
        fill_polygon(canvas, top + corners * radius, face, SIGN)
        fill_polygon(canvas, top + corners * [0.7, 0.25] * radius, inner, SIGN)


def _paint_traffic_light(canvas: Canvas, top: FloatArray, half_px: float, lamp: int, depth_m: float) -> None:
    corners = np.asarray([[-0.75, -1.8], [0.75, -1.8], [0.75, 1.8], [-0.75, 1.8]])
    fill_polygon(canvas, top + corners * half_px, tint(canvas.light, (34, 36, 34), depth_m), SIGN)
    colours: tuple[Colour, ...] = ((230, 50, 40), (232, 176, 40), (60, 210, 120))
    for i in range(3):
        glow = tint(canvas.light, colours[i] if i == lamp else (58, 56, 54), depth_m)
        at = top + np.asarray([0.0, (i - 1) * 1.1]) * half_px
        fill_disc(canvas, at, (half_px * 0.45, half_px * 0.45), glow, SIGN)
