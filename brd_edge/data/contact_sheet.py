"""One picture of many samples, as a training sees them: image, labels laid over it, and what the colours mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.runtime.frames import overlay

__all__ = ["Tile", "draw_contact_sheet"]

_SIDE = 260
"""Longest side of a picture, in pixels; larger ones are reduced, smaller ones enlarged by a whole number."""
_MARGIN, _GAP, _LINE = 20, 6, 20
_BACKGROUND, _INK, _FAINT = (255, 255, 255), (30, 34, 40), (120, 126, 134)
_HATCH = 8
_FONT, _SMALL = 14, 11

ByteArray = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One sample.

    Attributes:
        caption: Its name.
        image: uint8 (H, W, 3), RGB.
        label: uint8 (H, W) of train ids, 255 ignored.
    """

    caption: str
    image: ByteArray
    label: ByteArray


def draw_contact_sheet(
    tiles: Sequence[Tile],
    *,
    title: str,
    classes: Sequence[str],
    palette: tuple[tuple[int, int, int], ...],
    columns: int = 3,
) -> Image.Image:
    """Draw samples side by side, each as its image and with its labels laid over it.

    Ignored pixels are hatched. The same samples give the same picture.

    Args:
        tiles: At least one; all of one size.
        title: Stands above.
        classes: Class names.
        palette: RGB colour (0 to 255) of each class.
        columns: Samples in a row.

    Returns:
        RGB picture.
    """
    font, small = _fonts()
    title, classes = _on_one_line(title), [_on_one_line(name) for name in classes]
    width, height = _picture_size(tiles[0].image)
    columns = min(columns, len(tiles))
    cell = (2 * width + _GAP, height + _LINE)
    rows = -(-len(tiles) // columns)
    sheet_width = 2 * _MARGIN + columns * cell[0] + (columns - 1) * _MARGIN
    top = 2 * _MARGIN + _FONT
    legend_top = top + rows * (cell[1] + _MARGIN)
    legend = _place_legend(classes, small, sheet_width - 2 * _MARGIN)
    sheet_height = legend_top + legend[-1][1] + _LINE + _MARGIN
    sheet = Image.new("RGB", (sheet_width, sheet_height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 2), title, fill=_INK, font=font)
    for i, tile in enumerate(tiles):
        left = _MARGIN + i % columns * (cell[0] + _MARGIN)
        upper = top + i // columns * (cell[1] + _MARGIN)
        draw.text((left, upper), _shorten(tile.caption, small, cell[0]), fill=_FAINT, font=small)
        for place, pixels in enumerate((tile.image, _with_label(tile, palette))):
            picture = Image.fromarray(pixels).resize((width, height), _filter(tile.image, width))
            sheet.paste(picture, (left + place * (width + _GAP), upper + _LINE))
    colours = [*palette, _FAINT]
    for (x, y), name, colour in zip(legend, [*classes, "ignored"], colours, strict=True):
        corner = (_MARGIN + x, legend_top + y)
        draw.rectangle((*corner, corner[0] + 12, corner[1] + 12), fill=colour, outline=_FAINT)
        if name == "ignored":
            draw.line((corner[0], corner[1] + 12, corner[0] + 12, corner[1]), fill=_BACKGROUND, width=3)
        draw.text((corner[0] + 18, corner[1] - 1), name, fill=_INK, font=small)
    return sheet


def _fonts() -> tuple[Font, Font]:
    from matplotlib import get_data_path

    # Pillow's own font knows few letters beyond ASCII
    path = str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(path, _FONT), ImageFont.truetype(path, _SMALL)


def _picture_size(image: ByteArray) -> tuple[int, int]:
    """Return width and height of the pictures, in pixels."""
    height, width = image.shape[:2]
    factor = _SIDE / max(height, width)
    factor = max(1.0, float(int(factor))) if factor >= 1 else factor
    return max(1, round(width * factor)), max(1, round(height * factor))


def _filter(image: ByteArray, width: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if width >= image.shape[1] else Image.Resampling.BOX


def _with_label(tile: Tile, palette: tuple[tuple[int, int, int], ...]) -> ByteArray:
    ignored = tile.label == IGNORE_ID
    # over its colours a class would have another than in the legend
    grey = np.asarray(Image.fromarray(tile.image).convert("L").convert("RGB"))
    mixed = overlay(grey, np.where(ignored, np.uint8(0), tile.label), palette)
    rows, columns = np.indices(ignored.shape)
    stripe = (rows + columns) % _HATCH < _HATCH // 2
    mixed[ignored] = np.where(stripe[ignored][:, None], _FAINT, _BACKGROUND).astype(np.uint8)
    return mixed


def _place_legend(classes: Sequence[str], font: Font, width: int) -> list[tuple[int, int]]:
    """Return where each class, and then the ignored pixels, stand in the legend: left and top, in pixels."""
    places, x, y = [], 0, 0
    for name in [*classes, "ignored"]:
        needed = 18 + round(font.getlength(name)) + 16
        if x and x + needed > width:
            x, y = 0, y + _LINE
        places.append((x, y))
        x += needed
    return places


def _on_one_line(text: str) -> str:
    # a text of several lines can neither be measured nor be drawn here
    return " ".join(text.split())


def _shorten(text: str, font: Font, width: int) -> str:
    """Cut a caption that is too long at its beginning: names differ at their end."""
    # a name that is no text (undecodable bytes) cannot be drawn
    text = _on_one_line(text.encode(errors="backslashreplace").decode())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"
