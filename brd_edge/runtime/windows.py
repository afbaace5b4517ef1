"""Sliding windows: a large image segmented part by part at its own size.

The windows have the contract's size, lie evenly, and overlap by at least a quarter of their side. Each
pixel of the result is taken from the window whose middle is nearest, where the network sees most of what
is around it: exact for engines that return class ids, which cannot be averaged. An image that is smaller
than a window is padded on the right and below with the contract's mean colour.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.contract import InputContract

__all__ = ["cut_window", "infer_windows", "place_windows"]

_OVERLAP = 4
"""Neighbouring windows share at least one part in this many of their side."""

ByteArray = npt.NDArray[np.uint8]


def place_windows(length: int, window: int) -> list[tuple[int, int, int]]:
    """Place windows along one side of an image.

    Args:
        length: The image's side, in pixels, at least 1.
        window: The windows' side, in pixels, at least 1.

    Returns:
        For each window where it begins, and the first and last (exclusive) pixel that is taken from it; these
        parts follow each other without a gap from 0 to `length`.
    """
    if length <= window:
        return [(0, 0, length)]
    step_max = window - window // _OVERLAP
    steps = -(-(length - window) // step_max)
    starts = [round(i * (length - window) / steps) for i in range(steps + 1)]
    borders = [0, *((first + window + second) // 2 for first, second in pairwise(starts)), length]
    return [(start, borders[i], borders[i + 1]) for i, start in enumerate(starts)]


def cut_window(image: ByteArray, contract: InputContract, top: int, left: int) -> ByteArray:
    """Return the window of the contract's size at (top, left), padded where the image ends before it does.

    Args:
        image: uint8 (H, W, 3), RGB.
        contract: Gives the window's size and the colour of the padding.
        top: First row, in pixels.
        left: First column, in pixels.

    Returns:
        uint8 (contract.height, contract.width, 3), C-contiguous.
    """
    part = image[top : top + contract.height, left : left + contract.width]
    if part.shape[:2] == (contract.height, contract.width):
        return np.ascontiguousarray(part)
    mean = np.rint(255 * np.array(contract.mean)).astype(np.uint8)
    window = np.empty((contract.height, contract.width, 3), np.uint8)
    window[:] = mean
    window[: part.shape[0], : part.shape[1]] = part
    return window


def infer_windows(infer: Callable[[ByteArray], ByteArray], image: ByteArray, contract: InputContract) -> ByteArray:
    """Segment an image window by window.

    Args:
        infer: Frame uint8 (contract.height, contract.width, 3) to class map uint8 of that size.
        image: uint8 (H, W, 3), RGB, of any size.
        contract: Gives the windows' size.

    Returns:
        uint8 (H, W) class ids.
    """
    height, width = image.shape[:2]
    result = np.empty((height, width), np.uint8)
    for top, first_row, last_row in place_windows(height, contract.height):
        for left, first_column, last_column in place_windows(width, contract.width):
            class_map = infer(cut_window(image, contract, top, left))
            part = class_map[first_row - top : last_row - top, first_column - left : last_column - left]
            result[first_row:last_row, first_column:last_column] = part
    return result
