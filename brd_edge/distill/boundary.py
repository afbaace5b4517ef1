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
from brd_edge.distill.distributed import global_mean, sum_over_processes
from brd_edge.distill.grid import IGNORE, full_precision, known_cells, known_share, on_coarser_grid, transitions, wide

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

_EPSILON = 1e-6
_TINY = 1e-12
_FAINT = 1e-2
_NOWHERE = -1e4


def boundary_residual(features: Tensor, kernel: int, known: Tensor | None = None) -> Tensor:
    """Return what an average over the neighbourhood cannot explain: `B(F) = F - AvgPool_k(F)`.

    Args:
        features: (N, C, H, W), floating point.
        kernel: Odd side of the averaging window, borders being padded by reflection; or 0: the whole image, of
            which all regions stand out that are not like its mean, not their edges alone.
        known: (N, 1, H, W), 1 for the cells that the average is taken over and 0 for the others; all when not given.

    Returns:
        (N, C, H, W); zero where the features are locally constant. What lies in cells that are not known changes
        nothing in those that are.
    """
    if known is None:
        return features - (_average(features, kernel) if kernel else features.mean((2, 3), keepdim=True))
    known = known.to(features.dtype)
    inside = features * known
    if kernel == 0:
        return features - inside.sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
    # a window that holds a known cell has at least 1 / kernel^2 of them
    return features - _average(inside, kernel) / _average(known, kernel).clamp_min(0.5 / kernel**2)


def boundary_map(features: Tensor, kernel: int, known: Tensor | None = None) -> Tensor:
    """Return an explicit boundary map of a feature map, comparable between unlike networks.

    `b = sqrt(mean_c B(F)^2 + eps)`, divided by its mean over the image's known cells: the channel
    energy needs no match of channels, and the division makes the map invariant to the features' scale.

    Args:
        features: (N, C, H, W), floating point.
        kernel: Odd side of the averaging window.
        known: (N, 1, H, W), 1 for the cells that averages are taken over and 0 for the others; all when not given.

    Returns:
        (N, 1, H, W), not negative, mean 1 over the known cells of every image.
    """
    energy = boundary_residual(features, kernel, known).square().mean(1, keepdim=True)
    weight = torch.ones_like(energy) if known is None else known.to(energy.dtype)
    # an image without any known cell counts nowhere; its divisor must only not be 0
    weight = weight / weight.sum((2, 3), keepdim=True).clamp_min(1)
    floor = _EPSILON * (energy * weight).sum((2, 3), keepdim=True)
    magnitude = (energy + floor + _TINY).sqrt()
    return magnitude / (magnitude * weight).sum((2, 3), keepdim=True).clamp_min(_TINY)


def neighbour_map(features: Tensor, kernel: int, known: Tensor | None = None) -> Tensor:
    """Return how unlike each pixel is to its neighbours at distance `kernel // 2`, in eight directions.

    `b_d(p) = 1 - cos(F(p), F(p + d))`: unlike `boundary_map` it also says on which side the
    boundary lies. Invariant to the scale of every pixel's feature; needs no match of channels.

    Args:
        features: (N, C, H, W), floating point.
        kernel: Odd side of the window whose corners and side centres are the neighbours.
        known: (N, 1, H, W), 1 for the cells to be compared with and 0 for the others; all when not given.

    Returns:
        (N, 8, H, W), 0 to 2, and 0 towards a neighbour that is not known; borders are padded by reflection.
    """
    reach = kernel // 2
    unit = F.normalize(features, dim=1, eps=1e-6)
    height, width = features.shape[-2:]
    steps = (0, reach, 2 * reach)
    shifts = [(top, left) for top in steps for left in steps if (top, left) != (reach, reach)]

    def neighbours(values: Tensor) -> list[Tensor]:
        padded = _pad(values, reach)
        return [padded[..., top : top + height, left : left + width] for top, left in shifts]

    found = torch.stack([1 - (unit * other).sum(1) for other in neighbours(unit)], dim=1)
    return found if known is None else found * torch.cat(neighbours(known.to(found.dtype)), dim=1)


OPERATORS: dict[str, Callable[[Tensor, int, Tensor], Tensor]] = {
    "residual": boundary_map,
    "neighbours": neighbour_map,
}
"""How boundaries are read from features, the window's side and the known cells."""


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
        kernel: Odd side of the boundary operator's window.
        band_weight: How much more cells on a label boundary count.

    Returns:
        A scalar; 0 when the student's boundary maps equal the teacher's.
    """
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
        kernel: Odd side of the boundary operator's window.
        band_weight: How much more cells on a label boundary count.

    Returns:
        A scalar; 0 when the projected student has the teacher's boundaries, about 1 when it has none.
    """
    cells = _cells(labels, band_weight)
    losses = []
    for name, project in projections.items():
        theirs, mine = on_coarser_grid(wide(teacher[int(name)].detach()), wide(project(student[int(name)])))
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
        kernel: Odd side of the boundary operator's window.
        band_weight: How much more pixels on a label boundary count.
        class_balance: How far rare classes count more, 0 to 1; see `brd_edge.distill.balance.rarity`.

    Returns:
        A scalar; 0 when the logits are equal.
    """
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
        kernel: Odd side of the boundary operator's window, or 0.
        band_weight: How much more pixels on a label boundary count.
        class_balance: How far rare classes count more, 0 to 1; see `brd_edge.distill.balance.rarity`.

    Returns:
        A scalar; 0 when the logits are equal up to a constant per image and class, about 1 when the student has no
        boundaries.
    """
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
        kernel: Odd side of the boundary operator's window, or 0.
        temperature: t, above 0.

    Returns:
        A scalar, not negative; 0 when the logits are equal up to a constant per image and class.
    """
    theirs, mine = on_coarser_grid(wide(teacher_logits.detach()), wide(student_logits))
    known = known_cells(labels, *mine.shape[-2:])
    target, found = (_log_places(boundary_residual(part, kernel, known), known, temperature) for part in (theirs, mine))
    divergence = (target.exp() * (target - found)).sum(2).mean(1)
    labelled = known.flatten(1).amax(1)
    return global_mean((divergence * labelled).sum(), labelled.sum()) * temperature**2


def _log_places(boundaries: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Return the logarithm of each class's distribution over the known cells, (N, K, cells)."""
    # not minus infinity: the difference of two would be no number
    return (boundaries / temperature).masked_fill(known == 0, _NOWHERE).flatten(2).log_softmax(2)


def _average(features: Tensor, kernel: int) -> Tensor:
    """Return the mean of the window around every cell, (N, C, H, W)."""
    padded = _pad(features, kernel // 2)
    if features.is_cuda:
        return F.avg_pool2d(padded, kernel, stride=1)
    # on a CPU, a convolution with equal weights takes a fifth of the pooling's time
    channels = features.shape[1]
    weight = features.new_full((channels, 1, kernel, kernel), 1 / kernel**2)
    with full_precision(features):
        return F.conv2d(padded, weight, groups=channels)


def _pad(features: Tensor, reach: int) -> Tensor:
    # reflection needs more rows than it reflects; tiny grids are padded by replication
    mode = "reflect" if min(features.shape[-2:]) > reach else "replicate"
    return F.pad(features, (reach, reach, reach, reach), mode=mode)


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
