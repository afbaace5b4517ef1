"""Logit distillation: the teacher's class probabilities as soft labels."""

from __future__ import annotations

from torch import Tensor

from brd_edge.distill.balance import balanced_share
from brd_edge.distill.checks import check_labels, check_maps, check_number, check_same_classes, check_temperature
from brd_edge.distill.distributed import global_mean
from brd_edge.distill.grid import on_coarser_grid, wide

__all__ = ["logit_loss"]


def logit_loss(
    teacher: Tensor, student: Tensor, labels: Tensor, *, temperature: float = 2.0, class_balance: float = 0.0
) -> Tensor:
    """Compare class probabilities cell by cell.

    `t^2 * sum_p w_p KL(softmax(z_T / t) || softmax(z_S / t)) / sum_p w_p`, where w is the share of
    known pixels in the cell (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
    Network", arXiv 1503.02531, section 2).

    Args:
        teacher: Logits (N, K, H, W); no gradient is taken.
        student: Logits (N, K, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids; pixels with 255 do not count.
        temperature: t, above 0.
        class_balance: How far rare classes count more, 0 to 1 (`brd_edge.distill.balance.rarity`); 0 is Hinton's loss.

    Returns:
        A scalar, not negative; 0 when the logits are equal up to a constant per cell.

    Raises:
        ValueError: Logits or labels that are not of the same N images, logits of unlike numbers of classes, a
            temperature that is not above 0, or a `class_balance` beyond 0 to 1.

    Example:
        >>> teacher, student = torch.randn(2, 5, 16, 24), torch.randn(2, 5, 16, 24, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> logit_loss(teacher, student, labels, temperature=4.0).backward()
        >>> student.grad.shape
        torch.Size([2, 5, 16, 24])
    """
    check_maps(teacher, student)
    check_same_classes(teacher, student)
    check_labels(labels, student)
    check_temperature(temperature)
    check_number("class_balance", class_balance, 0, 1)
    theirs, mine = on_coarser_grid(wide(teacher.detach()), wide(student))
    target = (theirs / temperature).log_softmax(1)
    divergence = (target.exp() * (target - (mine / temperature).log_softmax(1))).sum(1, keepdim=True)
    weight = balanced_share(labels, *divergence.shape[-2:], power=class_balance)
    return global_mean((divergence * weight).sum(), weight.sum()) * temperature**2
