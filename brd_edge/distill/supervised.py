"""Cross-entropy with the labels, over all pixels or over the hard ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from brd_edge.distill.checks import check_labels, check_number
from brd_edge.distill.distributed import global_mean
from brd_edge.distill.grid import IGNORE, wide

__all__ = ["class_weights", "cross_entropy", "hard_cross_entropy"]


def class_weights(pixels: Sequence[int], kind: str) -> Tensor | None:
    """Return cross-entropy weights from how often each class occurs.

    Args:
        pixels: Pixels of each class in the train split.
        kind: `none` gives nothing; `log_frequency` gives `1 / ln(1.1 + share of pixels)`, divided
            by its mean (Paszke et al., ENet, arXiv 1606.02147, section 5.2, with their 1.02 as 1.1).

    Raises:
        ValueError: `kind` is neither.
    """
    if kind not in ("none", "log_frequency"):
        raise ValueError(f"kind must be none or log_frequency, got {kind!r}")
    if kind == "none":
        return None
    share = torch.tensor(pixels, dtype=torch.float64) / max(1, sum(pixels))
    weights = 1 / torch.log(1.1 + share)
    return (weights / weights.mean()).float()


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return `sum_p w_{y_p} (-log softmax(z_p)_{y_p}) / sum_p w_{y_p}` over the known pixels.

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W) int64 class ids, 255 unknown.
        weights: (K,) weights of the classes, or nothing for equal ones.

    Returns:
        A scalar; 0 for a batch without a known pixel.

    Raises:
        ValueError: `labels` are not one map of the logits' height and width an image, or `weights` not one a class.

    Example:
        >>> logits, labels = torch.zeros(2, 4, 64, 96), torch.randint(0, 4, (2, 64, 96))
        >>> round(cross_entropy(logits, labels, None).item(), 3)  # ln 4
        1.386
    """
    _check(logits, labels, weights)
    total = F.cross_entropy(wide(logits), labels, weight=weights, ignore_index=IGNORE, reduction="sum")
    return global_mean(total, _pixel_weights(labels, weights).sum())


def hard_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, *, probability: float = 0.7, kept_min: float = 0.1
) -> Tensor:
    """Return the cross-entropy of the hard pixels alone.

    A pixel is hard if its true class has less than `probability`; at least the share `kept_min` of
    the known pixels, the hardest ones, always count (Shrivastava et al., "Training Region-based
    Object Detectors with Online Hard Example Mining", CVPR 2016, arXiv 1604.03540, as it is used
    for segmentation).

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W) int64 class ids, 255 unknown.
        weights: (K,) weights of the classes, or nothing for equal ones.
        probability: 0 to 1.
        kept_min: 0 to 1.

    Returns:
        A scalar; 0 for a batch without a known pixel.

    Raises:
        ValueError: `labels` are not one map of the logits' height and width an image, `weights` not one a class, or
            `probability` or `kept_min` are beyond 0 to 1.

    Example:
        >>> logits, labels = torch.randn(2, 4, 64, 96), torch.randint(0, 4, (2, 64, 96))
        >>> bool(hard_cross_entropy(logits, labels, None) >= cross_entropy(logits, labels, None))
        True
    """
    _check(logits, labels, weights)
    check_number("probability", probability, 0, 1)
    check_number("kept_min", kept_min, 0, 1)
    known = labels != IGNORE
    losses = F.cross_entropy(wide(logits), labels, ignore_index=IGNORE, reduction="none")[known]
    weight = _pixel_weights(labels, weights)[known]
    if len(losses):
        # the limit is a loss: -log(probability), or lower where too few pixels are above it
        floor = -torch.log(losses.new_tensor(max(probability, 1e-12)))
        least = max(1, round(kept_min * len(losses)))
        limit = torch.minimum(floor, losses.detach().topk(least).values[-1])
        weight = weight * (losses.detach() >= limit)
    return global_mean((losses * weight).sum(), weight.sum())


def _check(logits: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    check_labels(labels, logits, same_size=True)
    if weights is not None and weights.shape != logits.shape[1:2]:
        raise ValueError(
            f"weights must be one number a class, ({logits.shape[1]},), got {tuple(weights.shape)}: see class_weights"
        )


def _pixel_weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    known = labels != IGNORE
    if weights is None:
        return known.float()
    return weights[labels.masked_fill(~known, 0)] * known
