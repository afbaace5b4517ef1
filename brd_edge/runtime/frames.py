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

__all__ = ["UNREADABLE", "fit_frame", "overlay", "read_image", "resize_class_map", "segment_image"]

# what Pillow raises for files that are empty, cut short, damaged or implausibly large: OSError, SyntaxError,
# ValueError, IndexError, struct.error, DecompressionBombError, … there is no common kind
UNREADABLE = (Exception,)

_OVERLAY_OPACITY = 0.55


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image file as uint8 (H, W, 3) RGB at its own size.

    Raises:
        DataError: The file cannot be read as an image.
    """
    try:
        with Image.open(path) as opened:
            return np.array(opened.convert("RGB"))
    except UNREADABLE as error:
        raise DataError(f"{path}: the image cannot be read ({error}); expected a PNG, JPEG or the like") from error


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
    """Bring a class map to another size; class ids are never mixed, so the nearest pixel is taken."""
    if class_map.shape == (height, width):
        return class_map
    return np.array(Image.fromarray(class_map).resize((width, height), Image.Resampling.NEAREST))


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
