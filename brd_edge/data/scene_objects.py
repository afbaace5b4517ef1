"""Cars, people and trees of the drawn street scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.scene_canvas import (
    CAR,
    PERSON,
    SUPERSAMPLE,
    TREE,
    Canvas,
    Colour,
    FloatArray,
    Ink,
    Part,
    Spot,
    billboard,
    fill_disc,
    fill_parts,
    fill_polygon,
    paste_pixels,
    pick,
    project,
    tint,
)

__all__ = ["CarShape", "paint_car", "paint_person", "paint_tree", "pick_car"]

_Points: TypeAlias = tuple[tuple[float, float], ...]
_Outline: TypeAlias = tuple[_Points, str, _Points]

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
_TAIL: Colour = (190, 36, 30)
_HEAD: Colour = (226, 222, 200)
_RUBBER: Colour = (28, 28, 30)
_RING = ((1.0, 0.0), (0.71, 0.71), (0.0, 1.0), (-0.71, 0.71), (-1.0, 0.0), (-0.71, -0.71), (0.0, -1.0), (0.71, -0.71))

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
    half = car.size_m[1] / 2
    sine, cosine = math.sin(car.yaw), math.cos(car.yaw)
    side = 1.0 if spot.x_m * cosine - spot.z_m * sine < 0 else -1.0
    flank = 0.85 + 0.3 * canvas.light.strength * canvas.light.sun[0] * side * cosine
    body = tint(canvas.light, car.body, spot.z_m, flank)
    glass = tint(canvas.light, car.glass, spot.z_m, float(rng.uniform(0.7, 1.2)))
    parts = _wheels(canvas, spot, car, -side * half * 0.92)
    for edge in _faces(canvas, spot, car):
        parts += _face(canvas, spot, car, edge)
    parts.append(([(*corner, side * half) for corner in car.outline.tolist()], body))
    parts.append(([(*corner, side * half) for corner in car.window.tolist()], glass))
    parts += _wheels(canvas, spot, car, side * half)

    def place(points: FloatArray) -> FloatArray:
        """Points (along, up, across) in the car's own frame to image points."""
        along, across = points[:, 0], points[:, 2]
        world = np.empty_like(points)
        world[:, 0] = spot.x_m + along * sine + across * cosine
        world[:, 1] = points[:, 1]
        world[:, 2] = spot.z_m + along * cosine - across * sine
        return project(canvas.camera, world)

    fill_parts(canvas, parts, place, CAR)


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


def _face(canvas: Canvas, spot: Spot, car: CarShape, edge: int) -> list[Part]:
    """The face above one edge of the outline; the rear and the front with lights, number plate and tyres."""
    (along, low), (end, high) = car.outline[edge : edge + 2].tolist()
    half = car.size_m[1] / 2
    factor = 0.82 if abs(high - low) > abs(end - along) else 1.12
    colour = car.glass if car.materials[edge] == "g" else car.body
    across = (-half, -half, half, half)
    corners = zip((along, end, end, along), (low, high, high, low), across, strict=True)
    parts: list[Part] = [(list(corners), tint(canvas.light, colour, spot.z_m, factor))]
    last = len(car.materials) - 1
    if edge not in (0, last):
        return parts
    if edge == last:
        along, low, high = end, high, low
    rise = high - low

    def patch(left: float, right: float, bottom: float, top: float, ink: Ink) -> None:
        rows = (bottom, bottom, top, top)
        sides = (left * half, right * half, right * half, left * half)
        parts.append(([(along, up, beside) for up, beside in zip(rows, sides, strict=True)], ink))

    lights = tint(canvas.light, _TAIL if edge == 0 else _HEAD, spot.z_m)
    rubber = tint(canvas.light, _RUBBER, spot.z_m)
    for left, right in ((-0.94, -0.68), (0.68, 0.94)):
        patch(left, right, 0.0, low, rubber)
        patch(left, right - 0.08, low + 0.5 * rise, low + 0.8 * rise, lights)
    patch(-0.3, 0.3, low + 0.3 * rise, low + 0.3 * rise + 0.13, tint(canvas.light, (206, 204, 190), spot.z_m))
    patch(-1.0, 1.0, low, low + 0.12 * rise, rubber)
    return parts


def _wheels(canvas: Canvas, spot: Spot, car: CarShape, across: float) -> list[Part]:
    """The wheels of one flank."""
    radius = 0.1 + 0.15 * car.size_m[2]
    rubber, hub = (tint(canvas.light, colour, spot.z_m) for colour in (_RUBBER, (120.0, 120.0, 122.0)))
    parts: list[Part] = []
    for centre in (-0.31 * car.size_m[0], 0.31 * car.size_m[0]):
        for size, ink in ((radius, rubber), (radius * 0.5, hub)):
            parts.append(([(centre + a * size, radius + b * size, across) for a, b in _RING], ink))
    return parts


def paint_person(rng: np.random.Generator, canvas: Canvas, spot: Spot) -> None:
    """Paints a walking or standing person of 1.1 to 1.9 m."""
    height = float(rng.uniform(1.55, 1.9) if rng.random() < 0.85 else rng.uniform(1.1, 1.4))
    stride = float(rng.uniform(0.02, 0.17))
    lean = float(rng.uniform(-0.05, 0.05))
    coat, trousers = (tint(canvas.light, pick(rng, _CLOTHES, 18.0), spot.z_m) for _ in range(2))
    skin = tint(canvas.light, pick(rng, _SKIN), spot.z_m)
    hair = tint(canvas.light, pick(rng, _BARK), spot.z_m, 0.6)
    swing = float(rng.uniform(0.0, 0.14))
    skirt = float(rng.uniform(0.42, 0.62))
    broad = float(rng.uniform(0.2, 0.27))

    parts: list[Part] = [
        ([(-0.07, 0.5), (0.07, 0.5), (foot + 0.05, 0.0), (foot - 0.04, 0.0)], trousers) for foot in (-stride, stride)
    ]
    for hand in (-1.0, 1.0):
        reach, cuff = hand * broad * 0.4, hand * (broad * 0.5 + swing)
        parts.append(([(reach, 0.82), (reach + hand * 0.03, 0.8), (cuff + 0.03, 0.45), (cuff - 0.03, 0.45)], coat))
    half = broad / 2
    hem = skirt - 0.1
    parts.append(([(-half * 0.8, hem), (half * 0.8, hem), (half + lean, 0.83), (-half + lean, 0.83)], coat))
    fill_parts(canvas, parts, lambda shape: billboard(canvas.camera, spot.x_m, spot.z_m, shape * height), PERSON)
    head = billboard(canvas.camera, spot.x_m, spot.z_m, np.asarray([lean, 0.915]) * height)
    size = canvas.camera.focal_px * height / spot.z_m
    fill_disc(canvas, head, (0.05 * size, 0.07 * size), skin, PERSON)
    fill_disc(canvas, head - np.asarray([0.0, 0.035 * size]), (0.055 * size, 0.04 * size), hair, PERSON)


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
    _paint_crown(
        canvas,
        centre,
        radii=(half_x * scale, half_y * scale),
        tile=tile,
        offset=offset,
        leaves=leaves,
        dense=dense,
        depth_m=spot.z_m,
    )


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
    u = ((across * 85).astype(np.int64) + offset[0]) % 256
    v = ((down * 85).astype(np.int64) + offset[1]) % 256
    texture = tile[np.ix_(v, u)]
    mask = np.float32(1.3) * texture > (down * down)[:, None] + (across * across - np.float32(dense))[None, :]
    # Brightness in 256 steps, so that a table gives the colour (and the class) of each.
    tilt = np.float32(25.0 * canvas.light.sun[0])
    steps = texture[::-1, ::-1] * np.float32(40.0)
    steps += (85.0 - 30.0 * down)[:, None]
    steps += (tilt * across)[None, :]
    brightness = np.minimum(np.maximum(steps, 0), 255).astype(np.uint8)
    dark, step = (np.asarray(tint(canvas.light, leaves, depth_m, f)) for f in (0.0, 1.0))
    table = np.full((256, 4), TREE, dtype=np.uint8)
    table[:, :3] = np.clip(dark + (step - dark) * (np.arange(256) / 100.0)[:, None], 0, 255)
    pixels = table.view(np.uint32).ravel()[brightness].view(np.uint8).reshape(*mask.shape, 4)
    paste_pixels(canvas, pixels, mask, (left, top))
