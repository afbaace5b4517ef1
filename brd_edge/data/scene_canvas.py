"""Canvas, camera and light of the drawn street scenes.

Everything is painted from far to near on one four-channel image at three times the wanted size:
red, green, blue and the class id. Colour and class therefore always share their geometry. In the
end the colours are averaged over each 3x3 block and the class is that of the block's centre, so
that object borders are anti-aliased in the image and exact in the label.

World coordinates are metres, right-handed for the driver: x to the right, y up from the ground,
z ahead. Image coordinates are pixels (u to the right, v down), pixel centres lie at .5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = [
    "BUILDING",
    "CAR",
    "IGNORE",
    "PAVEMENT",
    "PERSON",
    "POLE",
    "ROAD",
    "SIGN",
    "SKY",
    "SUPERSAMPLE",
    "TREE",
    "Camera",
    "Canvas",
    "Colour",
    "FloatArray",
    "Ink",
    "Light",
    "Part",
    "Spot",
    "averaged",
    "billboard",
    "fill_disc",
    "fill_parts",
    "fill_polygon",
    "fill_polygons",
    "fill_post",
    "noise_tile",
    "open_canvas",
    "paste_pixels",
    "pick",
    "project",
    "subpixels",
    "tint",
]

ROAD, PAVEMENT, BUILDING, SKY, TREE, CAR, PERSON, POLE, SIGN = range(9)
IGNORE = 255

SUPERSAMPLE = 3
# Nothing nearer than this is projected: it would land far outside the image.
NEAR_M = 1.2
# Pillow rasterises in 32-bit integers; far outside the image the exact place no longer matters.
FAR_OUTSIDE_PX = 30_000
# A post of this many subpixels is 1.67 pixels wide: it covers a pixel centre in every row.
POST_MIN_SUBPIXELS = 5

Colour: TypeAlias = tuple[float, float, float]
# A colour as it is drawn, 0..255.
Ink: TypeAlias = tuple[int, int, int]
FloatArray: TypeAlias = NDArray[np.floating]
# A polygon of a thing, in the thing's own coordinates, and its colour.
Part: TypeAlias = tuple[Sequence[tuple[float, ...]], Ink]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street.

    Attributes:
        focal_px: focal length in pixels.
        vanish_u_px: column in which straight streets vanish.
        vanish_v_px: row of the horizon.
        eye_m: height of the camera above the ground.
        bend_per_m: curvature of the street; it moves things at depth z sideways by `bend * z**2`.
    """

    focal_px: float
    vanish_u_px: float
    vanish_v_px: float
    eye_m: float
    bend_per_m: float


@dataclass(frozen=True)
class Light:
    """Sun and air of a scene.

    Attributes:
        sun: direction towards the sun (x, y, z), about unit length.
        strength: 0 (overcast, no shadows) to 1 (hard shadows).
        gain: per-channel factor on the colours of all lit surfaces.
        haze: colour of the air in the distance, 0..255.
        haze_m: depth at which half of a colour is haze.
    """

    sun: tuple[float, float, float]
    strength: float
    gain: Colour
    haze: Colour
    haze_m: float


@dataclass(frozen=True)
class Canvas:
    """A four-channel Pillow image (red, green, blue, class id) at `SUPERSAMPLE` times the output size."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    camera: Camera
    light: Light


@dataclass(frozen=True)
class Spot:
    """A place on the ground, metres to the right of and ahead of the camera."""

    x_m: float
    z_m: float


def open_canvas(pixels: NDArray[np.uint8], *, camera: Camera, light: Light) -> Canvas:
    """Starts a canvas from a background.

    Args:
        pixels: uint8 (3H, 3W, 4), red, green, blue and class id for an output of (H, W).
        camera: the camera, in output pixels.
        light: the light of the scene.
    """
    image = Image.fromarray(pixels)
    return Canvas(image=image, draw=ImageDraw.Draw(image), camera=camera, light=light)


def averaged(canvas: Canvas) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Brings a canvas to its output size.

    Returns:
        The image, uint8 (H, W, 3), mean of each 3x3 block; and the label, uint8 (H, W), the class id
        at the centre of each block.
    """
    centre = SUPERSAMPLE // 2
    # Pillow would weight an RGBA mean by alpha, which here is the class: drop it first.
    colours = np.asarray(canvas.image.convert("RGB").reduce(SUPERSAMPLE))
    ids = np.asarray(canvas.image.getchannel("A"))[centre::SUPERSAMPLE, centre::SUPERSAMPLE]
    return colours, np.ascontiguousarray(ids)


def project(camera: Camera, points: FloatArray) -> FloatArray:
    """World points (..., 3) in metres to image points (..., 2) in output pixels."""
    depth = np.maximum(points[..., 2], NEAR_M)
    scale = camera.focal_px / depth
    image = np.empty((*points.shape[:-1], 2))
    image[..., 0] = camera.vanish_u_px + points[..., 0] * scale + (camera.focal_px * camera.bend_per_m) * depth
    image[..., 1] = camera.vanish_v_px + (camera.eye_m - points[..., 1]) * scale
    return image


def billboard(camera: Camera, x_m: float, z_m: float, shape: FloatArray) -> FloatArray:
    """Points (..., 2) of a flat thing (metres sideways, metres up) that faces the camera, in output pixels."""
    scale = camera.focal_px / max(z_m, NEAR_M)
    foot_u = camera.vanish_u_px + x_m * scale + camera.focal_px * camera.bend_per_m * z_m
    foot_v = camera.vanish_v_px + camera.eye_m * scale
    return np.asarray(shape) * (scale, -scale) + (foot_u, foot_v)


def tint(light: Light, colour: Colour, depth_m: float, factor: float = 1.0) -> Ink:
    """A surface colour as it is seen: lit by `factor`, tinted by the light, faded into the haze."""
    keep = light.haze_m / (light.haze_m + depth_m)
    lit, veil = factor * keep, 1.0 - keep
    red = colour[0] * light.gain[0] * lit + light.haze[0] * veil
    green = colour[1] * light.gain[1] * lit + light.haze[1] * veil
    blue = colour[2] * light.gain[2] * lit + light.haze[2] * veil
    return min(255, max(0, round(red))), min(255, max(0, round(green))), min(255, max(0, round(blue)))


def subpixels(points: FloatArray) -> NDArray[np.int64]:
    """Output pixels to the nearest whole subpixel; the centre of subpixel i lies at (i + 0.5) / `SUPERSAMPLE`."""
    grid = np.rint(np.asarray(points) * SUPERSAMPLE - 0.5)
    whole: NDArray[np.int64] = np.minimum(np.maximum(grid, -FAR_OUTSIDE_PX), FAR_OUTSIDE_PX).astype(np.int64)
    return whole


def fill_polygon(canvas: Canvas, points: FloatArray, colour: Ink, label: int) -> None:
    """Fills a polygon given by its corners (N, 2) in output pixels."""
    canvas.draw.polygon(subpixels(points).ravel().tolist(), fill=(*colour, label))


def fill_polygons(canvas: Canvas, polygons: FloatArray, colours: Sequence[Ink], label: int) -> None:
    """Fills polygons (M, N, 2) in output pixels, each in its own colour; those outside the image cost nothing."""
    corners = subpixels(polygons)
    if len(corners) == 0:
        return
    low, high = corners.min(axis=1), corners.max(axis=1)
    seen = ((high >= 0) & (low < canvas.image.size)).all(axis=1)
    flat = corners.reshape(len(corners), -1).tolist()
    for i in np.flatnonzero(seen).tolist():
        canvas.draw.polygon(flat[i], fill=(*colours[i], label))


def fill_parts(canvas: Canvas, parts: Sequence[Part], place: Callable[[FloatArray], FloatArray], label: int) -> None:
    """Fills the polygons of a thing one after the other; `place` brings all their corners to output pixels at once."""
    corners = np.asarray([corner for outline, _ in parts for corner in outline], dtype=np.float64)
    flat = subpixels(place(corners)).ravel().tolist()
    begin = 0
    for outline, colour in parts:
        end = begin + 2 * len(outline)
        canvas.draw.polygon(flat[begin:end], fill=(*colour, label))
        begin = end


def fill_disc(canvas: Canvas, centre: FloatArray, radii_px: tuple[float, float], colour: Ink, label: int) -> None:
    """Fills an upright ellipse around `centre` (u, v) in output pixels."""
    reach = np.asarray(radii_px)
    box = subpixels(np.concatenate([centre - reach, centre + reach])).tolist()
    canvas.draw.ellipse(box, fill=(*colour, label))


def fill_post(canvas: Canvas, ends: FloatArray, *, width_px: float, colour: Ink, label: int) -> None:
    """Fills an upright bar between its `ends` (top, bottom), (2, 2) in output pixels.

    It is never thinner than 1.67 pixels, so that its label survives in every row.
    """
    width = max(POST_MIN_SUBPIXELS, round(width_px * SUPERSAMPLE))
    (_, v_top), (u, v_bottom) = subpixels(ends).tolist()
    left = u - width // 2
    if v_bottom >= v_top:
        canvas.draw.rectangle((left, v_top, left + width - 1, v_bottom), fill=(*colour, label))


def paste_pixels(canvas: Canvas, pixels: NDArray[np.uint8], mask: NDArray[np.bool_], corner: tuple[int, int]) -> None:
    """Writes subpixels (h, w, 4) where `mask` (h, w) holds, the upper left one at `corner` (u, v) in subpixels."""
    opaque = mask.view(np.uint8) * np.uint8(255)
    canvas.image.paste(Image.fromarray(pixels), corner, Image.fromarray(opaque))


def noise_tile(rng: np.random.Generator, size: int, octaves: tuple[int, ...]) -> NDArray[np.float32]:
    """Smooth random texture of mean about 0, float32 (size, size) in about -1..1.

    Args:
        rng: source of randomness.
        size: side of the tile.
        octaves: number of random cells along a side, one number for each layer; later layers weigh less.
    """
    total = np.zeros((size, size), dtype=np.float32)
    weight = 1.0
    for cells in octaves:
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        smooth = np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
        total += np.float32(weight) * (smooth / np.float32(127.5) - np.float32(1.0))
        weight *= 0.7
    return total / np.float32(sum(0.7**i for i in range(len(octaves))))


def pick(rng: np.random.Generator, choices: tuple[Colour, ...], spread: float = 12.0) -> Colour:
    """One of the colours, varied in brightness and a little in each channel."""
    which, shift, red, green, blue = rng.random(5).tolist()
    base = choices[int(which * len(choices))]
    shift = (2.0 * shift - 1.5) * spread
    return base[0] + shift + red * spread, base[1] + shift + green * spread, base[2] + shift + blue * spread
