"""Relation distillation: how every pixel relates to every other, passed on without the N x N matrix.

From the paper's abstract (BRD, arXiv 2401.13174): implicit relations are transferred from the
teacher to the student with pixel-level self-relation as a bridge. The softmax over cosine
similarities, relations across the images of a batch and the streaming evaluation below are this
project's own design.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brd_edge.distill.checks import COLDEST, check_labels, check_maps, check_number, check_rows, check_temperature
from brd_edge.distill.derivatives import first_derivative_only
from brd_edge.distill.distributed import global_mean
from brd_edge.distill.grid import known_cells, to_grid, wide
from brd_edge.distill.relation_tiles import OPERATIONS, TileOperations

__all__ = ["relation_loss", "relation_pixels", "streamed_relation", "tile_operations"]

log = logging.getLogger("brd_edge")

_TILE = {"cpu": 512, "cuda": 3072}
# the places within a larger tile would not fit into 32 bits
_TILE_MAX = 32768
# sides are multiples of it: matrix products read their rows in whole vectors
_ALIGNMENT = 64


def relation_pixels(features: Tensor, height: int, width: int) -> Tensor:
    """Return L2-normalised pixel features on a grid.

    Args:
        features: (N, C, H, W), floating point.
        height: Rows of the grid, at most H.
        width: Columns of the grid, at most W.

    Returns:
        (N, height * width, C) with unit rows; float32, or float64 if the features are.

    Raises:
        ValueError: The features are no map, or the grid is finer than theirs.

    Example:
        >>> relation_pixels(torch.randn(2, 16, 8, 12), 4, 6).shape
        torch.Size([2, 24, 16])
    """
    if features.ndim != 4 or not (1 <= height <= features.shape[2] and 1 <= width <= features.shape[3]):
        raise ValueError(
            f"features must be a map (N, C, H, W) of at least the grid's {height} x {width} cells, got "
            f"{tuple(features.shape)}: ask for a coarser grid"
        )
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
        temperature: t, at least 0.02.
        across_images: Whether a pixel is related to the pixels of all images of the batch.
        cells_max: Most cells that are related to each other, at least 2; finer grids are averaged down to it.
        block: Side of the tiles that are held at a time, at least 1; see `streamed_relation`.

    Returns:
        A scalar, not negative; 0 when both have the same self-relation. It can be differentiated once; `backward` with
        `create_graph=True` raises a RuntimeError.

    Raises:
        ValueError: Maps or labels that are not of the same N images, maps of which one alone is float64, a temperature
            below 0.02, `cells_max` below 2, or a block below 1.

    Example:
        >>> teacher, student = torch.randn(2, 64, 16, 24), torch.randn(2, 16, 8, 12, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> relation_loss(teacher, student, labels).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 12])
    """
    check_maps(teacher, student)
    if labels is not None:
        check_labels(labels, student)
    check_temperature(temperature, least=COLDEST)
    check_number("cells_max", cells_max, 2)
    if block is not None:
        check_number("block", block, 1)
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


def streamed_relation(
    teacher: Tensor,
    student: Tensor,
    *,
    temperature: float,
    block: int | None = None,
    operations: TileOperations | None = None,
) -> Tensor:
    """Return the relation loss of N pixels, in O(block^2 + N C) memory.

    Args:
        teacher: (N, C_T) unit rows, N at least 1; no gradient is taken. That rows are of length 1 is not checked, for
            which a GPU would be waited for: where `|row|^2 / temperature` of either is above 88, float32 overflows and
            the loss is no number. `relation_pixels` and `torch.nn.functional.normalize` make unit rows.
        student: (N, C_S) unit rows of the same dtype, float32 or float64.
        temperature: At least 0.02, so that float32 holds `exp(1 / temperature)`.
        block: Side of the tiles of the two N x N relations that are held at a time, at least 1; it changes the rounding
            only. Not given: 512 on the CPU, whose caches hold that much, and up to 3072 on a GPU, which a tile should
            keep busy for longer than it takes to launch the work.
        operations: How the tiles are worked on. Not given: Triton kernels for float32 on a GPU where Triton is
            installed, as it is with PyTorch's CUDA packages for Linux, and works, and PyTorch elsewhere; the two differ
            in rounding only.

    Returns:
        A scalar that can be differentiated once; `backward` with `create_graph=True` raises a RuntimeError.

    Raises:
        ValueError: Rows that are not of the same N pixels or the same dtype, a temperature below 0.02, or a block
            below 1.

    Example:
        >>> teacher, student = (relation_pixels(torch.randn(1, channels, 16, 24), 16, 24)[0] for channels in (64, 16))
        >>> bool(streamed_relation(teacher, student, temperature=0.1) > 0)
        True
    """
    check_rows(teacher, student)
    check_temperature(temperature, least=COLDEST)
    if block is not None:
        check_number("block", block, 1)
    side = block if block is not None else _tile_side(len(student), student.device)
    side = min(side, len(student), _TILE_MAX)
    return _StreamedRelation.apply(  # type: ignore[no-any-return]
        teacher, student, temperature, side, operations or tile_operations(student)
    )


def _tile_side(count: int, device: torch.device) -> int:
    """Return the side of tiles where nothing is asked for."""
    if device.type != "cuda":
        return _TILE["cpu"]
    # as few tiles as the largest side allows, and all of much the same size: a small one costs as many launches
    even = math.ceil(count / math.ceil(count / _TILE["cuda"]))
    return math.ceil(even / _ALIGNMENT) * _ALIGNMENT


def tile_operations(student: Tensor) -> TileOperations:
    """Return how tiles are worked on where nothing is asked for; see `streamed_relation`."""
    if student.is_cuda and student.dtype == torch.float32 and find_spec("triton"):
        return _fastest_operations(student.device)
    return OPERATIONS


@cache
def _fastest_operations(device: torch.device) -> TileOperations:
    """Return the kernels if they run on a GPU: Triton first builds a library, for which slim systems have no compiler.

    No CUDA graph may be recorded meanwhile; relations of pixels, which wait for the GPU, are part of none.
    """
    try:
        return _tried_kernels(device)
    except Exception as error:
        # whatever Triton and the compiler raise: training goes on without them
        log.warning(
            "relation: the Triton kernels do not run on %s (%s: %s); PyTorch's own operations, which are slower, take "
            "their place. Triton needs a C compiler and Python's headers, such as the packages gcc and python3-dev",
            device,
            type(error).__name__,
            error,
        )
        return OPERATIONS


def _tried_kernels(device: torch.device) -> TileOperations:
    """Return the kernels after they have worked on tiny tiles, on the diagonal and off it."""
    from brd_edge.distill import relation_kernels

    rows = torch.full((32, 4), 0.5, device=device)
    # as a number, so that a kernel that fails later fails here
    float(streamed_relation(rows, rows, temperature=1.0, block=16, operations=relation_kernels.OPERATIONS))
    return relation_kernels.OPERATIONS


class _StreamedRelation(torch.autograd.Function):
    """The loss and, as it is a scalar, at once its gradient.

    With `Z = F F^T / t`, `dLoss/dZ = (R(S) - R(T)) / N =: G`, hence `dLoss/dF = (G + G^T) F / t`. Z is symmetric, and
    so is G + G^T: `R_ij = exp(Z_ij) / s_i` gives `R_ij + R_ji = exp(Z_ij) (1 / s_i + 1 / s_j)`. The tiles on and above
    the diagonal therefore tell everything, once the rows' sums s are known.
    """

    @staticmethod
    def forward(
        ctx: Any, teacher: Tensor, student: Tensor, temperature: float, side: int, operations: TileOperations
    ) -> Tensor:
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[1] else None
        # kernels run on the current GPU
        on_device = torch.cuda.device_of(student)  # type: ignore[no-untyped-call]
        with torch.autocast(student.device.type, enabled=False), on_device:
            tiles = _Tiles(len(student), side, operations.room, student)
            loss = _stream(teacher.detach(), student.detach(), temperature, tiles, operations, gradient)
        ctx.gradient = gradient
        return loss

    @staticmethod
    @first_derivative_only("relation_loss, as streamed_relation,")
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None, None, None]:
        return None, ctx.gradient * gradients[0], None, None, None


class _Tiles:
    """The tiles of a symmetric N x N matrix on and above its diagonal, and room for some of them."""

    def __init__(self, count: int, side: int, room: int, like: Tensor) -> None:
        spans = [slice(start, min(start + side, count)) for start in range(0, count, side)]
        self.pairs = [(rows, columns) for place, rows in enumerate(spans) for columns in spans[place:]]
        self._room = [like.new_empty(side * side) for _ in range(room)]

    def buffers(self, rows: slice, columns: slice) -> list[Tensor]:
        """Return contiguous tiles of the pair's size, with whatever is in them."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return [room[: height * width].view(height, width) for room in self._room]


def _similarities(features: Tensor, temperature: float, rows: slice, columns: slice, out: Tensor) -> Tensor:
    # on a GPU the launches count: this is one, and the maximum need not be taken off before the exponential
    return torch.addmm(out, features[rows], features[columns].T, beta=0, alpha=1 / temperature, out=out)


def _stream(
    teacher: Tensor,
    student: Tensor,
    temperature: float,
    tiles: _Tiles,
    operations: TileOperations,
    gradient: Tensor | None,
) -> Tensor:
    """Return the loss; add its gradient by the student's pixels to `gradient`."""
    count = len(student)
    sums = [_row_sums(features, temperature, tiles, operations) for features in (teacher, student)]
    # in double precision: the logarithms are far larger than what they differ by
    total = (sums[1].double().log() - sums[0].double().log()).sum()
    share_teacher, share_student = (found.reciprocal_() for found in sums)
    parts = []
    for rows, columns in tiles.pairs:
        buffers = tiles.buffers(rows, columns)
        _similarities(teacher, temperature, rows, columns, buffers[0])
        _similarities(student, temperature, rows, columns, buffers[1])
        part = student.new_empty(operations.parts(*buffers[0].shape))
        shares_teacher, shares_student = ((share[rows], share[columns]) for share in (share_teacher, share_student))
        operations.difference(buffers, shares_teacher, shares_student, part)
        # a tile on the diagonal has every pair of pixels twice
        parts.append(part.mul_(0.5) if rows == columns else part)
        if gradient is None:
            continue
        gradient[rows].addmm_(buffers[1], student[columns])
        if rows != columns:
            gradient[columns].addmm_(buffers[1].T, student[rows])
    if gradient is not None:
        gradient /= count * temperature
    return ((total + torch.cat(parts).double().sum()) / count).to(student.dtype)


def _row_sums(features: Tensor, temperature: float, tiles: _Tiles, operations: TileOperations) -> Tensor:
    """Return the sum over every row of the exponentials, (N,)."""
    sums = features.new_zeros(len(features))
    for rows, columns in tiles.pairs:
        z = _similarities(features, temperature, rows, columns, tiles.buffers(rows, columns)[0])
        operations.add_power_sums(z, sums[rows], sums[columns] if rows != columns else None)
    return sums
