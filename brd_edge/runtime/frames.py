"""Frames at the size of the input contract: the one rule of loader, evaluation and device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.windows import cut_window, infer_windows

__all__ = [
    "UNREADABLE",
    "fit_frame",
    "overlay",
    "read_image",
    "read_orientation",
    "resize_class_map",
    "segment_image",
    "upright_rgb",
]

# what Pillow raises for files that are empty, cut short, damaged or implausibly large: OSError, SyntaxError,
# ValueError, IndexError, struct.error, DecompressionBombError, … there is no common kind
UNREADABLE = (Exception,)

_OVERLAY_OPACITY = 0.55
_EXIF_ORIENTATION = 0x0112
# EXIF 2.3, 4.6.4: what brings each orientation upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image file as uint8 (H, W, 3) RGB at its own size, upright.

    Raises:
        DataError: The file cannot be read as an image.
    """
    try:
        with Image.open(path) as opened:
            return np.array(upright_rgb(opened))
    except UNREADABLE as error:
        raise DataError(f"{path}: the image cannot be read ({error}); expected a PNG, JPEG or the like") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Bring an opened image into the one form that networks see, at home and on devices alike.

    16-bit grey is scaled to 8 bits, transparency is dropped, everything becomes RGB, and an EXIF rotation is
    carried out.

    Args:
        image: Of any mode that Pillow reads.

    Returns:
        An image of mode RGB without rotation.

    Raises:
        ValueError: The image has more than 16 bits a channel or is of floating point.
    """
    # now: what is wrong with the pixels must not be taken for a damaged EXIF block
    image.load()
    turn = _TURNS.get(read_orientation(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def read_orientation(image: Image.Image) -> int:
    """Return an opened image's EXIF orientation, 1 to 8; 1 where it has none or its EXIF block is damaged."""
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    # Pillow raises many kinds for damaged blocks, and the pixels do not depend on them
    except Exception:
        return 1
    return found if found in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: 16-bit grey is scaled to 8 bits, transparency is dropped."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.array(image)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError(f"expected at most 16 bits a pixel, got values from {grey.min()} to {grey.max()}")
        scaled = (grey.astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits a channel, got floating point")
    # a palette with transparency reaches RGB only by way of RGBA
    straight = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    return straight.convert("RGB")


def fit_frame(image: npt.NDArray[np.uint8], contract: InputContract) -> npt.NDArray[np.uint8]:
    """Bring an image to the contract's size, as the contract's `resize` says.

    Args:
        image: uint8 (H, W, 3), RGB, of any size.
        contract: Gives height and width.

    Returns:
        uint8 (contract.height, contract.width, 3), C-contiguous; the image itself where it fits already. Of
        an image that is segmented in windows, the window in its middle.
    """
    if image.shape[:2] == (contract.height, contract.width):
        return np.ascontiguousarray(image)
    if contract.slides:
        top, left = max(0, image.shape[0] - contract.height) // 2, max(0, image.shape[1] - contract.width) // 2
        return cut_window(image, contract, top, left)
    resized = Image.fromarray(image).resize((contract.width, contract.height), Image.Resampling.BILINEAR)
    return np.array(resized)


def segment_image(
    infer: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]],
    image: npt.NDArray[np.uint8],
    contract: InputContract,
) -> npt.NDArray[np.uint8]:
    """Segment an image of any size with an engine that takes frames of the contract's size.

    Args:
        infer: Frame uint8 (contract.height, contract.width, 3) to class map uint8 of that size.
        image: uint8 (H, W, 3), RGB.
        contract: Says whether the image is resized or segmented in windows.

    Returns:
        uint8 class ids: of the contract's size where the image is resized, else of the image's.
    """
    if contract.slides:
        return infer_windows(infer, image, contract)
    return infer(fit_frame(image, contract))


def resize_class_map(class_map: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bring a class map to another size: class ids are never mixed, the pixel nearest to each centre is taken.

    Evaluation and devices resize by this one rule. It is in whole numbers, since fractions in floating point fall to
    the other side of a pixel's edge at some sizes: Pillow takes other rows from 176 to 360.

    Args:
        class_map: uint8 (H, W).
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        uint8 (height, width); the class map itself where it has this size.

    Example:
        >>> resize_class_map(np.array([[1, 2]], np.uint8), 1, 4)
        array([[1, 1, 2, 2]], dtype=uint8)
    """
    if class_map.shape == (height, width):
        return class_map
    # one axis after the other, rows last: those are copied whole, ten times as fast as both at once
    rows, columns = (_nearest(old, new) for old, new in zip(class_map.shape, (height, width), strict=True))
    return class_map.take(columns, axis=1).take(rows, axis=0)


def _nearest(old: int, new: int) -> npt.NDArray[np.int64]:
    """Return for each of `new` pixels in which of `old` ones along the same length its centre lies."""
    return (2 * np.arange(new, dtype=np.int64) + 1) * old // (2 * new)


def overlay(
    image: npt.NDArray[np.uint8], class_map: npt.NDArray[np.uint8], palette: tuple[tuple[int, int, int], ...]
) -> npt.NDArray[np.uint8]:
    """Lay the colours of a class map over an image.

    Args:
        image: uint8 (H, W, 3), RGB.
        class_map: uint8 (H, W) of ids below `len(palette)`.
        palette: RGB colours by class id, 0 to 255.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    mixed = _OVERLAY_OPACITY * colours[class_map] + (1 - _OVERLAY_OPACITY) * image.astype(np.float32)
    return np.rint(mixed).astype(np.uint8)
