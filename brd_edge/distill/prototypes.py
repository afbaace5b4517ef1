"""Relation distillation through the classes: how every pixel relates to the prototype of each class.

The relation of all pixels to each other says little about what is seen in few of them. A class's
prototype, the mean of its pixels' features, stands for all of them, however few they are. As in
`brd_edge.distill.relation` the design is this project's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brd_edge.distill.balance import known_pixels, rarity
from brd_edge.distill.checks import check_labels, check_maps, check_number, check_temperature
from brd_edge.distill.derivatives import first_derivative_only
from brd_edge.distill.distributed import global_mean, sum_over_processes
from brd_edge.distill.grid import IGNORE, full_precision, on_coarser_grid, wide

__all__ = ["class_relation_loss"]

_LEAST_LENGTH = 1e-6
_NEVER = -1e4


def class_relation_loss(
    teacher: Tensor,
    student: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    class_balance: float = 0.0,
    classes: int = IGNORE,
) -> Tensor:
    """Compare how the pixels of two feature maps relate to the classes.

    With unit pixel features f and `m_c` the mean feature of the batch's cells of class c (of all processes), scaled to
    unit length, `R(F)_pc = softmax_c(<f_p, m_c> / t)` over the classes that occur; the loss is
    `sum_p w_p KL(R(T)_p || R(S)_p) / sum_p w_p`, w being the `rarity` of the pixel's class. Invariant
    to the features' scale and to an orthogonal change of channels, so the two may differ in channels.

    Args:
        teacher: (N, C_T, H, W); no gradient is taken.
        student: (N, C_S, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 unknown; a cell is of the class at its centre.
        temperature: t, above 0.
        class_balance: How far rare classes count more, 0 to 1.
        classes: All ids in `labels` but 255 are below it; on a GPU fewer of them are less work. At least 1.

    Returns:
        A scalar, not negative; 0 when both relate alike, or where no pixel is known. It can be differentiated once;
        `backward` with `create_graph=True` raises a RuntimeError.

    Raises:
        ValueError: Maps or labels that are not of the same N images, a temperature that is not above 0, a
            `class_balance` beyond 0 to 1, or no classes.

    Example:
        >>> teacher, student = torch.randn(2, 64, 16, 24), torch.randn(2, 16, 8, 12, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> class_relation_loss(teacher, student, labels, classes=5).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 12])
    """
    check_maps(teacher, student)
    check_labels(labels, student)
    check_temperature(temperature)
    check_number("class_balance", class_balance, 0, 1)
    check_number("classes", classes, 1)
    theirs, mine = on_coarser_grid(wide(teacher.detach()), wide(student))
    centres = F.interpolate(labels.unsqueeze(1).to(mine.dtype), mine.shape[-2:], mode="nearest-exact")
    truth = centres.flatten().long()
    pixels = known_pixels(truth)
    weights = rarity(pixels, class_balance).to(mine.dtype)[truth]
    members, absent = _members(truth, pixels[:classes] > 0, every_class=mine.is_cuda)
    with full_precision(mine):
        members = members.to(mine.dtype)
        target, found = (_LogRelation.apply(_rows(part), members, absent, temperature) for part in (theirs, mine))
    divergence = (target.exp() * (target - found)).sum(0)
    return global_mean((divergence * weights).sum(), weights.sum())


def _members(truth: Tensor, present: Tensor, *, every_class: bool) -> tuple[Tensor, Tensor]:
    """Return which cells each class has, (classes, cells) of 0 and 1, and which rows are of no class that occurs.

    A product with it is faster than adding cell by cell. With a row for every class the GPU need not be asked, and
    waited for, how many of them occur.
    """
    classes = len(present)
    # cells without a label are of one class more, which has no row
    ids = truth.clamp_max(classes)
    if every_class:
        return F.one_hot(ids, classes + 1)[:, :classes].T, ~present
    row = F.pad(torch.cumsum(present, 0) * present, (0, 1))
    members = F.one_hot(row[ids], int(present.sum()) + 1)[:, 1:].T
    return members, torch.zeros(members.shape[0], dtype=torch.bool, device=truth.device)


def _rows(features: Tensor) -> Tensor:
    """Return the features (N, C, H, W) cell by cell, (cells, C)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


class _LogRelation(torch.autograd.Function):
    """The logarithm of every cell's relation to the classes, (classes, cells), of features (cells, C).

    The gradient is written out: automatically, ten arrays of the features' size would be filled on the way to it, here
    it is one. In this layout the softmax takes a tenth of the time that it takes over rows of a few classes.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, members: Tensor, absent: Tensor, temperature: float) -> Tensor:
        length = torch.linalg.vector_norm(cells, dim=1)
        # whoever divides the products by the cells' lengths needs no copy of all cells at unit length
        scale = length.clamp_min(_LEAST_LENGTH).reciprocal()
        sums = sum_over_processes((members * scale) @ cells)
        reach = torch.linalg.vector_norm(sums, dim=1, keepdim=True).clamp_min(_LEAST_LENGTH)
        prototypes = sums / reach
        cosines = (prototypes @ cells.T) * scale
        # not minus infinity: the difference of two would be no number
        relation: Tensor = (cosines / temperature).masked_fill_(absent.unsqueeze(1), _NEVER).log_softmax(0)
        ctx.save_for_backward(cells, members, absent, scale, length, prototypes, reach, cosines, relation)
        ctx.temperature = temperature
        return relation

    @staticmethod
    @first_derivative_only("class_relation_loss")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        cells, members, absent, scale, length, prototypes, reach, cosines, relation = ctx.saved_tensors
        with full_precision(cells):
            of_cosines = gradient - relation.exp() * gradient.sum(0)
            of_cosines = of_cosines.masked_fill_(absent.unsqueeze(1), 0) / ctx.temperature
            of_prototypes = (of_cosines * scale) @ cells
            along = (of_prototypes * prototypes).sum(1, keepdim=True)
            # what has no length has no direction that could be turned
            of_sums = torch.where(reach > _LEAST_LENGTH, (of_prototypes - along * prototypes) / reach, 0)
            of_sums, scale = sum_over_processes(of_sums), torch.where(length > _LEAST_LENGTH, scale, 0)
            # of a cell at unit length, what lies along the cell changes nothing
            inwards = (of_cosines * cosines).sum(0) + (members * (of_sums @ cells.T)).sum(0) * scale
            inwards = inwards * scale.square()
            found = (torch.cat([of_cosines, members]) * scale).T @ torch.cat([prototypes, of_sums])
            return found.addcmul_(cells, inwards.unsqueeze(1), value=-1), None, None, None
