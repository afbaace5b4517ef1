"""The street of a drawn scene: sky, road and pavement, buildings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from brd_edge.data.scene_canvas import (
    BUILDING,
    PAVEMENT,
    ROAD,
    SKY,
    SUPERSAMPLE,
    Camera,
    Canvas,
    Colour,
    FloatArray,
    Light,
    fill_polygon,
    fill_polygons,
    pick,
    project,
    subpixels,
    tint,
)

__all__ = [
    "Building",
    "Shadow",
    "Street",
    "paint_building",
    "paint_ground",
    "paint_sky",
    "paint_skyline",
    "plan_street",
]

_LANE_M = 3.2
_MARKING = 204.0
_PAVINGS: tuple[Colour, ...] = ((128, 126, 124), (112, 112, 116), (146, 140, 130), (132, 112, 102), (104, 102, 100))
_WALLS: tuple[Colour, ...] = (
    (168, 156, 138),
    (140, 92, 74),
    (190, 184, 172),
    (122, 120, 118),
    (98, 92, 96),
    (176, 148, 108),
    (150, 160, 168),
    (112, 122, 112),
)
_ROOFS: tuple[Colour, ...] = ((110, 62, 50), (70, 70, 76), (92, 84, 80))
_PANES: tuple[Colour, ...] = ((52, 60, 70), (92, 110, 126), (140, 160, 176), (38, 38, 42))
_SHOPS: tuple[Colour, ...] = ((170, 40, 38), (34, 70, 140), (212, 186, 60), (44, 92, 58), (210, 210, 206), (40, 40, 44))


@dataclass(frozen=True)
class Street:
    """Plan of a straight street; positions in metres to the right of the camera.

    Attributes:
        left_m: left edge of the road (negative).
        right_m: right edge of the road.
        wall_left_m: line of the buildings on the left.
        wall_right_m: line of the buildings on the right.
        markings: centre and dash flag of every lane marking.
        side_street: depths at which a side street begins and ends, or None.
        zebra_m: depth at which a pedestrian crossing begins, or None.
        parking: whether cars are parked along the left and the right edge.
    """

    left_m: float
    right_m: float
    wall_left_m: float
    wall_right_m: float
    markings: tuple[tuple[float, bool], ...]
    side_street: tuple[float, float] | None
    zebra_m: float | None
    parking: tuple[bool, bool]


@dataclass(frozen=True)
class Shadow:
    """An elliptic shadow on the ground: centre and half axes in metres."""

    x_m: float
    z_m: float
    half_x_m: float
    half_z_m: float


@dataclass(frozen=True)
class Building:
    """A block whose street wall runs from `near_m` to `far_m` at `wall_m`; `side` is -1 on the left, 1 on the right."""

    side: int
    wall_m: float
    near_m: float
    far_m: float
    height_m: float


@dataclass(frozen=True)
class _Wall:
    """A flat wall that begins at the ground point `start` and runs in the direction `along` (unit vectors, metres)."""

    start: FloatArray
    along: FloatArray
    length_m: float
    height_m: float
    depth_m: float
    lit: float


def plan_street(rng: np.random.Generator) -> Street:
    """Draws the plan of a street."""
    parking = (bool(rng.random() < 0.55), bool(rng.random() < 0.55))
    extra = int(rng.random() < 0.3)
    oncoming = int(rng.integers(1, 3))
    left = -_LANE_M * (0.5 + oncoming) - 2.2 * parking[0]
    right = _LANE_M * (0.5 + extra) + 2.2 * parking[1]
    markings = [(-_LANE_M * (0.5 + lane), lane > 0 or bool(rng.random() < 0.5)) for lane in range(oncoming)]
    markings += [(_LANE_M * (0.5 + lane), True) for lane in range(extra)]
    if rng.random() < 0.5:
        markings += [(left + 2.2 * parking[0] + 0.25, False), (right - 2.2 * parking[1] - 0.25, False)]
    side_street = None
    if rng.random() < 0.45:
        begin = float(rng.uniform(12.0, 34.0))
        side_street = (begin, begin + float(rng.uniform(7.0, 11.0)))
    zebra = None
    if rng.random() < 0.35:
        zebra = side_street[0] - 5.0 if side_street else float(rng.uniform(6.0, 22.0))
    wide = rng.uniform(2.0, 6.0, 2)
    return Street(
        left_m=left,
        right_m=right,
        wall_left_m=left - float(wide[0]),
        wall_right_m=right + float(wide[1]),
        markings=tuple(markings),
        side_street=side_street,
        zebra_m=zebra,
        parking=parking,
    )


def paint_sky(rng: np.random.Generator, pixels: NDArray[np.uint8], *, light: Light, tile: NDArray[np.float32]) -> None:
    """Fills `pixels` (rows above the horizon, 3W, 4) with a gradient and clouds from the noise `tile`, class sky."""
    rows, columns = pixels.shape[:2]
    top = np.asarray(pick(rng, ((92, 138, 196), (120, 156, 200), (168, 176, 188), (150, 152, 158), (196, 198, 202))))
    haze = np.asarray(light.haze)
    cloud = np.clip(haze * 0.5 + 128.0, 0, 255)
    cover = float(rng.uniform(-0.35, 0.35))
    # Clouds are soft: a quarter of the resolution is plenty.
    small_rows, small_columns = max(2, rows // 4), max(2, columns // 4)
    last = tile.shape[0] - 1
    lines = np.linspace(0, last, small_rows).astype(np.int64)
    across = np.linspace(0, last, small_columns).astype(np.int64)
    amount = np.clip((tile[np.ix_(lines, across)] - cover) * 2.2, 0.0, 0.85)[..., None]
    down = np.linspace(0.0, 1.0, small_rows)[:, None, None]
    base = top * (1.0 - down) + haze * down
    soft = np.rint(np.clip(base * (1.0 - amount) + cloud * amount, 0, 255)).astype(np.uint8)
    pixels[..., :3] = np.asarray(Image.fromarray(soft).resize((columns, rows), Image.Resampling.BILINEAR))
    pixels[..., 3] = SKY


def paint_ground(
    rng: np.random.Generator,
    pixels: NDArray[np.uint8],
    *,
    first_row: int,
    street: Street,
    shadows: list[Shadow],
    camera: Camera,
    light: Light,
    tile: NDArray[np.float32],
) -> None:
    """Fills `pixels` (rows below the horizon, 3W, 4) with road and pavement, their texture and the shadows on them.

    `first_row` is the canvas row, in subpixels, of the first row of `pixels`.
    """
    rows, columns = pixels.shape[:2]
    v = ((np.arange(rows, dtype=np.float32) + first_row + 0.5) / SUPERSAMPLE)[:, None]
    u = ((np.arange(columns, dtype=np.float32) + 0.5) / SUPERSAMPLE)[None, :]
    drop = np.maximum(v - np.float32(camera.vanish_v_px), np.float32(0.05))
    z = np.float32(camera.focal_px * camera.eye_m) / drop
    x = (u - np.float32(camera.vanish_u_px)) * (z / np.float32(camera.focal_px)) - np.float32(camera.bend_per_m) * z * z
    road = (x > street.left_m) & (x < street.right_m)
    if street.side_street is not None:
        road |= (z > street.side_street[0]) & (z < street.side_street[1])

    asphalt, patches, grain, paint = (float(a) for a in rng.uniform((82, 8, 0.06, 0.4), (122, 22, 0.16, 1.0)))
    paving = pick(rng, _PAVINGS)
    # Texture and light are the same for the three channels: one plane each.
    texture = rng.integers(0, 256, x.shape, dtype=np.uint8).astype(np.float32) * np.float32(grain)
    texture += np.float32(patches) * _patches(tile, x, z) - np.float32(grain * 127.5)
    texture += (_markings(rng, street, x, z) & road) * np.float32((_MARKING - asphalt) * paint)
    keep = np.float32(light.haze_m) / (np.float32(light.haze_m) + z)
    lit = np.where(_joints(street, x, z) & ~road, np.float32(0.8) * keep, keep)
    dark = _shadow_mask(x, first_row=first_row, street=street, shadows=shadows, camera=camera, light=light)
    np.multiply(lit, np.float32(0.8 - 0.4 * light.strength), out=lit, where=dark)
    for channel, base in enumerate((asphalt, asphalt, asphalt + 3.0)):
        plane = np.where(road, np.float32(base), np.float32(paving[channel]))
        plane += texture
        plane *= lit
        plane *= np.float32(light.gain[channel])
        plane += np.float32(light.haze[channel]) * (1 - keep)
        pixels[..., channel] = np.minimum(np.maximum(plane, 0, out=plane), 255, out=plane)
    pixels[..., 3] = np.where(road, np.uint8(ROAD), np.uint8(PAVEMENT))


def _patches(tile: NDArray[np.float32], x: FloatArray, z: FloatArray) -> NDArray[np.float32]:
    """Worn and mended patches: the noise tile laid out on the ground."""
    size = tile.shape[0]
    across = (x * 8.0).astype(np.int32) % size
    across += (z * 3.0).astype(np.int32) % size * np.int32(size)
    laid: NDArray[np.float32] = tile.ravel().take(across)
    return laid


def _share(x: FloatArray, period: float) -> FloatArray:
    """Where x lies in its period, 0..1; much faster than a remainder."""
    turns = x * np.float32(1.0 / period)
    turns -= np.floor(turns)
    return turns


def _markings(rng: np.random.Generator, street: Street, x: FloatArray, z: FloatArray) -> NDArray[np.bool_]:
    painted = np.zeros(x.shape, dtype=bool)
    start, half = (float(a) for a in rng.uniform((0.0, 0.06), (9.0, 0.1)))
    dash = _share(z + np.float32(start), 9.0) < 0.45
    for centre, dashed in street.markings:
        line = np.abs(x - np.float32(centre)) < half
        painted |= line & dash if dashed else line
    if street.side_street is not None:
        begin, end = street.side_street
        painted &= (z < begin - 1.0) | (z > end + 1.0)
    if street.zebra_m is not None:
        rows = np.flatnonzero((z > street.zebra_m) & (z < street.zebra_m + 3.0))
        painted[rows] = _share(x[rows], 1.0) < 0.5
    return painted


def _joints(street: Street, x: FloatArray, z: FloatArray) -> NDArray[np.bool_]:
    """Joints between the slabs and at the kerb, as far as they can be seen."""
    half = np.float32(0.12)
    joints: NDArray[np.bool_] = (np.abs(x - np.float32(street.left_m)) < half) | (
        np.abs(x - np.float32(street.right_m)) < half
    )
    rows = np.flatnonzero(z < 14.0)
    joints[rows] |= (_share(x[rows], 0.8) < 0.06) | (_share(z[rows], 1.2) < 0.06)
    return joints


def _shadow_mask(
    x: FloatArray,
    *,
    first_row: int,
    street: Street,
    shadows: list[Shadow],
    camera: Camera,
    light: Light,
) -> NDArray[np.bool_]:
    """Where the ground lies in shadow."""
    mask = Image.new("L", (x.shape[1], x.shape[0]), 0)
    draw = ImageDraw.Draw(mask)
    # A ring of twelve points (multiples of 30 degrees), good enough for the outline of a shadow.
    ring = np.asarray([[1, 0], [0.87, 0.5], [0.5, 0.87], [0, 1], [-0.5, 0.87], [-0.87, 0.5]])
    ring = np.concatenate([ring, -ring])
    blots = np.asarray([(s.x_m, s.z_m, s.half_x_m, s.half_z_m) for s in shadows]).reshape(-1, 1, 4)
    points = np.zeros((len(blots), len(ring), 3))
    points[..., [0, 2]] = blots[..., :2] + ring * blots[..., 2:]
    corners = subpixels(project(camera, points)) - [0, first_row]
    for outline in corners.reshape(len(blots), -1).tolist():
        draw.polygon(outline, fill=255)
    dark: NDArray[np.bool_] = np.asarray(mask) > 0
    reach = 9.0 * abs(light.sun[0])
    if light.strength > 0.3:
        dark |= x > street.wall_right_m - reach if light.sun[0] > 0 else x < street.wall_left_m + reach
    return dark


def paint_skyline(rng: np.random.Generator, canvas: Canvas, width: int) -> None:
    """Paints a row of blocks at the end of the street."""
    focal, horizon = canvas.camera.focal_px, canvas.camera.vanish_v_px
    edges = np.concatenate([[0.0], np.cumsum(rng.uniform(0.3, 1.0, 24))])
    edges *= width / edges[-1]
    left, right, top = edges[:-1], edges[1:], horizon - rng.uniform(0.01, 0.11, 24) * focal
    low = np.full_like(top, horizon + 2.0)
    boxes = np.stack([left, top, right, top, right, low, left, low], axis=-1).reshape(-1, 4, 2)
    colours = [tint(canvas.light, pick(rng, _WALLS), 160.0) for _ in boxes]
    fill_polygons(canvas, boxes, colours, BUILDING)


def paint_building(rng: np.random.Generator, canvas: Canvas, building: Building) -> None:
    """Paints a building: the wall along the street, the wall towards the camera, windows, a shop, a roof."""
    colour = pick(rng, _WALLS, 22.0)
    panes = pick(rng, _PANES, 16.0)
    glass = bool(rng.random() < 0.2)
    side, near, length = float(building.side), building.near_m, building.far_m - building.near_m
    if rng.random() < 0.4 and building.height_m < 16:
        _paint_roof(canvas, building, pick(rng, _ROOFS))
    runs = [((0.0, 0.0, 1.0), (-side, 0.0, 0.0), length)]
    if near > 3.0:
        runs.insert(0, ((side, 0.0, 0.0), (0.0, 0.0, -1.0), 14.0))
    for along, normal, run in runs:
        wall = _Wall(
            start=np.asarray([building.wall_m, 0.0, near]),
            along=np.asarray(along),
            length_m=run,
            height_m=building.height_m,
            depth_m=near + along[2] * run / 2,
            lit=_lit(canvas.light, normal),
        )
        _paint_wall(rng, canvas, wall, colour=colour, panes=panes, glass=glass)
        if wall.depth_m < 60.0:
            _paint_ground_floor(rng, canvas, wall)


def _lit(light: Light, normal: tuple[float, float, float]) -> float:
    facing = sum(a * b for a, b in zip(light.sun, normal, strict=True))
    return 0.85 + (0.15 + 0.3 * light.strength) * facing


def _paint_roof(canvas: Canvas, building: Building, colour: Colour) -> None:
    back = building.wall_m + building.side * 5.0
    top = building.height_m + 3.2
    corners = np.asarray(
        [
            [building.wall_m, building.height_m, building.near_m],
            [building.wall_m, building.height_m, building.far_m],
            [back, top, building.far_m],
            [back, top, building.near_m],
        ]
    )
    gable = np.asarray([corners[0], corners[3], [back + building.side * 5.0, building.height_m, building.near_m]])
    seen = tint(canvas.light, colour, building.near_m, 0.95)
    fill_polygon(canvas, project(canvas.camera, corners), seen, BUILDING)
    fill_polygon(canvas, project(canvas.camera, gable), tint(canvas.light, colour, building.near_m, 0.8), BUILDING)


def _paint_wall(
    rng: np.random.Generator, canvas: Canvas, wall: _Wall, *, colour: Colour, panes: Colour, glass: bool
) -> None:
    """Paints a wall and the windows of its upper storeys."""
    edges = np.linspace(0.0, wall.length_m, 5)
    whole = _quads(canvas.camera, wall, np.stack([edges[:-1], edges[1:]], axis=-1), np.asarray([[0.0, wall.height_m]]))
    # Pieces of slightly different brightness stand for dirt, plaster and extensions.
    dirt = [tint(canvas.light, colour, wall.depth_m, wall.lit * f) for f in rng.uniform(0.9, 1.08, 4).tolist()]
    fill_polygons(canvas, whole, dirt, BUILDING)
    pitch, storey, share = (float(v) for v in rng.uniform((2.2, 2.8, 0.35), (4.0, 3.6, 0.7)))
    tones = [tint(canvas.light, panes, wall.depth_m, wall.lit * f) for f in rng.uniform(0.6, 1.4, 4).tolist()]
    order = rng.integers(0, 4, 64)
    sills = np.arange(4.4, wall.height_m - 1.4, storey)
    if glass:
        columns = np.asarray([[0.4, wall.length_m - 0.4]])
        rows = np.stack([sills, sills + storey * 0.62], axis=-1)
    else:
        lefts = np.arange(pitch * 0.3, wall.length_m - pitch * share, pitch)
        columns = np.stack([lefts, lefts + pitch * share], axis=-1)
        rows = np.stack([sills, sills + 1.6], axis=-1)
    if glass or wall.depth_m < 75.0:
        quads = _quads(canvas.camera, wall, columns, rows)
        fill_polygons(canvas, quads, [tones[i] for i in np.resize(order, len(quads)).tolist()], BUILDING)


def _paint_ground_floor(rng: np.random.Generator, canvas: Canvas, wall: _Wall) -> None:
    """Doors, shop windows and shop boards: bright patches that are no signs."""
    lefts = np.arange(0.5, wall.length_m - 2.0, float(rng.uniform(3.0, 5.0)))
    widths = rng.uniform(1.2, 2.8, lefts.shape)
    shop = bool(rng.random() < 0.6)
    board = tint(canvas.light, pick(rng, _SHOPS), wall.depth_m, wall.lit)
    window = tint(canvas.light, pick(rng, _PANES), wall.depth_m, wall.lit)
    columns = np.stack([lefts, lefts + widths], axis=-1)
    quads = _quads(canvas.camera, wall, columns, np.asarray([[0.6 if shop else 0.1, 2.5]]))
    fill_polygons(canvas, quads, [window] * len(quads), BUILDING)
    if shop:
        columns = np.stack([lefts, lefts + 2.4], axis=-1)[:2]
        quads = _quads(canvas.camera, wall, columns, np.asarray([[2.7, 3.4]]))
        fill_polygons(canvas, quads, [board] * len(quads), BUILDING)


def _quads(camera: Camera, wall: _Wall, columns: FloatArray, rows: FloatArray) -> FloatArray:
    """The cells of a wall as image quads (n * m, 4, 2), from n columns (left, right) and m rows (low, high)."""
    across = columns[:, None, [0, 1, 1, 0], None]
    up = rows[None, :, [0, 0, 1, 1], None]
    points = wall.start + across * wall.along + up * np.asarray([0.0, 1.0, 0.0])
    return project(camera, points).reshape(-1, 4, 2)
