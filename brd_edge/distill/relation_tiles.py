"""What `relation` does to its tiles between the matrix products, in PyTorch: the reference, and what a CPU runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["OPERATIONS", "TileOperations"]


class TileOperations(NamedTuple):
    """One way to work on a tile of z, the (height, width) logits of two spans of pixels; `relation_kernels` is another.

    Attributes:
        name: What does it, for whoever compares.
        room: Tiles of memory that `difference` is given.
        parts: From a tile's height and width, how many partial sums `difference` writes.
        add_power_sums: From z, contiguous and free to be overwritten, add the sums of `exp(z)` along its rows to the
            second argument, (height,), and along its columns to the third, (width,), if that is given.
        difference: From `room` contiguous tiles, of which the first two are z of the teacher and of the student, the
            teacher's shares b of the tile's rows and columns, and the student's a: turn the second tile into
            `exp(z_S) (a_i + a_j) - exp(z_T) (b_i + b_j)` and set the last argument, (`parts`,), to what sums up to
            that of `exp(z_T) (b_i + b_j) (z_T - z_S)`.
    """

    name: str
    room: int
    parts: Callable[[int, int], int]
    add_power_sums: Callable[[Tensor, Tensor, Tensor | None], None]
    difference: Callable[[list[Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor], None]


def _add_power_sums(z: Tensor, rows: Tensor, columns: Tensor | None) -> None:
    powers = z.exp_()
    rows.addmv_(powers, powers.new_ones(powers.shape[1]))
    if columns is not None:
        columns.addmv_(powers.T, powers.new_ones(powers.shape[0]))


def _difference(
    tiles: list[Tensor], teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor], parts: Tensor
) -> None:
    z_teacher, z_student, relation, shares = tiles
    torch.exp(z_teacher, out=relation)
    relation *= torch.add(teacher[0][:, None], teacher[1], out=shares)
    z_teacher -= z_student
    torch.dot(relation.flatten(), z_teacher.flatten(), out=parts[0])
    found = z_student.exp_()
    found *= torch.add(student[0][:, None], student[1], out=shares)
    found -= relation


OPERATIONS = TileOperations("torch", 4, lambda _height, _width: 1, _add_power_sums, _difference)
