"""Relation distillation: how every pixel relates to every other, passed on without the N x N matrix.

From the paper's abstract (BRD, arXiv 2401.13174): implicit relations are transferred from the
teacher to the student with pixel-level self-relation as a bridge. The softmax over cosine
similarities and the streaming evaluation below are this project's own design.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["relation_loss", "relation_loss_naive", "relation_pixels"]


def relation_pixels(features: Tensor, height: int, width: int) -> Tensor:
    """Return L2-normalised pixel features on a grid.

    Args:
        features: (N, C, H, W), floating point.
        height: Rows of the grid, at most H.
        width: Columns of the grid, at most W.

    Returns:
        (N, height * width, C) float32 with unit rows.
    """
    if features.shape[-2:] != (height, width):
        features = F.adaptive_avg_pool2d(features, (height, width))
    return F.normalize(features.float().flatten(2).transpose(1, 2), dim=2, eps=1e-6)


def relation_loss(
    teacher: Tensor, student: Tensor, labels: Tensor | None = None, *, temperature: float = 0.1, block: int = 512
) -> Tensor:
    """Compare the self-relations of two feature maps.

    With unit pixel features f, `R(F)_ij = softmax_j(<f_i, f_j> / t)`; the loss is the mean over
    images and pixels i of `KL(R(T)_i || R(S)_i)`. Cells without a known label take no part,
    neither as i nor as j. Invariant to the features' scale and to an orthogonal change of channels.

    Args:
        teacher: (N, C_T, H, W); no gradient is taken.
        student: (N, C_S, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 unknown; all cells take part when not given.
        temperature: t, above 0.
        block: Rows of the relation that are held at a time.

    Returns:
        A scalar, not negative; 0 when both have the same self-relation.
    """
    height = min(teacher.shape[-2], student.shape[-2])
    width = min(teacher.shape[-1], student.shape[-1])
    theirs = relation_pixels(teacher.detach(), height, width)
    mine = relation_pixels(student, height, width)
    known = None
    if labels is not None:
        known = F.adaptive_max_pool2d((labels != 255).float().unsqueeze(1), (height, width)).flatten(1) > 0
    losses = []
    for image in range(len(mine)):
        first, second = theirs[image], mine[image]
        if known is not None:
            first, second = first[known[image]], second[known[image]]
        if len(second) > 1:
            losses.append(_StreamedRelation.apply(first, second, temperature, block))
    return torch.stack(losses).mean() if losses else mine.sum() * 0


def relation_loss_naive(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Compute the loss of one image with whole N x N matrices, as the reference.

    Args:
        teacher: (N, C_T) unit rows.
        student: (N, C_S) unit rows.
        temperature: Above 0.

    Returns:
        A scalar.
    """
    target = (teacher @ teacher.T / temperature).log_softmax(1)
    return F.kl_div((student @ student.T / temperature).log_softmax(1), target, reduction="batchmean", log_target=True)


class _StreamedRelation(torch.autograd.Function):
    """The loss of one image, in row blocks; the backward pass recomputes each block.

    With `Z = F F^T / t`, `dLoss/dZ = (R(S) - R(T)) / N =: G`, hence `dLoss/dF = (G + G^T) F / t`:
    each block adds its rows (`G_b F`) and its columns (`G_b^T F_b`).
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, temperature: float, block: int) -> Tensor:
        ctx.save_for_backward(teacher, student)
        ctx.temperature, ctx.block = temperature, block
        total = student.new_zeros(())
        with torch.autocast(student.device.type, enabled=False):
            for start in range(0, len(student), block):
                target = _log_relation(teacher, start, block, temperature)
                found = _log_relation(student, start, block, temperature)
                total += (target.exp() * (target - found)).sum()
        return total / len(student)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None, None]:
        teacher, student = ctx.saved_tensors
        result = torch.zeros_like(student)
        with torch.autocast(student.device.type, enabled=False):
            for start in range(0, len(student), ctx.block):
                slope = _log_relation(student, start, ctx.block, ctx.temperature).exp_()
                slope -= _log_relation(teacher, start, ctx.block, ctx.temperature).exp_()
                result[start : start + ctx.block] += slope @ student
                result += slope.T @ student[start : start + ctx.block]
        return None, result * (gradients[0] / (len(student) * ctx.temperature)), None, None


def _log_relation(pixels: Tensor, start: int, block: int, temperature: float) -> Tensor:
    return (pixels[start : start + block] @ pixels.T).div_(temperature).log_softmax(1)
