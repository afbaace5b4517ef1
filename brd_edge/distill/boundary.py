"""Boundary distillation: the student is asked for object boundaries where the teacher has them.

From the paper's abstract (BRD, arXiv 2401.13174): explicit object boundaries are extracted from
the backbone's hierarchical feature maps and distilled. The operator, the normalisation and the
band weighting below are this project's own design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from brd_edge.runtime.errors import ModelError

__all__ = [
    "boundary_band",
    "boundary_class_loss",
    "boundary_feature_loss",
    "boundary_map",
    "boundary_residual",
    "common_strides",
]

_EPSILON = 1e-6


def boundary_residual(features: Tensor, kernel: int) -> Tensor:
    """Return what an average over the neighbourhood cannot explain: `B(F) = F - AvgPool_k(F)`.

    Args:
        features: (N, C, H, W), floating point.
        kernel: Odd side of the averaging window; borders are padded by reflection.

    Returns:
        (N, C, H, W); zero where the features are locally constant.
    """
    reach = kernel // 2
    # reflection needs more rows than it reflects; tiny grids are padded by replication
    mode = "reflect" if min(features.shape[-2:]) > reach else "replicate"
    padded = F.pad(features, (reach, reach, reach, reach), mode=mode)
    return features - F.avg_pool2d(padded, kernel, stride=1)


def boundary_map(features: Tensor, kernel: int) -> Tensor:
    """Return an explicit boundary map of a feature map, comparable between unlike networks.

    `b = sqrt(mean_c B(F)^2 + eps)`, divided by its mean over the image: the channel energy needs
    no match of channels, and the division makes the map invariant to the features' scale.

    Args:
        features: (N, C, H, W), floating point.
        kernel: Odd side of the averaging window.

    Returns:
        (N, 1, H, W), not negative, mean 1 in every image.
    """
    energy = boundary_residual(features, kernel).square().mean(1, keepdim=True)
    magnitude = (energy + _EPSILON * energy.mean((2, 3), keepdim=True) + 1e-12).sqrt()
    return magnitude / magnitude.mean((2, 3), keepdim=True)


def boundary_band(labels: Tensor, height: int, width: int, *, ignore: int = 255) -> tuple[Tensor, Tensor]:
    """Return where the label has boundaries on a coarser grid, and where it is known.

    Args:
        labels: (N, h, w) int64 class ids; `ignore` marks unknown pixels, which make no boundary.
        height: Rows of the grid.
        width: Columns of the grid.
        ignore: The id of unknown pixels.

    Returns:
        Two (N, 1, height, width) float maps with the values 0 and 1: cells that hold a transition
        between two known classes, and cells that hold at least one known pixel.
    """
    known = labels != ignore
    band = torch.zeros_like(labels, dtype=torch.float32)
    for axis in (1, 2):
        size = labels.shape[axis]
        first, second = labels.narrow(axis, 0, size - 1), labels.narrow(axis, 1, size - 1)
        both = known.narrow(axis, 0, size - 1) & known.narrow(axis, 1, size - 1)
        change = ((first != second) & both).float()
        band.narrow(axis, 0, size - 1).copy_(torch.maximum(band.narrow(axis, 0, size - 1), change))
        band.narrow(axis, 1, size - 1).copy_(torch.maximum(band.narrow(axis, 1, size - 1), change))
    target = (height, width)
    return (
        F.adaptive_max_pool2d(band.unsqueeze(1), target),
        F.adaptive_max_pool2d(known.float().unsqueeze(1), target),
    )


def boundary_feature_loss(
    teacher: Mapping[int, Tensor],
    student: Mapping[int, Tensor],
    labels: Tensor,
    *,
    strides: Sequence[int],
    kernel: int = 3,
    band_weight: float = 4.0,
) -> Tensor:
    """Compare the boundary maps of two backbones, stage by stage.

    `mean over stages of sum_p w_p |b_T(p) - b_S(p)| / sum_p w_p` with
    `w = known * (1 + band_weight * band)`.

    Args:
        teacher: Stride to features (N, C, H, W) of the teacher; no gradient is taken.
        student: Stride to features of the student; C, H and W may differ from the teacher's.
        labels: (N, h, w) int64 class ids, 255 ignored.
        strides: Which stages to compare; each stands in both mappings.
        kernel: Odd side of the boundary operator's window.
        band_weight: How much more cells on a label boundary count.

    Returns:
        A scalar; 0 when the student's boundary maps equal the teacher's.
    """
    losses = []
    for stride in strides:
        theirs, mine = _same_grid(teacher[stride].detach().float(), student[stride].float())
        distance = (boundary_map(theirs, kernel) - boundary_map(mine, kernel)).abs()
        losses.append(_band_mean(distance, labels, band_weight))
    return torch.stack(losses).mean()


def boundary_class_loss(
    teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, *, kernel: int = 3, band_weight: float = 4.0
) -> Tensor:
    """Compare the boundaries of the class probabilities, where channels match.

    `sum_p w_p |B(P_T)(p) - B(P_S)(p)|_1 / sum_p w_p` with `P = softmax(logits)` and the weights
    of `boundary_feature_loss`.

    Args:
        teacher_logits: (N, K, H, W); no gradient is taken.
        student_logits: (N, K, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 ignored.
        kernel: Odd side of the boundary operator's window.
        band_weight: How much more pixels on a label boundary count.

    Returns:
        A scalar; 0 when the logits are equal.
    """
    theirs, mine = _same_grid(teacher_logits.detach().float().softmax(1), student_logits.float().softmax(1))
    distance = boundary_residual(theirs - mine, kernel).abs().sum(1, keepdim=True)
    return _band_mean(distance, labels, band_weight)


def common_strides(teacher: Sequence[int], student: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the wanted strides that both backbones have.

    Raises:
        ModelError: There is none; the message shows both lists.
    """
    found = tuple(stride for stride in wanted if stride in teacher and stride in student)
    if not found:
        raise ModelError(
            f"distill.boundary_strides: none of {list(wanted)} is a stage of both backbones; "
            f"the teacher has {sorted(teacher)}, the student has {sorted(student)}"
        )
    return found


def _same_grid(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    height = min(first.shape[-2], second.shape[-2])
    width = min(first.shape[-1], second.shape[-1])

    def shrink(features: Tensor) -> Tensor:
        return features if features.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(features, (height, width))

    return shrink(first), shrink(second)


def _band_mean(distance: Tensor, labels: Tensor, band_weight: float) -> Tensor:
    band, known = boundary_band(labels, distance.shape[-2], distance.shape[-1])
    weight = known * (1 + band_weight * band)
    return (distance * weight).sum() / weight.sum().clamp_min(1)
