"""How much pixels of rare classes count: a bicycle that is seen in few images is not drowned by the road."""

from __future__ import annotations

import torch
from torch import Tensor

from brd_edge.distill.distributed import sum_over_processes
from brd_edge.distill.grid import IGNORE, known_share, to_grid

__all__ = ["balanced_share", "known_pixels", "rarity"]


def known_pixels(labels: Tensor) -> Tensor:
    """Return how many pixels of each label id the batch has, of all processes: (256,) float32, 0 for unknown ones."""
    ids = labels.flatten()
    if ids.is_cuda:
        # torch.bincount would wait for the GPU to say how large the largest id is
        pixels = torch.zeros(IGNORE + 1, dtype=ids.dtype, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))
    else:
        pixels = torch.bincount(ids, minlength=IGNORE + 1)
    pixels = pixels.float()
    pixels[IGNORE:].zero_()
    return sum_over_processes(pixels)


def rarity(pixels: Tensor, power: float) -> Tensor:
    """Return what a pixel of each label id counts: `(n / n_c)^power`.

    n_c of the n known pixels of the batch are of class c. With power 0 all pixels count alike, with 1 all classes
    that occur do.

    Args:
        pixels: (256,) float32, how many known pixels each label id has; see `known_pixels`.
        power: 0 to 1.

    Returns:
        (256,) float32 by label id: at least 1, and 0 for unknown pixels.
    """
    weights = (pixels.sum().clamp_min(1) / pixels.clamp_min(1)).pow(power)
    weights[IGNORE:].zero_()
    return weights


def balanced_share(labels: Tensor, height: int, width: int, *, power: float) -> Tensor:
    """Return the share of known pixels in every cell of a coarser grid, pixels of rare classes counting more.

    Args:
        labels: (N, h, w) int64 class ids, 255 unknown.
        height: Rows of the grid.
        width: Columns of the grid.
        power: 0 to 1; see `rarity`. With 0 this is `known_share`.

    Returns:
        (N, 1, height, width) float32, not negative.
    """
    if power == 0:
        return known_share(labels, height, width)
    return to_grid(rarity(known_pixels(labels), power)[labels].unsqueeze(1), height, width)
