"""Boundary distillation by overlap: how far the regions and boundaries of each class cover the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from brd_edge.distill.boundary_operators import boundary_residual
from brd_edge.distill.checks import check_labels, check_maps, check_same_classes
from brd_edge.distill.distributed import shared_sum, sum_over_processes
from brd_edge.distill.grid import IGNORE, known_cells, on_coarser_grid, to_grid, wide

__all__ = ["boundary_overlap_loss", "label_overlap_loss", "label_shares"]

_LEAST_CELLS = 2.0
_TINY = 1e-6
_CELL = 4


def boundary_overlap_loss(theirs: Tensor, mine: Tensor, labels: Tensor, *, kernel: int = 3) -> Tensor:
    """Compare how far the boundaries of each class overlap: one minus their Jaccard index, for soft maps.

    With `B_T` and `B_S` the boundaries of the probabilities (`boundary_residual`, unknown cells counting as 0; for
    kernel 0 the probabilities, that is regions in place of boundaries) and sums over the known cells of the batch (of
    all processes), `s_c = sum |B_T| + sum |B_S|` and `d_c = sum |B_T - B_S|`, the loss is the mean over the classes of
    `1 - (s_c - d_c) / (s_c + d_c)`: the Jaccard metric loss (Wang et al., NeurIPS 2023, arXiv 2302.05666), which
    unlike other soft Jaccard indices is 0 only where both are equal, also when the target is soft. A class counts the
    same whether it fills half of the image or a few cells, as in the scores. Classes of which the teacher sees less
    than two cells in the batch are left out.

    Args:
        theirs: (N, K, H, W) the teacher's probabilities, 0 to 1; no gradient is taken.
        mine: (N, K, H', W') the student's probabilities; both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 unknown.
        kernel: Odd side of the boundary operator's window, at least 3, or 0: the whole image.

    Returns:
        A scalar, 0 to 1; 0 when the probabilities are equal, 1 when nothing overlaps.

    Raises:
        ValueError: Probabilities or labels that are not of the same N images, probabilities of unlike numbers of
            classes, or an even kernel.

    Example:
        >>> teacher, student = torch.randn(2, 5, 16, 24).softmax(1), torch.randn(2, 5, 16, 24, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> boundary_overlap_loss(teacher, student.softmax(1), labels).backward()
        >>> student.grad.shape
        torch.Size([2, 5, 16, 24])
    """
    check_maps(theirs, mine)
    check_same_classes(theirs, mine)
    check_labels(labels, mine)
    theirs, mine = on_coarser_grid(wide(theirs.detach()), wide(mine))
    known = known_cells(labels, *mine.shape[-2:])
    # before the window reaches from a known cell into an unknown one
    theirs, mine = theirs * known, mine * known
    seen = sum_over_processes(theirs.sum((0, 2, 3))) >= _LEAST_CELLS
    if kernel:
        theirs, mine = boundary_residual(theirs, kernel) * known, boundary_residual(mine, kernel) * known
    both = shared_sum((theirs.abs() + mine.abs()).sum((0, 2, 3)))
    apart = shared_sum((theirs - mine).abs().sum((0, 2, 3)))
    lost = 2 * apart / (both + apart).clamp_min(_TINY)
    return (lost * seen).sum() / seen.sum().clamp_min(1)


def label_overlap_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compare how far the student's regions and boundaries overlap the labels', without a teacher.

    The mean of `boundary_overlap_loss` with the windows 0 and 3 on cells of 4 x 4 pixels, its target being the share of
    each cell that the labels give to a class. It takes the full logits: how a decoder's cells lie between the pixels
    depends on how its architecture resamples them.

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W) int64 class ids, 255 unknown.

    Returns:
        A scalar, 0 to 1.

    Raises:
        ValueError: `labels` are not one map of the logits' height and width an image.

    Example:
        >>> logits, labels = torch.randn(2, 5, 64, 96, requires_grad=True), torch.randint(0, 5, (2, 64, 96))
        >>> label_overlap_loss(logits, labels).backward()
        >>> logits.grad.shape
        torch.Size([2, 5, 64, 96])
    """
    check_labels(labels, logits, same_size=True)
    height, width = (-(-side // _CELL) for side in labels.shape[1:])
    # class by class: softmax and averaging are several times as fast as with the classes side by side
    mine = to_grid(wide(logits).contiguous().softmax(1), height, width)
    target = label_shares(labels, mine.shape[1], height, width).to(mine.dtype)
    return torch.stack([boundary_overlap_loss(target, mine, labels, kernel=kernel) for kernel in (0, 3)]).mean()


def label_shares(labels: Tensor, classes: int, height: int, width: int) -> Tensor:
    """Return which share of every cell's known pixels is of each class: what a teacher without errors would say.

    Args:
        labels: (N, h, w) int64 class ids, 255 unknown.
        classes: K.
        height: Rows of the grid, at most h.
        width: Columns of the grid, at most w.

    Returns:
        (N, K, height, width) float32, 0 to 1; 0 in cells without a known pixel.
    """
    # counted, not averaged over one map a class, which at full size would fill hundreds of megabytes
    count, rows, columns = labels.shape
    row = torch.arange(rows, device=labels.device) * height // rows
    column = torch.arange(columns, device=labels.device) * width // columns
    image = torch.arange(count, device=labels.device)
    cell = (image.view(-1, 1, 1) * height + row.view(1, -1, 1)) * width + column
    index = (cell * (classes + 1) + labels.masked_fill(labels == IGNORE, classes)).flatten()
    pixels = torch.zeros(count * height * width * (classes + 1), device=labels.device)
    pixels.scatter_add_(0, index, torch.ones_like(index, dtype=pixels.dtype))
    known = pixels.view(count, height, width, classes + 1)[..., :classes]
    return (known / known.sum(3, keepdim=True).clamp_min(1)).permute(0, 3, 1, 2)
