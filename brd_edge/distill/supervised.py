"""Cross-entropy with the labels, over all pixels or over the hard ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from brd_edge.distill.distributed import global_mean
from brd_edge.distill.grid import IGNORE, wide

__all__ = ["class_weights", "cross_entropy", "hard_cross_entropy"]


def class_weights(pixels: Sequence[int], kind: str) -> Tensor | None:
    """Return cross-entropy weights from how often each class occurs.

    Args:
        pixels: Pixels of each class in the train split.
        kind: `none` gives nothing; `log_frequency` gives `1 / ln(1.1 + share of pixels)`, divided
            by its mean (Paszke et al., ENet, arXiv 1606.02147, section 5.2, with their 1.02 as 1.1).
    """
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
    """
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
    """
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


def _pixel_weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    known = labels != IGNORE
    if weights is None:
        return known.float()
    return weights[labels.masked_fill(~known, 0)] * known
