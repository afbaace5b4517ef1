"""What `relation` does to its tiles on a CUDA GPU, as Triton kernels: one reading of a tile in place of many.

The matrix products stay with cuBLAS. Without the kernels everything between them would be a launch of its own over the
same tile, and launches and traffic, not arithmetic, would set the time. Imported only where there is a GPU;
`TRITON_INTERPRET=1`, set before Python starts, runs the kernels on a CPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from brd_edge.distill.relation_tiles import TileOperations

__all__ = ["OPERATIONS"]

# the lines that a program of `_sum_powers` adds up, and how many of their values at a time
_LINES, _STEP = 16, 256
# the square that a program of `_subtract` does: with a larger one registers run out
_SIDE = 32
# Triton is about to change what holds when this is not said
_OPTIONS = {"enable_fp_fusion": True}


@triton.jit  # type: ignore[untyped-decorator]
def _sum_powers(  # type: ignore[no-untyped-def]
    z, rows, columns, height, width, lines: tl.constexpr, step: tl.constexpr
):  # fmt: skip
    # the first programs sum along rows, the others along columns: every sum has one writer and one order
    strips = tl.cdiv(height, lines)
    program = tl.program_id(0)
    if program < strips:
        row = program * lines + tl.arange(0, lines)
        total = tl.zeros((lines,), tl.float32)
        for start in range(0, width, step):
            column = start + tl.arange(0, step)
            inside = (row[:, None] < height) & (column[None, :] < width)
            tile = tl.load(z + row[:, None] * width + column[None, :], mask=inside, other=-float("inf"))
            total += tl.sum(tl.exp(tile), axis=1)
        before = tl.load(rows + row, mask=row < height, other=0.0)
        tl.store(rows + row, before + total, mask=row < height)
    else:
        column = (program - strips) * lines + tl.arange(0, lines)
        total = tl.zeros((lines,), tl.float32)
        for start in range(0, height, step):
            row = start + tl.arange(0, step)
            inside = (row[:, None] < height) & (column[None, :] < width)
            tile = tl.load(z + row[:, None] * width + column[None, :], mask=inside, other=-float("inf"))
            total += tl.sum(tl.exp(tile), axis=0)
        before = tl.load(columns + column, mask=column < width, other=0.0)
        tl.store(columns + column, before + total, mask=column < width)


@triton.jit  # type: ignore[untyped-decorator]
def _subtract(  # type: ignore[no-untyped-def]
    z_teacher, z_student, teacher_rows, teacher_columns, student_rows, student_columns, parts, height, width,
    side: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * side + tl.arange(0, side)
    column = tl.program_id(1) * side + tl.arange(0, side)
    place = row[:, None] * width + column[None, :]
    inside = (row[:, None] < height) & (column[None, :] < width)
    theirs = tl.load(z_teacher + place, mask=inside, other=0.0)
    mine = tl.load(z_student + place, mask=inside, other=0.0)
    # shares of 0 outside the tile make everything there 0
    teacher_row = tl.load(teacher_rows + row, mask=row < height, other=0.0)
    teacher_column = tl.load(teacher_columns + column, mask=column < width, other=0.0)
    student_row = tl.load(student_rows + row, mask=row < height, other=0.0)
    student_column = tl.load(student_columns + column, mask=column < width, other=0.0)
    relation = tl.exp(theirs) * (teacher_row[:, None] + teacher_column[None, :])
    tl.store(z_student + place, tl.exp(mine) * (student_row[:, None] + student_column[None, :]) - relation, mask=inside)
    part = tl.sum(tl.sum(tl.where(inside, relation * (theirs - mine), 0.0), axis=1), axis=0)
    tl.store(parts + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), part)


def _add_power_sums(z: Tensor, rows: Tensor, columns: Tensor | None) -> None:
    height, width = z.shape
    programs = triton.cdiv(height, _LINES) + (triton.cdiv(width, _LINES) if columns is not None else 0)
    sums = (rows, rows if columns is None else columns)
    _sum_powers[(programs,)](z, *sums, height, width, lines=_LINES, step=_STEP, **_OPTIONS)


def _parts(height: int, width: int) -> int:
    return int(triton.cdiv(height, _SIDE) * triton.cdiv(width, _SIDE))


def _difference(
    tiles: list[Tensor], teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor], parts: Tensor
) -> None:
    height, width = tiles[0].shape
    grid = (triton.cdiv(height, _SIDE), triton.cdiv(width, _SIDE))
    _subtract[grid](*tiles, *teacher, *student, parts, height, width, side=_SIDE, **_OPTIONS)


OPERATIONS = TileOperations("triton", 2, _parts, _add_power_sums, _difference)
