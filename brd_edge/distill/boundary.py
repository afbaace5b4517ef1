"""Boundary distillation: the student is asked for object boundaries where the teacher has them.

From the paper's abstract (BRD, arXiv 2401.13174): explicit object boundaries are extracted from
the backbone's hierarchical feature maps and distilled. The operators, the normalisation and the
band weighting below are this project's own design.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brd_edge.distill.balance import balanced_share
from brd_edge.distill.boundary_operators import OPERATORS, boundary_map, boundary_residual, neighbour_map
from brd_edge.distill.checks import (
    check_labels,
    check_maps,
    check_number,
    check_same_classes,
    check_stages,
    check_temperature,
)
from brd_edge.distill.distributed import global_mean, sum_over_processes
from brd_edge.distill.grid import IGNORE, known_cells, known_share, on_coarser_grid, transitions, wide

__all__ = [
    "OPERATORS",
    "boundary_class_loss",
    "boundary_feature_loss",
    "boundary_logit_loss",
    "boundary_map",
    "boundary_place_loss",
    "boundary_projections",
    "boundary_residual",
    "neighbour_map",
    "projected_boundary_loss",
]

_TINY = 1e-12
_FAINT = 1e-2
_NOWHERE = -1e4


def boundary_feature_loss(
    teacher: Mapping[int, Tensor],
    student: Mapping[int, Tensor],
    labels: Tensor,
    *,
    strides: Sequence[int],
    operator: str = "residual",
    kernel: int = 3,
    band_weight: float = 4.0,
) -> Tensor:
    """Compare the boundary maps of two backbones, stage by stage.

    `mean over stages of sum_p w_p mean_d |b_T(p, d) - b_S(p, d)| / sum_p w_p` with
    `w = known * (1 + band_weight * band)`.

    Args:
        teacher: Stride to features (N, C, H, W) of the teacher; no gradient is taken.
        student: Stride to features of the student; C, H and W may differ from the teacher's.
        labels: (N, h, w) int64 class ids, 255 ignored.
        strides: Which stages to compare; each stands in both mappings.
        operator: A key of `OPERATORS`.
        kernel: Odd side of the boundary operator's window, at least 3; for `residual` also 0, the whole image.
        band_weight: How much more cells on a label boundary count; not negative.

    Returns:
        A scalar; 0 when the student's boundary maps equal the teacher's.

    Raises:
        ValueError: A stride without a map of both, maps or labels that are not of the same N images, an unknown
            operator, a kernel that it cannot take, or a negative `band_weight`.

    Example:
        >>> teacher, student = torch.randn(2, 64, 16, 24), torch.randn(2, 16, 16, 24, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> boundary_feature_loss({4: teacher}, {4: student}, labels, strides=(4,)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 16, 24])
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {list(OPERATORS)}, got {operator!r}")
    _check_stages(teacher, student, strides, labels, band_weight)
    extract = OPERATORS[operator]
    cells = _cells(labels, band_weight)
    losses = []
    for stride in strides:
        theirs, mine = on_coarser_grid(wide(teacher[stride].detach()), wide(student[stride]))
        known, weight = cells(*mine.shape[-2:])
        distance = (extract(theirs, kernel, known) - extract(mine, kernel, known)).abs().mean(1, keepdim=True)
        losses.append(global_mean((distance * weight).sum(), weight.sum()))
    return torch.stack(losses).mean()


def boundary_projections(channels: Mapping[int, tuple[int, int]]) -> nn.ModuleDict:
    """Return layers that take the student's stages to the teacher's channels; they are the same at every call.

    Args:
        channels: Stride to the channels of the teacher and of the student.

    Example:
        >>> boundary_projections({16: (48, 24)})["16"](torch.randn(2, 24, 8, 12)).shape
        torch.Size([2, 48, 8, 12])
    """
    layers = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for stride, (theirs, mine) in channels.items():
            layers[str(stride)] = nn.Sequential(nn.Conv2d(mine, theirs, 1, bias=False), nn.BatchNorm2d(theirs))
    return layers


def projected_boundary_loss(
    teacher: Mapping[int, Tensor],
    student: Mapping[int, Tensor],
    labels: Tensor,
    *,
    projections: nn.ModuleDict,
    kernel: int = 3,
    band_weight: float = 4.0,
) -> Tensor:
    """Compare what is boundary in every channel of the teacher's stages, after projecting the student's.

    `mean over stages of sum_p w_p mean_c (B(g(S))(p, c) - B(T)(p, c) / s_c)^2 / sum_p w_p`: g is
    the stage's projection, s_c^2 the mean square of `B(T)` in channel c over the batch, and w the
    weight of `boundary_feature_loss`. A boundary map has one value a pixel and says that there is a
    boundary; the channels also say between what.

    Args:
        teacher: Stride to features (N, C, H, W) of the teacher; no gradient is taken.
        student: Stride to features of the student; C, H and W may differ from the teacher's.
        labels: (N, h, w) int64 class ids, 255 ignored.
        projections: By stride, student's channels to teacher's; `boundary_projections` makes them.
        kernel: Odd side of the boundary operator's window, at least 3, or 0: the whole image.
        band_weight: How much more cells on a label boundary count; not negative.

    Returns:
        A scalar; 0 when the projected student has the teacher's boundaries, about 1 when it has none.

    Raises:
        ValueError: A stride without a map of both, maps or labels that are not of the same N images, a projection to
            other channels than the teacher's, an even kernel, or a negative `band_weight`.

    Example:
        >>> teacher, student = torch.randn(2, 48, 16, 24), torch.randn(2, 24, 16, 24)
        >>> labels, layers = torch.randint(0, 5, (2, 64, 96)), boundary_projections({4: (48, 24)})
        >>> projected_boundary_loss({4: teacher}, {4: student}, labels, projections=layers).backward()
        >>> layers["4"][0].weight.grad.shape  # these layers are trained with the student
        torch.Size([48, 24, 1, 1])
    """
    _check_stages(teacher, student, [int(name) for name in projections], labels, band_weight)
    cells = _cells(labels, band_weight)
    losses = []
    for name, project in projections.items():
        theirs, mine = on_coarser_grid(wide(teacher[int(name)].detach()), wide(project(student[int(name)])))
        if theirs.shape[1] != mine.shape[1]:
            raise ValueError(
                f"projections must end in the teacher's channels, {theirs.shape[1]} at stride {name}, got "
                f"{mine.shape[1]}: make them with boundary_projections"
            )
        known, weight = cells(*mine.shape[-2:])
        theirs, mine = boundary_residual(theirs, kernel, known), boundary_residual(mine, kernel, known)
        distance = (mine - theirs * _channel_power(theirs, known).rsqrt()).square().mean(1, keepdim=True)
        losses.append(global_mean((distance * weight).sum(), weight.sum()))
    return torch.stack(losses).mean()


def boundary_class_loss(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    *,
    kernel: int = 3,
    band_weight: float = 4.0,
    class_balance: float = 0.0,
) -> Tensor:
    """Compare the boundaries of the class probabilities, where channels match.

    `sum_p w_p |B(P_T)(p) - B(P_S)(p)|_1 / sum_p w_p` with `P = softmax(logits)` and the weights
    of `boundary_feature_loss`.

    Args:
        teacher_logits: (N, K, H, W); no gradient is taken.
        student_logits: (N, K, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 ignored.
        kernel: Odd side of the boundary operator's window, at least 3, or 0: the whole image.
        band_weight: How much more pixels on a label boundary count; not negative.
        class_balance: How far rare classes count more, 0 to 1; see `brd_edge.distill.balance.rarity`.

    Returns:
        A scalar; 0 when the logits are equal.

    Raises:
        ValueError: Logits or labels that are not of the same N images, logits of unlike numbers of classes, an even
            kernel, a negative `band_weight`, or a `class_balance` beyond 0 to 1.

    Example:
        >>> teacher, student = torch.randn(2, 5, 16, 24), torch.randn(2, 5, 16, 24, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> boundary_class_loss(teacher, student, labels).backward()
        >>> student.grad.shape
        torch.Size([2, 5, 16, 24])
    """
    _check_logits(teacher_logits, student_logits, labels, band_weight, class_balance)
    theirs, mine = on_coarser_grid(wide(teacher_logits.detach()).softmax(1), wide(student_logits).softmax(1))
    known = known_cells(labels, *mine.shape[-2:])
    distance = boundary_residual(theirs - mine, kernel, known).abs().sum(1, keepdim=True)
    return _band_mean(distance, labels, band_weight, class_balance)


def boundary_logit_loss(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    *,
    kernel: int = 3,
    band_weight: float = 4.0,
    class_balance: float = 0.0,
) -> Tensor:
    """Compare the boundaries of the class logits, every class alike.

    `sum_p w_p mean_c (B(z_S)(p, c) - B(z_T)(p, c))^2 / s_c^2 / sum_p w_p` with the s_c of
    `projected_boundary_loss` and the weights of `boundary_feature_loss`. Differences of probabilities fade where
    a class is hardly ever seen, and the common classes fill most of the sum; here a pole counts like the road.

    Args:
        teacher_logits: (N, K, H, W); no gradient is taken.
        student_logits: (N, K, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 ignored.
        kernel: Odd side of the boundary operator's window, at least 3, or 0: the whole image.
        band_weight: How much more pixels on a label boundary count; not negative.
        class_balance: How far rare classes count more, 0 to 1; see `brd_edge.distill.balance.rarity`.

    Returns:
        A scalar; 0 when the logits are equal up to a constant per image and class, about 1 when the student has no
        boundaries.

    Raises:
        ValueError: Logits or labels that are not of the same N images, logits of unlike numbers of classes, an even
            kernel, a negative `band_weight`, or a `class_balance` beyond 0 to 1.

    Example:
        >>> teacher, student = torch.randn(2, 5, 16, 24), torch.randn(2, 5, 16, 24, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> boundary_logit_loss(teacher, student, labels).backward()
        >>> student.grad.shape
        torch.Size([2, 5, 16, 24])
    """
    _check_logits(teacher_logits, student_logits, labels, band_weight, class_balance)
    theirs, mine = on_coarser_grid(wide(teacher_logits.detach()), wide(student_logits))
    known = known_cells(labels, *mine.shape[-2:])
    theirs, mine = boundary_residual(theirs, kernel, known), boundary_residual(mine, kernel, known)
    power = _channel_power(theirs, known)
    distance = ((mine - theirs).square() / power).mean(1, keepdim=True)
    return _band_mean(distance, labels, band_weight, class_balance)


def boundary_place_loss(
    teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, *, kernel: int = 3, temperature: float = 1.0
) -> Tensor:
    """Compare where in the image the boundaries of each class lie.

    `t^2 / K sum_c KL(D(z_T)_c || D(z_S)_c)`, the mean over the images, with
    `D(z)_c = softmax_p(B(z)(p, c) / t)` over the known cells p. A class counts the same whether it fills half of
    the image or a few cells, so that neither a band nor the classes have to be weighted. With kernel 0 and all
    cells known it is CWD's loss (Shu et al., ICCV 2021, arXiv 2011.13256, eq. 4), which no constant per class changes.

    Args:
        teacher_logits: (N, K, H, W); no gradient is taken.
        student_logits: (N, K, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 unknown.
        kernel: Odd side of the boundary operator's window, at least 3, or 0: the whole image.
        temperature: t, above 0.

    Returns:
        A scalar, not negative; 0 when the logits are equal up to a constant per image and class.

    Raises:
        ValueError: Logits or labels that are not of the same N images, logits of unlike numbers of classes, an even
            kernel, or a temperature that is not above 0.

    Example:
        >>> teacher, student = torch.randn(2, 5, 16, 24), torch.randn(2, 5, 16, 24, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> boundary_place_loss(teacher, student, labels).backward()
        >>> student.grad.shape
        torch.Size([2, 5, 16, 24])
    """
    _check_logits(teacher_logits, student_logits, labels)
    check_temperature(temperature)
    theirs, mine = on_coarser_grid(wide(teacher_logits.detach()), wide(student_logits))
    known = known_cells(labels, *mine.shape[-2:])
    target, found = (_log_places(boundary_residual(part, kernel, known), known, temperature) for part in (theirs, mine))
    divergence = (target.exp() * (target - found)).sum(2).mean(1)
    labelled = known.flatten(1).amax(1)
    return global_mean((divergence * labelled).sum(), labelled.sum()) * temperature**2


def _check_stages(
    teacher: Mapping[int, Tensor],
    student: Mapping[int, Tensor],
    strides: Sequence[int],
    labels: Tensor,
    band_weight: float,
) -> None:
    check_stages(teacher, student, strides)
    check_labels(labels, student[strides[0]])
    check_number("band_weight", band_weight, 0)


def _check_logits(
    teacher: Tensor, student: Tensor, labels: Tensor, band_weight: float = 0.0, class_balance: float = 0.0
) -> None:
    check_maps(teacher, student)
    check_same_classes(teacher, student)
    check_labels(labels, student)
    check_number("band_weight", band_weight, 0)
    check_number("class_balance", class_balance, 0, 1)


def _log_places(boundaries: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Return the logarithm of each class's distribution over the known cells, (N, K, cells)."""
    # not minus infinity: the difference of two would be no number
    return (boundaries / temperature).masked_fill(known == 0, _NOWHERE).flatten(2).log_softmax(2)


def _channel_power(features: Tensor, known: Tensor) -> Tensor:
    """Return the mean square of every channel over the whole batch's known cells, (1, C, 1, 1)."""
    total = sum_over_processes((features.square() * known).sum((0, 2, 3), keepdim=True))
    power = total / sum_over_processes(known.sum()).clamp_min(1)
    # a channel in which the teacher has hardly any boundary must not outweigh the others
    return torch.maximum(power, _FAINT * power.mean() + _TINY)


def _cells(labels: Tensor, band_weight: float) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Return a function of a grid's height and width to which cells are known and what each counts, (N, 1, h, w) both.

    What is read from the pixels is read once for the grids of all stages.
    """
    known, band = (labels != IGNORE).float().unsqueeze(1), transitions(labels)

    def on_grid(height: int, width: int) -> tuple[Tensor, Tensor]:
        cells = F.adaptive_max_pool2d(known, (height, width))
        return cells, cells * (1 + band_weight * F.adaptive_max_pool2d(band, (height, width)))

    return on_grid


def _band_mean(distance: Tensor, labels: Tensor, band_weight: float, class_balance: float) -> Tensor:
    height, width = distance.shape[-2:]
    _, weight = _cells(labels, band_weight)(height, width)
    if class_balance:
        # of a cell's known pixels: as without balance, one that is known in part counts in full
        share = known_share(labels, height, width).clamp_min(1 / labels[0].numel())
        weight = weight * (balanced_share(labels, height, width, power=class_balance) / share)
    return global_mean((distance * weight).sum(), weight.sum())
