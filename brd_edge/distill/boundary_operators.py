"""How boundaries are read from feature maps: what an average cannot explain, or how unlike neighbours are."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from brd_edge.distill.checks import check_kernel
from brd_edge.distill.grid import full_precision

__all__ = ["OPERATORS", "boundary_map", "boundary_residual", "neighbour_map"]

_EPSILON = 1e-6
_TINY = 1e-12


def boundary_residual(features: Tensor, kernel: int, known: Tensor | None = None) -> Tensor:
    """Return what an average over the neighbourhood cannot explain: `B(F) = F - AvgPool_k(F)`.

    Args:
        features: (N, C, H, W), floating point.
        kernel: Odd side of the averaging window, at least 3, borders being padded by reflection; or 0: the whole image,
            of which all regions stand out that are not like its mean, not their edges alone.
        known: (N, 1, H, W), 1 for the cells that the average is taken over and 0 for the others; all when not given.

    Returns:
        (N, C, H, W); zero where the features are locally constant. What lies in cells that are not known changes
        nothing in those that are.

    Raises:
        ValueError: `kernel` is none of these.
    """
    check_kernel(kernel, whole_image=True)
    if known is None:
        return features - (_average(features, kernel) if kernel else features.mean((2, 3), keepdim=True))
    known = known.to(features.dtype)
    inside = features * known
    if kernel == 0:
        return features - inside.sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
    # a window that holds a known cell has at least 1 / kernel^2 of them
    return features - _average(inside, kernel) / _average(known, kernel).clamp_min(0.5 / kernel**2)


def boundary_map(features: Tensor, kernel: int, known: Tensor | None = None) -> Tensor:
    """Return an explicit boundary map of a feature map, comparable between unlike networks.

    `b = sqrt(mean_c B(F)^2 + eps)`, divided by its mean over the image's known cells: the channel
    energy needs no match of channels, and the division makes the map invariant to the features' scale.

    Args:
        features: (N, C, H, W), floating point.
        kernel: Odd side of the averaging window, at least 3, or 0: the whole image.
        known: (N, 1, H, W), 1 for the cells that averages are taken over and 0 for the others; all when not given.

    Returns:
        (N, 1, H, W), not negative, mean 1 over the known cells of every image.

    Raises:
        ValueError: `kernel` is none of these.
    """
    energy = boundary_residual(features, kernel, known).square().mean(1, keepdim=True)
    weight = torch.ones_like(energy) if known is None else known.to(energy.dtype)
    # an image without any known cell counts nowhere; its divisor must only not be 0
    weight = weight / weight.sum((2, 3), keepdim=True).clamp_min(1)
    floor = _EPSILON * (energy * weight).sum((2, 3), keepdim=True)
    magnitude = (energy + floor + _TINY).sqrt()
    return magnitude / (magnitude * weight).sum((2, 3), keepdim=True).clamp_min(_TINY)


def neighbour_map(features: Tensor, kernel: int, known: Tensor | None = None) -> Tensor:
    """Return how unlike each pixel is to its neighbours at distance `kernel // 2`, in eight directions.

    `b_d(p) = 1 - cos(F(p), F(p + d))`: unlike `boundary_map` it also says on which side the
    boundary lies. Invariant to the scale of every pixel's feature; needs no match of channels.

    Args:
        features: (N, C, H, W), floating point.
        kernel: Odd side, at least 3, of the window whose corners and side centres are the neighbours.
        known: (N, 1, H, W), 1 for the cells to be compared with and 0 for the others; all when not given.

    Returns:
        (N, 8, H, W), 0 to 2, and 0 towards a neighbour that is not known; borders are padded by reflection.

    Raises:
        ValueError: `kernel` is even or less than 3.
    """
    check_kernel(kernel, whole_image=False)
    reach = kernel // 2
    unit = F.normalize(features, dim=1, eps=1e-6)
    height, width = features.shape[-2:]
    steps = (0, reach, 2 * reach)
    shifts = [(top, left) for top in steps for left in steps if (top, left) != (reach, reach)]

    def neighbours(values: Tensor) -> list[Tensor]:
        padded = _pad(values, reach)
        return [padded[..., top : top + height, left : left + width] for top, left in shifts]

    found = torch.stack([1 - (unit * other).sum(1) for other in neighbours(unit)], dim=1)
    return found if known is None else found * torch.cat(neighbours(known.to(found.dtype)), dim=1)


OPERATORS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {
    "residual": boundary_map,
    "neighbours": neighbour_map,
}
"""How boundaries are read from features, the window's side and the known cells."""


def _average(features: Tensor, kernel: int) -> Tensor:
    """Return the mean of the window around every cell, (N, C, H, W)."""
    padded = _pad(features, kernel // 2)
    if features.is_cuda:
        return F.avg_pool2d(padded, kernel, stride=1)
    # on a CPU, a convolution with equal weights takes a fifth of the pooling's time
    channels = features.shape[1]
    weight = features.new_full((channels, 1, kernel, kernel), 1 / kernel**2)
    with full_precision(features):
        return F.conv2d(padded, weight, groups=channels)


def _pad(features: Tensor, reach: int) -> Tensor:
    # reflection needs more rows than it reflects; tiny grids are padded by replication
    mode = "reflect" if min(features.shape[-2:]) > reach else "replicate"
    return F.pad(features, (reach, reach, reach, reach), mode=mode)
