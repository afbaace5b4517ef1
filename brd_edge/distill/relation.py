"""Relation distillation: how every pixel relates to every other, passed on without the N x N matrix.

From the paper's abstract (BRD, arXiv 2401.13174): implicit relations are transferred from the
teacher to the student with pixel-level self-relation as a bridge. The softmax over cosine
similarities, relations across the images of a batch and the streaming evaluation below are this
project's own design.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brd_edge.distill.distributed import global_mean
from brd_edge.distill.grid import known_cells, to_grid, wide

__all__ = ["relation_loss", "relation_pixels", "streamed_relation"]


def relation_pixels(features: Tensor, height: int, width: int) -> Tensor:
    """Return L2-normalised pixel features on a grid.

    Args:
        features: (N, C, H, W), floating point.
        height: Rows of the grid, at most H.
        width: Columns of the grid, at most W.

    Returns:
        (N, height * width, C) with unit rows; float32, or float64 if the features are.
    """
    return F.normalize(to_grid(wide(features), height, width).flatten(2).transpose(1, 2), dim=2, eps=1e-6)


def relation_loss(
    teacher: Tensor,
    student: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    across_images: bool = False,
    cells_max: int = 32768,
    block: int | None = None,
) -> Tensor:
    """Compare the self-relations of two feature maps.

    With unit pixel features f, `R(F)_ij = softmax_j(<f_i, f_j> / t)`; the loss is the mean over
    pixels i of `KL(R(T)_i || R(S)_i)`, where j runs over the pixels of the same image or of all
    images of the batch. Cells without a known label take no part, neither as i nor as j. Invariant
    to the features' scale and to an orthogonal change of channels, so the two may differ in channels.

    Args:
        teacher: (N, C_T, H, W); no gradient is taken.
        student: (N, C_S, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 unknown; all cells take part when not given.
        temperature: t, above 0.
        across_images: Whether a pixel is related to the pixels of all images of the batch.
        cells_max: Most cells that are related to each other; finer grids are averaged down to it.
        block: Rows of the relation that are held at a time; see `streamed_relation`.

    Returns:
        A scalar, not negative; 0 when both have the same self-relation.
    """
    height = min(teacher.shape[-2], student.shape[-2])
    width = min(teacher.shape[-1], student.shape[-1])
    images = len(student) if across_images else 1
    while images * height * width > cells_max and max(height, width) > 1:
        height, width = (height + 1) // 2, (width + 1) // 2
    theirs = relation_pixels(teacher.detach(), height, width)
    mine = relation_pixels(student, height, width)
    known = torch.ones(mine.shape[:2], dtype=torch.bool, device=mine.device)
    if labels is not None:
        known = known_cells(labels, height, width).flatten(1) > 0
    if across_images:
        theirs, mine, known = theirs.flatten(0, 1)[None], mine.flatten(0, 1)[None], known.flatten()[None]
    # a scalar of zero that still belongs to the student's graph
    total, cells = mine.sum() * 0, 0
    for image in range(len(mine)):
        first, second = theirs[image], mine[image]
        if not bool(known[image].all()):
            first, second = first[known[image]], second[known[image]]
        if len(second) > 1:
            total = total + streamed_relation(first, second, temperature=temperature, block=block) * len(second)
            cells += len(second)
    return global_mean(total, mine.new_tensor(float(cells)))


def streamed_relation(teacher: Tensor, student: Tensor, *, temperature: float, block: int | None = None) -> Tensor:
    """Return the relation loss of N pixels, in O(N (block + C)) memory.

    Args:
        teacher: (N, C_T) unit rows; no gradient is taken.
        student: (N, C_S) unit rows of the same dtype, float32 or float64.
        temperature: Above 0.
        block: Rows of the two N x N relations that are held at a time; it changes the rounding only. Not given: 128
            on the CPU, whose caches hold that much, and on a GPU a sixteenth of the rows, at least 512, so that
            the time goes to arithmetic and not to launches.

    Returns:
        A scalar that can be differentiated once.
    """
    rows = block if block is not None else _block(student)
    return _StreamedRelation.apply(teacher, student, temperature, rows)  # type: ignore[no-any-return]


def _block(pixels: Tensor) -> int:
    return max(512, len(pixels) // 16) if pixels.is_cuda else 128


class _StreamedRelation(torch.autograd.Function):
    """The loss and, as it is a scalar, at once its gradient: nothing has to be computed twice.

    With `Z = F F^T / t`, `dLoss/dZ = (R(S) - R(T)) / N =: G`, hence `dLoss/dF = (G + G^T) F / t`:
    a block of rows adds its rows (`G_b F`) and its columns (`G_b^T F_b`).
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, temperature: float, block: int) -> Tensor:
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[1] else None
        with torch.autocast(student.device.type, enabled=False):
            loss = _stream(teacher.detach(), student.detach(), temperature, block, gradient)
        ctx.gradient = gradient
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None, None]:
        return None, ctx.gradient * gradients[0], None, None


def _stream(teacher: Tensor, student: Tensor, temperature: float, block: int, gradient: Tensor | None) -> Tensor:
    """Return the loss; add its gradient by the student's pixels to `gradient`."""
    count = len(student)
    block = min(block, count)
    buffers = [student.new_empty((block, count)) for _ in range(4)]
    # the largest of a row of unit features is its own pixel's: 1 / t keeps the exponentials at most 1
    shift = student.new_full((1, 1), -1 / temperature)
    total = student.new_zeros(())
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        z_teacher, z_student, r_teacher, r_student = (buffer[: rows.stop - start] for buffer in buffers)
        torch.addmm(shift, teacher[rows], teacher.T, alpha=1 / temperature, out=z_teacher)
        torch.addmm(shift, student[rows], student.T, alpha=1 / temperature, out=z_student)
        sum_teacher = torch.exp(z_teacher, out=r_teacher).sum(1)
        sum_student = torch.exp(z_student, out=r_student).sum(1)
        r_teacher /= sum_teacher[:, None]
        z_teacher -= z_student
        total += torch.dot(r_teacher.flatten(), z_teacher.flatten())
        total += (sum_student.log() - sum_teacher.log()).sum()
        if gradient is not None:
            r_student /= sum_student[:, None]
            r_student -= r_teacher
            gradient[rows].addmm_(r_student, student)
            gradient.addmm_(r_student.T, student[rows])
    if gradient is not None:
        gradient /= count * temperature
    return total / count
