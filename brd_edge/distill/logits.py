"""Logit distillation: the teacher's class probabilities as soft labels."""

from __future__ import annotations

from torch import Tensor

__all__ = ["logit_loss"]


def logit_loss(teacher: Tensor, student: Tensor, labels: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Compare class probabilities pixel by pixel.

    `t^2 * mean over known pixels of KL(softmax(z_T / t) || softmax(z_S / t))` (Hinton, Vinyals and
    Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2).

    Args:
        teacher: Logits (N, K, H, W); no gradient is taken.
        student: Logits (N, K, H, W).
        labels: (N, H, W) int64 class ids; pixels with 255 take no part.
        temperature: t, above 0.

    Returns:
        A scalar, not negative; 0 when the logits are equal up to a constant per pixel.
    """
    target = (teacher.detach().float() / temperature).log_softmax(1)
    found = (student.float() / temperature).log_softmax(1)
    divergence = (target.exp() * (target - found)).sum(1)
    known = labels != 255
    return (divergence * known).sum() / known.sum().clamp_min(1) * temperature**2
