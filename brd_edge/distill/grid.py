"""Feature maps and labels of different sizes on one grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "IGNORE",
    "full_precision",
    "known_cells",
    "known_share",
    "on_coarser_grid",
    "reduce_batch",
    "to_grid",
    "transitions",
    "wide",
]

IGNORE = 255
"""The label id of unknown pixels."""


def wide(values: Tensor) -> Tensor:
    """Return the values in float32, or unchanged in float64: losses are never summed in half precision."""
    return values if values.dtype == torch.float64 else values.float()


def full_precision(values: Tensor) -> torch.autocast:
    """Return a block in which matrix products stay in the precision of `wide`, also under autocast."""
    return torch.autocast(values.device.type, enabled=False)


def to_grid(features: Tensor, height: int, width: int) -> Tensor:
    """Average (N, C, H, W) down to `height` x `width`; unchanged where the size is right already."""
    return features if features.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(features, (height, width))


def on_coarser_grid(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average two maps (N, C, H, W) and (N, C', H', W') down to the smaller height and the smaller width."""
    height = min(first.shape[-2], second.shape[-2])
    width = min(first.shape[-1], second.shape[-1])
    return to_grid(first, height, width), to_grid(second, height, width)


def reduce_batch(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Make a batch smaller by the loader's rules: images by an anti-aliased bilinear filter, labels by nearest.

    Args:
        images: (N, 3, H, W); H and W are divisible by `factor`.
        labels: (N, H, W).
        factor: At least 1.

    Returns:
        (N, 3, H / factor, W / factor) and (N, H / factor, W / factor).
    """
    if factor == 1:
        return images, labels
    small = F.interpolate(
        images, (images.shape[-2] // factor, images.shape[-1] // factor), mode="bilinear", antialias=True
    )
    # the pixel in which a cell's centre lies, or the one after it where it lies between two
    return small, labels[:, factor // 2 :: factor, factor // 2 :: factor]


def known_cells(labels: Tensor, height: int, width: int) -> Tensor:
    """Return which cells of a coarser grid hold at least one known pixel.

    Args:
        labels: (N, h, w) int64 class ids, 255 unknown.
        height: Rows of the grid.
        width: Columns of the grid.

    Returns:
        (N, 1, height, width) float32, 0 or 1.
    """
    return F.adaptive_max_pool2d((labels != IGNORE).float().unsqueeze(1), (height, width))


def known_share(labels: Tensor, height: int, width: int) -> Tensor:
    """Return the share of known pixels in every cell of a coarser grid, (N, 1, height, width), 0 to 1."""
    return to_grid((labels != IGNORE).float().unsqueeze(1), height, width)


def transitions(labels: Tensor) -> Tensor:
    """Return which pixels lie on either side of a transition between two known classes.

    Args:
        labels: (N, h, w) int64 class ids, 255 unknown; unknown pixels make no transition.

    Returns:
        (N, 1, h, w) float32, 0 or 1.
    """
    # ids fit into bytes, of which eight times as many fit into the cache
    small = labels.to(torch.uint8)
    known = small != IGNORE
    band = torch.zeros_like(known)
    for axis in (1, 2):
        size = labels.shape[axis]
        first, second = small.narrow(axis, 0, size - 1), small.narrow(axis, 1, size - 1)
        change = (first != second) & known.narrow(axis, 0, size - 1) & known.narrow(axis, 1, size - 1)
        for offset in (0, 1):
            band.narrow(axis, offset, size - 1).logical_or_(change)
    return band.float().unsqueeze(1)
