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
    noise_tile,
    pick,
    project,
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
_MARKING = (205.0, 205.0, 198.0)
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


def paint_sky(rng: np.random.Generator, pixels: NDArray[np.uint8], light: Light) -> None:
    """Fills `pixels` (rows above the horizon, 3W, 4) with a gradient and clouds, class sky."""
    rows, columns = pixels.shape[:2]
    top = np.asarray(pick(rng, ((92, 138, 196), (120, 156, 200), (168, 176, 188), (150, 152, 158), (196, 198, 202))))
    haze = np.asarray(light.haze)
    cloud = np.clip(haze * 0.5 + 128.0, 0, 255)
    tile = noise_tile(rng, 128, (5, 11, 23, 47))
    cover = float(rng.uniform(-0.35, 0.35))
    # Clouds are soft: a quarter of the resolution is plenty.
    small_rows, small_columns = max(2, rows // 4), max(2, columns // 4)
    lines = np.linspace(0, 127, small_rows).astype(np.int64)
    across = np.linspace(0, 127, small_columns).astype(np.int64)
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

    tile = noise_tile(rng, 256, (16, 64, 200))
    coarse = tile[np.mod(z * 2.0, 256).astype(np.int64) % 256, np.mod(x * 6.0, 256).astype(np.int64) % 256]
    grain = rng.integers(0, 256, (rows, columns), dtype=np.uint8).astype(np.float32) * np.float32(1 / 127.5) - 1
    asphalt = float(rng.uniform(82, 122))
    paving = np.asarray(pick(rng, _PAVINGS), dtype=np.float32)
    ground = np.where(road[..., None], np.asarray([asphalt, asphalt, asphalt + 3], np.float32), paving)
    ground += (coarse * np.float32(rng.uniform(8, 22)) + grain * np.float32(rng.uniform(8, 20)))[..., None]
    paint = _markings(rng, street, x, z) & road
    ground[paint] += (np.asarray(_MARKING, np.float32) - asphalt) * np.float32(rng.uniform(0.4, 1.0))
    ground[_joints(street, x, z) & ~road] *= np.float32(0.8)

    dark = _shadow_mask(x, first_row=first_row, street=street, shadows=shadows, camera=camera, light=light)
    ground *= (1.0 - np.float32(0.2 + 0.4 * light.strength) * dark)[..., None]
    keep = np.float32(light.haze_m) / (np.float32(light.haze_m) + z)[..., None]
    ground *= np.asarray(light.gain, np.float32) * keep
    ground += np.asarray(light.haze, np.float32) * (1 - keep)
    pixels[..., :3] = np.clip(ground, 0, 255)
    pixels[..., 3] = np.where(road, np.uint8(ROAD), np.uint8(PAVEMENT))


def _markings(rng: np.random.Generator, street: Street, x: FloatArray, z: FloatArray) -> NDArray[np.bool_]:
    painted = np.zeros(x.shape, dtype=bool)
    dash = np.mod(z + np.float32(rng.uniform(0, 9)), 9.0) < 4.0
    half = float(rng.uniform(0.06, 0.1))
    for centre, dashed in street.markings:
        line = np.abs(x - np.float32(centre)) < half
        painted |= line & dash if dashed else line
    if street.side_street is not None:
        begin, end = street.side_street
        painted &= (z < begin - 1.0) | (z > end + 1.0)
    if street.zebra_m is not None:
        across = (z > street.zebra_m) & (z < street.zebra_m + 3.0)
        painted = np.where(across, np.mod(x, 1.0) < 0.5, painted)
    return painted


def _joints(street: Street, x: FloatArray, z: FloatArray) -> NDArray[np.bool_]:
    """Joints between the slabs and at the kerb, as far as they can be seen."""
    kerb = (np.abs(x - np.float32(street.left_m)) < 0.12) | (np.abs(x - np.float32(street.right_m)) < 0.12)
    slabs = (np.mod(x, 0.8) < 0.05) | (np.mod(z, 1.2) < 0.07)
    joints: NDArray[np.bool_] = kerb | (slabs & (z < 14.0))
    return joints


def _shadow_mask(
    x: FloatArray,
    *,
    first_row: int,
    street: Street,
    shadows: list[Shadow],
    camera: Camera,
    light: Light,
) -> NDArray[np.float32]:
    """Where the ground lies in shadow: 1 in full shadow, 0 in the light."""
    mask = Image.new("L", (x.shape[1], x.shape[0]), 0)
    draw = ImageDraw.Draw(mask)
    # A ring of twelve points (multiples of 30 degrees), good enough for the outline of a shadow.
    ring = np.asarray([[1, 0], [0.87, 0.5], [0.5, 0.87], [0, 1], [-0.5, 0.87], [-0.87, 0.5]])
    ring = np.concatenate([ring, -ring])
    for shadow in shadows:
        points = np.zeros((12, 3))
        points[:, 0] = shadow.x_m + ring[:, 0] * shadow.half_x_m
        points[:, 2] = shadow.z_m + ring[:, 1] * shadow.half_z_m
        corners = np.rint(project(camera, points) * SUPERSAMPLE - 0.5).astype(np.int64) - [0, first_row]
        draw.polygon([(int(a), int(b)) for a, b in corners], fill=255)
    dark = (np.asarray(mask) > 0).astype(np.float32)
    reach = 9.0 * abs(light.sun[0])
    side = x > street.wall_right_m - reach if light.sun[0] > 0 else x < street.wall_left_m + reach
    if light.strength > 0.3:
        dark = np.maximum(dark, side.astype(np.float32))
    return dark


def paint_skyline(rng: np.random.Generator, canvas: Canvas, width: int) -> None:
    """Paints a row of blocks at the end of the street."""
    steps, rises = rng.uniform(((0.03,), (0.01,)), ((0.12,), (0.11,)), (2, 80)) * canvas.camera.focal_px
    horizon, u = canvas.camera.vanish_v_px, -1.0
    for step, rise in zip(steps.tolist(), rises.tolist(), strict=True):
        colour = tint(canvas.light, pick(rng, _WALLS), 160.0)
        if u < width:
            rows = horizon - rise, horizon + 2.0
            box = np.asarray([[u, rows[0]], [u + step, rows[0]], [u + step, rows[1]], [u, rows[1]]])
            fill_polygon(canvas, box, colour, BUILDING)
        u += step


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
    for quad, dirt in zip(whole, rng.uniform(0.9, 1.08, 4).tolist(), strict=True):
        fill_polygon(canvas, quad, tint(canvas.light, colour, wall.depth_m, wall.lit * dirt), BUILDING)
    pitch, storey, share = (float(v) for v in rng.uniform((2.2, 2.8, 0.35), (4.0, 3.6, 0.7)))
    tones = [tint(canvas.light, panes, wall.depth_m, wall.lit * f) for f in rng.uniform(0.6, 1.4, 4).tolist()]
    order = rng.integers(0, 4, 64).tolist()
    sills = np.arange(4.4, wall.height_m - 1.4, storey)
    if glass:
        columns = np.asarray([[0.4, wall.length_m - 0.4]])
        rows = np.stack([sills, sills + storey * 0.62], axis=-1)
    else:
        lefts = np.arange(pitch * 0.3, wall.length_m - pitch * share, pitch)
        columns = np.stack([lefts, lefts + pitch * share], axis=-1)
        rows = np.stack([sills, sills + 1.6], axis=-1)
    if glass or wall.depth_m < 75.0:
        for i, quad in enumerate(_quads(canvas.camera, wall, columns, rows)):
            fill_polygon(canvas, quad, tones[order[i % 64]], BUILDING)


def _paint_ground_floor(rng: np.random.Generator, canvas: Canvas, wall: _Wall) -> None:
    """Doors, shop windows and shop boards: bright patches that are no signs."""
    lefts = np.arange(0.5, wall.length_m - 2.0, float(rng.uniform(3.0, 5.0)))
    widths = rng.uniform(1.2, 2.8, lefts.shape)
    shop = bool(rng.random() < 0.6)
    board = tint(canvas.light, pick(rng, _SHOPS), wall.depth_m, wall.lit)
    window = tint(canvas.light, pick(rng, _PANES), wall.depth_m, wall.lit)
    columns = np.stack([lefts, lefts + widths], axis=-1)
    for quad in _quads(canvas.camera, wall, columns, np.asarray([[0.6 if shop else 0.1, 2.5]])):
        fill_polygon(canvas, quad, window, BUILDING)
    if shop:
        columns = np.stack([lefts, lefts + 2.4], axis=-1)[:2]
        for quad in _quads(canvas.camera, wall, columns, np.asarray([[2.7, 3.4]])):
            fill_polygon(canvas, quad, board, BUILDING)


def _quads(camera: Camera, wall: _Wall, columns: FloatArray, rows: FloatArray) -> FloatArray:
    """The cells of a wall as image quads (n * m, 4, 2), from n columns (left, right) and m rows (low, high)."""
    across = columns[:, None, [0, 1, 1, 0], None]
    up = rows[None, :, [0, 0, 1, 1], None]
    points = wall.start + across * wall.along + up * np.asarray([0.0, 1.0, 0.0])
    return project(camera, points).reshape(-1, 4, 2)
