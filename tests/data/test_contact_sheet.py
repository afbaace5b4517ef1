"""The contact sheet's pixels: pictures where they belong, colours where the label says."""

from __future__ import annotations

import numpy as np
from PIL import Image

from brd_edge.data.contact_sheet import Tile, draw_contact_sheet

PALETTE = ((200, 0, 0), (0, 160, 0))


def make_tile(caption: str = "a/b") -> Tile:
    """A grey picture of 130 x 65 (shown at twice that): class 0 on the left, 1 on the right, ignored below."""
    label = np.zeros((65, 130), np.uint8)
    label[:, 65:] = 1
    label[40:] = 255
    return Tile(caption, np.full((65, 130, 3), 100, np.uint8), label)


def draw(tiles: list[Tile], **options: int) -> np.ndarray:
    return np.asarray(draw_contact_sheet(tiles, title="tiny", classes=("road", "car"), palette=PALETTE, **options))


def test_image_and_overlay_lie_side_by_side() -> None:
    sheet = draw([make_tile()])
    grey = (sheet == 100).all(2)
    rows, columns = np.flatnonzero(grey.sum(1) > 200), np.flatnonzero(grey.sum(0) > 100)
    assert (rows.size, columns.size) == (130, 260)
    beside = sheet[rows[0] : rows[0] + 130, columns[-1] + 7 : columns[-1] + 7 + 260]
    # the overlay's opacity is 0.55
    for part, colour in ((beside[:80, :130], PALETTE[0]), (beside[:80, 130:], PALETTE[1])):
        expected = np.rint(0.55 * np.array(colour) + 0.45 * 100)
        assert np.abs(part.astype(int) - expected).max() <= 1
    ignored = beside[80:]
    assert {tuple(int(v) for v in pixel) for pixel in ignored.reshape(-1, 3)} == {(255, 255, 255), (120, 126, 134)}


def test_colours_of_the_image_do_not_mix_with_those_of_the_classes() -> None:
    tile = make_tile()
    red = np.zeros_like(tile.image) + np.array([235, 0, 0], np.uint8)
    green = np.zeros_like(tile.image) + np.array([0, 120, 0], np.uint8)
    # as bright as each other
    sheets = [draw([Tile("a", image, tile.label)]) for image in (red, green)]
    half = [sheet[:, sheet.shape[1] // 2 + 10 :] for sheet in sheets]
    assert np.abs(half[0].astype(int) - half[1]).max() <= 1


def test_rows_and_columns_grow_with_the_samples() -> None:
    one, two, five = (draw([make_tile(f"{i}") for i in range(n)]) for n in (1, 2, 5))
    assert two.shape[1] - one.shape[1] == 2 * 260 + 6 + 20
    assert two.shape[0] == one.shape[0]
    assert five.shape[0] - one.shape[0] == 130 + 20 + 20


def test_legend_shows_every_colour() -> None:
    sheet = draw([make_tile()])
    below = sheet[-60:]
    for colour in PALETTE:
        assert (below == colour).all(2).sum() >= 100


def test_the_same_samples_give_the_same_picture() -> None:
    tiles = [make_tile(f"{'long name ' * 20}{i}") for i in range(4)]
    assert np.array_equal(draw(tiles), draw(tiles))


def test_large_images_are_reduced() -> None:
    label = np.zeros((1024, 2048), np.uint8)
    sheet = draw([Tile("large \udcff", np.full((1024, 2048, 3), 100, np.uint8), label)])
    assert np.flatnonzero((sheet == 100).all(2).sum(1) > 200).size == 130
    assert Image.fromarray(sheet).width == 2 * 20 + 2 * 260 + 6


def test_names_of_several_lines_are_drawn_on_one() -> None:
    plain = draw_contact_sheet([make_tile("a b")], title="tiny", classes=("road", "a car"), palette=PALETTE)
    broken = draw_contact_sheet([make_tile("a\nb")], title="tiny\n", classes=("road\n", "a\ncar"), palette=PALETTE)
    assert np.array_equal(np.asarray(broken), np.asarray(plain))
