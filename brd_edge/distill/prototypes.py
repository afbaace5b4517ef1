"""Relation distillation through the classes: how every pixel relates to the prototype of each class.

The relation of all pixels to each other says little about what is seen in few of them. A class's
prototype, the mean of its pixels' features, stands for all of them, however few they are. As in
`brd_edge.distill.relation` the design is this project's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brd_edge.distill.balance import known_pixels, rarity
from brd_edge.distill.distributed import global_mean, shared_sum
from brd_edge.distill.grid import IGNORE, full_precision, on_coarser_grid, wide

__all__ = ["class_relation_loss"]

_NEVER = -1e4


def class_relation_loss(
    teacher: Tensor, student: Tensor, labels: Tensor, *, temperature: float = 0.1, class_balance: float = 0.0
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

    Returns:
        A scalar, not negative; 0 when both relate alike, or where no pixel is known.
    """
    theirs, mine = on_coarser_grid(wide(teacher.detach()), wide(student))
    centres = F.interpolate(labels.unsqueeze(1).to(mine.dtype), mine.shape[-2:], mode="nearest-exact")
    truth = centres.flatten().long()
    pixels = known_pixels(truth)
    weights = rarity(pixels, class_balance).to(mine.dtype)[truth]
    members, absent = _members(truth, pixels > 0, every_id=mine.is_cuda)
    with full_precision(mine):
        target, found = (_log_relation(part, members.to(mine.dtype), absent, temperature) for part in (theirs, mine))
    divergence = (target.exp() * (target - found)).sum(1)
    return global_mean((divergence * weights).sum(), weights.sum())


def _members(truth: Tensor, present: Tensor, *, every_id: bool) -> tuple[Tensor, Tensor]:
    """Return which class each cell is of, (cells, columns) of 0 and 1, and which columns are of no class that occurs.

    A product with it is faster than adding row by row. With a column for every label id the GPU need not be
    asked, and waited for, how many classes occur.
    """
    if every_id:
        return F.one_hot(truth, IGNORE + 1), ~present
    column = torch.cumsum(present, 0) * present
    members = F.one_hot(column[truth], int(present.sum()) + 1)[:, 1:]
    return members, torch.zeros(members.shape[1], dtype=torch.bool, device=truth.device)


def _log_relation(features: Tensor, members: Tensor, absent: Tensor, temperature: float) -> Tensor:
    """Return the logarithm of every cell's relation to the classes that occur, (cells, columns)."""
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)
    # whoever divides the products by the cells' lengths needs no copy of all cells at unit length
    scale = torch.linalg.vector_norm(cells, dim=1, keepdim=True).clamp_min(1e-6).reciprocal()
    prototypes = F.normalize(shared_sum((members * scale).T @ cells), dim=1, eps=1e-6)
    relation: Tensor = cells @ prototypes.T * (scale / temperature)
    # not minus infinity: the difference of two would be no number
    return relation.masked_fill(absent, _NEVER).log_softmax(1)
