"""The report's pictures: validation images, labels and masks, whole and close up where they differ at boundaries."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from brd_edge.runtime.contours import boundary_band, boundary_distance, contour_pixels
from brd_edge.runtime.errors import DataError

__all__ = [
    "IGNORED",
    "IGNORED_COLOR",
    "PLAIN_TITLE",
    "Picture",
    "Region",
    "ReportSample",
    "Tile",
    "boundary_differences",
    "draw_sample",
    "most_differing",
    "worst_region",
]

IGNORED = 255
IGNORED_COLOR = (240, 240, 236)
PLAIN_TITLE = "earlier student"
"""Column title of the student that `benchmark.compare_run` names, as a rule the plainly trained one."""

_WRONG_COLOR = np.array([220, 20, 60], dtype=np.float32)
_WHOLE_PIXELS = 420  # longest side of a whole picture; a tile shows about half, the rest is for dense screens
_CLOSE_PIXELS = 360
_CLOSE_SHARE = 0.3  # share of the height and of the width that a close-up shows


@dataclass(frozen=True)
class ReportSample:
    """One validation image of the report's gallery.

    Image and masks may have another size than the label; they are brought to the label's.

    Attributes:
        name: What to call it, for example the sample's id.
        image: RGB, uint8 (H, W, 3).
        label: Train ids, uint8 (H, W); 255 is ignored.
        masks: Class maps, uint8 (H, W), by column title, in the order of the columns. The columns
            after one titled `"student"` are compared with it as well as with the label.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    masks: dict[str, np.ndarray]


@dataclass(frozen=True)
class Region:
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """Return this part of an (H, W) or (H, W, 3) array."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size in pixels and what it shows."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Tile:
    """One column of a sample's row."""

    title: str
    whole: Picture
    close: Picture
    notes: tuple[str, ...]


def most_differing(counts: Iterable[npt.NDArray[np.int64]], wanted: int) -> list[int]:
    """Choose the images in which models, engines and label differ most near boundaries.

    Args:
        counts: Of each model and engine what was counted in each image, int64 (N, 10, K), as
            `SegmentationMetrics.per_image`; at least one, and N the same in all.
        wanted: How many images, at least 1.

    Returns:
        Indices of at most `wanted` images: those with the most pixels of the boundary regions of label or mask on
        which the two do not agree, summed over the masks, as a share of the labelled pixels. The most differing one
        comes first; among equals the one that comes first in the split.
    """
    shares = []
    for found in counts:
        hit, either, near_hit, near_either = np.moveaxis(found[:, :4].sum(-1).astype(np.float64), 1, 0)
        # every labelled pixel is in the mask of its label and in that of its prediction
        shares.append((near_either - near_hit) / np.maximum((hit + either) / 2, 1))
    total = np.sum(shares, axis=0)
    return [int(index) for index in np.argsort(-total, kind="stable")[:wanted]]


def draw_sample(sample: ReportSample, palette: Sequence[Sequence[int]]) -> tuple[list[Tile], dict[str, float]]:
    """Draw a sample's row: image, label, and every mask with its errors close up.

    Args:
        sample: The sample.
        palette: RGB colour (0 to 255) of each class.

    Returns:
        The tiles, and where in the whole pictures the close-ups lie (see `boundary_differences`), as `left`, `top`,
        `width` and `height` in percent.

    Raises:
        DataError: An array has another type or other dimensions than it should.
    """
    _check(sample)
    colors, label, name = _color_table(palette), sample.label, sample.name
    height, width = label.shape
    image = _resized(sample.image, height, width, Image.Resampling.BILINEAR)
    masks = {title: _resized(mask, height, width, Image.Resampling.NEAREST) for title, mask in sample.masks.items()}
    errors = {title: (mask != label) & (label != IGNORED) for title, mask in masks.items()}
    region = worst_region(boundary_differences(masks.values(), label))
    tiles = [
        Tile(
            "image",
            _photo(image, _WHOLE_PIXELS, f"Validation image {name}"),
            _photo(region.cut(image), _CLOSE_PIXELS, f"Close-up of {name}: image"),
            (),
        ),
        Tile(
            "label",
            _class_picture(label, colors, _WHOLE_PIXELS, f"Label of {name}"),
            _class_picture(region.cut(label), colors, _CLOSE_PIXELS, f"Close-up of {name}: label"),
            (),
        ),
    ]
    for title, mask in masks.items():
        notes = _notes(title, masks, errors[title], label)
        overlay = _error_overlay(region.cut(image), region.cut(mask), region.cut(errors[title]), colors)
        whole = _class_picture(mask, colors, _WHOLE_PIXELS, f"Mask of {title} on {name}: {notes[0]}")
        close = _photo(overlay, _CLOSE_PIXELS, f"Close-up of {name}: errors of {title} in red")
        tiles.append(Tile(title, whole, close, notes))
    place = {
        "left": 100 * region.left / width,
        "top": 100 * region.top / height,
        "width": 100 * region.width / width,
        "height": 100 * region.height / height,
    }
    return tiles, place


def boundary_differences(masks: Iterable[np.ndarray], label: np.ndarray) -> np.ndarray:
    """Mark where masks and label differ within the label's boundary region: what a close-up is to show.

    Args:
        masks: Class maps, uint8 (H, W).
        label: Train ids, uint8 (H, W); 255 is ignored.

    Returns:
        bool (H, W): the pixels of the label's boundary region, as Boundary IoU has it, on which a mask differs from
        the label, and with it from another mask or from all; without any, the label's contours.
    """
    band = boundary_band(label, boundary_distance(*label.shape))
    differing = np.zeros(label.shape, dtype=bool)
    for mask in masks:
        differing |= mask != label
    differing &= band
    return differing if differing.any() else contour_pixels(label)


def worst_region(errors: np.ndarray, *, share: float = _CLOSE_SHARE) -> Region:
    """Find the window that holds the most errors; among equals, the one nearest the middle.

    Args:
        errors: Truth values or weights (not negative), (H, W).
        share: Height and width of the window as a share of the picture's, above 0 and at most 1.

    Returns:
        The window, inside the picture.
    """
    height, width = errors.shape
    rows, columns = max(1, round(share * height)), max(1, round(share * width))
    total = np.zeros((height + 1, width + 1), dtype=np.int64)
    np.cumsum(np.cumsum(errors, axis=0, dtype=np.int64), axis=1, out=total[1:, 1:])
    inside = total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
    tops, lefts = np.nonzero(inside == inside.max())
    offset = (tops - (height - rows) / 2) ** 2 + (lefts - (width - columns) / 2) ** 2
    nearest = int(np.argmin(offset))
    return Region(int(tops[nearest]), int(lefts[nearest]), rows, columns)


def _check(sample: ReportSample) -> None:
    arrays = [("image", sample.image, 3), ("label", sample.label, 2)]
    arrays += [(f"mask {title!r}", mask, 2) for title, mask in sample.masks.items()]
    for what, array, dimensions in arrays:
        shape_fits = array.ndim == dimensions and (dimensions == 2 or array.shape[2] == 3) and array.size > 0
        if array.dtype != np.uint8 or not shape_fits:
            expected = "(H, W, 3)" if dimensions == 3 else "(H, W)"
            raise DataError(
                f"report sample {sample.name!r}: {what} must be uint8 {expected}, got {array.dtype} {array.shape}"
            )


def _color_table(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return a colour for every id, uint8 (256, 3); ids without a class look like ignored ones."""
    colors = np.full((256, 3), IGNORED_COLOR, dtype=np.uint8)
    if palette:
        colors[: len(palette)] = np.asarray(palette, dtype=np.uint8)
    return colors


def _resized(pixels: np.ndarray, height: int, width: int, resampling: Image.Resampling) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), resampling))


def _notes(title: str, masks: Mapping[str, np.ndarray], errors: np.ndarray, label: np.ndarray) -> tuple[str, ...]:
    labelled = int((label != IGNORED).sum())
    first = f"{100 * int(errors.sum()) / labelled:.1f} % wrong" if labelled else "nothing is labelled"
    titles = list(masks)
    if "student" not in masks or titles.index(title) <= titles.index("student"):
        return (first,)
    differing = float((masks[title] != masks["student"]).mean())
    if differing == 0:
        return first, "same as student"
    return first, f"{100 * differing:.2f} % unlike student" if differing >= 1e-4 else "<0.01 % unlike student"


def _error_overlay(image: np.ndarray, mask: np.ndarray, errors: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Lay the mask's colours faintly over the grey image, and red over its wrong pixels."""
    grey = 70 + 0.62 * np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None]
    blend = 0.72 * grey + 0.28 * colors[mask].astype(np.float32)
    blend = np.where(errors[..., None], 0.12 * grey + 0.88 * _WRONG_COLOR, blend)
    return blend.clip(0, 255).astype(np.uint8)


def _class_picture(mask: np.ndarray, colors: np.ndarray, longest: int, alt: str) -> Picture:
    height, width = _fitted(mask.shape, longest)
    picture = Image.fromarray(np.ascontiguousarray(mask)).resize((width, height), Image.Resampling.NEAREST)
    picture.putpalette(colors.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return Picture(_data_uri("image/png", buffer.getvalue()), width, height, alt)


def _photo(pixels: np.ndarray, longest: int, alt: str) -> Picture:
    height, width = _fitted(pixels.shape, longest)
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    # not optimize=True: with it Pillow fails on noisy pictures, whose bytes outgrow its one buffer
    picture.save(buffer, format="JPEG", quality=84, subsampling=0)
    return Picture(_data_uri("image/jpeg", buffer.getvalue()), width, height, alt)


def _fitted(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Return a height and a width of at most `longest`; a small picture stays as it is."""
    scale = min(1.0, longest / max(shape[:2]))
    return max(1, round(scale * shape[0])), max(1, round(scale * shape[1]))


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
