"""Poles, lamps, signs and traffic lights of the drawn street scenes."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from brd_edge.data.scene_canvas import (
    POLE,
    SIGN,
    Canvas,
    Colour,
    FloatArray,
    Spot,
    billboard,
    fill_disc,
    fill_parts,
    fill_polygon,
    fill_post,
    pick,
    tint,
)

__all__ = ["paint_lamp", "paint_sign"]

_METAL: tuple[Colour, ...] = ((112, 114, 118), (78, 80, 84), (146, 148, 150), (58, 72, 64))
_PLATES: tuple[Colour, ...] = ((40, 82, 160), (212, 190, 60), (206, 206, 204), (186, 44, 40), (42, 104, 70))
_RED: Colour = (188, 42, 38)
_WHITE: Colour = (214, 214, 210)


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
    beam = [(0.0, height - 0.12), (0.0, height + 0.05), (reach, height + 0.45), (reach, height + 0.25)]
    head = [(reach, height + 0.2), (reach, height + 0.5), (reach * 1.5, height + 0.5), (reach * 1.5, height + 0.3)]
    ink = tint(canvas.light, metal, spot.z_m)
    place = partial(billboard, canvas.camera, spot.x_m, spot.z_m)
    fill_parts(canvas, [(beam, ink), (head, ink)], place, POLE)


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
        corners = np.asarray([[-1, -0.9], [1, -0.9], [1, 0.9], [-1, 0.9]]) * [0.9 if kind == 3 else 1.9, 1.0]
        fill_polygon(canvas, top + corners * radius, face, SIGN)
        fill_polygon(canvas, top + corners * [0.7, 0.25] * radius, inner, SIGN)


def _paint_traffic_light(canvas: Canvas, top: FloatArray, half_px: float, lamp: int, depth_m: float) -> None:
    corners = np.asarray([[-0.75, -1.8], [0.75, -1.8], [0.75, 1.8], [-0.75, 1.8]]) * half_px
    fill_polygon(canvas, top + corners, tint(canvas.light, (34, 36, 34), depth_m), SIGN)
    colours: tuple[Colour, ...] = ((230, 50, 40), (232, 176, 40), (60, 210, 120))
    for i in range(3):
        glow = tint(canvas.light, colours[i] if i == lamp else (58, 56, 54), depth_m)
        at = top + np.asarray([0.0, (i - 1) * 1.1]) * half_px
        fill_disc(canvas, at, (half_px * 0.45, half_px * 0.45), glow, SIGN)
