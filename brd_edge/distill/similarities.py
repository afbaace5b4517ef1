"""How unlike two networks relate rows of pixels to other embeddings, block by block: the table is never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brd_edge.distill.checks import COLDEST, check_number, check_rows, check_temperature
from brd_edge.distill.derivatives import first_derivative_only

__all__ = ["similarity_divergence"]

# elements of a block: what a core's own cache holds, and what keeps a GPU busy
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 24}


def similarity_divergence(
    teacher: tuple[Tensor, Tensor],
    student: tuple[Tensor, Tensor],
    weights: Tensor,
    *,
    temperature: float,
    block: int | None = None,
) -> Tensor:
    """Return the weighted divergence of the similarities of N rows to M keys, in O(N C + M C + block) memory.

    `sum_i w_i KL(softmax_k(<t_i, u_k> / t) || softmax_k(<s_i, v_k> / t))` with the teacher's rows t_i and keys u_k and
    the student's rows s_i and keys v_k. `brd_edge.distill.relation` is the faster case of rows that are the keys.

    Args:
        teacher: Rows (N, C_T) and keys (M, C_T), of length 1 at most; no gradient is taken.
        student: Rows (N, C_S) and keys (M, C_S) of the same dtype, float32 or float64.
        weights: (N,), what each row counts; no gradient is taken.
        temperature: t, at least 0.02, so that float32 holds `exp(1 / t)`.
        block: Rows that are held at a time, at least 1; it changes the rounding only. Not given: as many as suit the
            device.

    Returns:
        A scalar that can be differentiated once, by the student's rows and keys; `backward` with `create_graph=True`
        raises a RuntimeError.

    Raises:
        ValueError: Rows, keys or weights that do not belong together or are not of the student's dtype, a temperature
            below 0.02, or a block below 1.

    Example:
        >>> rows, keys = (torch.nn.functional.normalize(torch.randn(count, 8), dim=1) for count in (100, 7))
        >>> mine = torch.nn.functional.normalize(torch.randn(100, 8), dim=1)
        >>> bool(similarity_divergence((rows, keys), (mine, keys), torch.ones(100), temperature=0.1) > 0)
        True
    """
    check_rows(teacher[0], student[0])
    check_rows(teacher[1], student[1], what="keys")
    if weights.shape != student[0].shape[:1]:
        raise ValueError(f"weights must be one number a row, ({len(student[0])},), got {tuple(weights.shape)}")
    check_temperature(temperature, least=COLDEST)
    if block is not None:
        check_number("block", block, 1)
    held = block if block is not None else max(1, _BLOCK["cuda" if weights.is_cuda else "cpu"] // len(student[1]))
    teacher_rows, teacher_keys = (values.detach() for values in teacher)
    return _Divergence.apply(  # type: ignore[no-any-return]
        *student, teacher_rows, teacher_keys, weights.detach(), temperature, min(held, max(1, len(weights)))
    )


class _Divergence(torch.autograd.Function):
    """The sum and, as it is a scalar, at once its gradients.

    With `z = S V^T / t`, `d/dz = diag(w) (softmax(z_S) - softmax(z_T)) =: G`, hence `d/dS = G V / t` and
    `d/dV = G^T S / t`.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, keys: Tensor, teacher_rows: Tensor, teacher_keys: Tensor, weights: Tensor,
        temperature: float, block: int,
    ) -> Tensor:  # fmt: skip
        wanted = ctx.needs_input_grad
        gradients = [torch.zeros_like(values) if wanted[at] else None for at, values in enumerate((rows, keys))]
        room = [rows.new_empty(block * len(keys)) for _ in range(2)]
        total = rows.new_zeros((), dtype=torch.float64)
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), block):
                span = slice(start, min(start + block, len(rows)))
                theirs, mine = (held[: (span.stop - start) * len(keys)].view(-1, len(keys)) for held in room)
                torch.addmm(theirs, teacher_rows[span], teacher_keys.T, beta=0, alpha=1 / temperature, out=theirs)
                torch.addmm(mine, rows[span], keys.T, beta=0, alpha=1 / temperature, out=mine)
                total += _compare(theirs, mine, weights[span])
                if gradients[0] is not None:
                    torch.mm(mine, keys, out=gradients[0][span])
                if gradients[1] is not None:
                    gradients[1].addmm_(mine.T, rows[span])
        for gradient in gradients:
            if gradient is not None:
                gradient.div_(temperature)
        ctx.gradients = gradients
        return total.to(rows.dtype)

    @staticmethod
    @first_derivative_only("similarity_divergence, which cross_image_loss and memory_losses are made of,")
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, ...]:
        found = (None if gradient is None else gradient * outer[0] for gradient in ctx.gradients)
        return (*found, None, None, None, None, None)


def _compare(theirs: Tensor, mine: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted divergence of a block, float64; leave in `mine` its derivative by the student's logits."""
    difference = theirs - mine
    # rows and keys are no longer than 1: the maximum need not be taken off before the exponential
    sums = [values.exp_().sum(1, keepdim=True) for values in (theirs, mine)]
    theirs /= sums[0]
    # in double precision: the logarithms are far larger than what they differ by
    logarithms = (sums[1].double().log() - sums[0].double().log()).squeeze(1)
    divergence = difference.mul_(theirs).sum(1).double() + logarithms
    mine /= sums[1]
    mine -= theirs
    mine *= weights[:, None]
    return (divergence * weights).sum()
