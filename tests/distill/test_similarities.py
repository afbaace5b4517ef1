"""The similarities of rows to keys, block by block, against plain float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from brd_edge.distill.similarities import similarity_divergence


def _unit(count: int, channels: int, seed: int) -> Tensor:
    rows = torch.randn((count, channels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


TEACHER = (_unit(13, 6, 1), _unit(7, 6, 2))
STUDENT = (_unit(13, 4, 3), _unit(7, 4, 4))
WEIGHTS = torch.linspace(0, 2, 13, dtype=torch.float64)


@pytest.mark.parametrize("block", [None, 1, 5, 13, 99])
def test_is_the_weighted_divergence_whatever_the_block(block: int | None) -> None:
    target, found = (log_softmax(rows.numpy() @ keys.numpy().T / 0.1, 1) for rows, keys in (TEACHER, STUDENT))
    expected = (WEIGHTS.numpy() * (np.exp(target) * (target - found)).sum(1)).sum()

    loss = similarity_divergence(TEACHER, STUDENT, WEIGHTS, temperature=0.1, block=block)

    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert float(similarity_divergence(TEACHER, TEACHER, WEIGHTS, temperature=0.1)) == pytest.approx(0, abs=1e-12)


def test_gradients_of_rows_and_keys() -> None:
    rows, keys = (values.clone().requires_grad_() for values in STUDENT)

    def loss(rows: Tensor, keys: Tensor) -> Tensor:
        return similarity_divergence(TEACHER, (rows, keys), WEIGHTS, temperature=0.5, block=4)

    assert torch.autograd.gradcheck(loss, (rows, keys))
    assert torch.autograd.gradcheck(lambda rows: loss(rows, STUDENT[1]), (rows,))
    assert torch.autograd.gradcheck(lambda keys: loss(STUDENT[0], keys), (keys,))


class _Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.elements = max(self.elements, found.numel())
        return found


def test_never_holds_the_table() -> None:
    rows, keys = _unit(64, 2, 1), _unit(32, 2, 2)
    with _Largest() as largest:
        loss = similarity_divergence(
            (rows, keys), (rows.requires_grad_(), keys), torch.ones(64).double(), temperature=1, block=4
        )
        loss.backward()  # type: ignore[no-untyped-call]
    assert largest.elements == 4 * 32, "a block, and nothing larger"


def test_coldest_temperature_stays_finite_in_float32() -> None:
    rows, keys = (values.float() for values in TEACHER)
    # the row's own embedding among the keys: the largest logit there is
    keys = torch.cat((keys, rows[:1], -rows[:1]))
    mine = rows.flip(0).clone().requires_grad_()

    loss = similarity_divergence((rows, keys), (mine, keys), torch.ones(13), temperature=0.02)
    loss.backward()  # type: ignore[no-untyped-call]

    exactly = [(values.double(), keys.double()) for values in (rows, rows.flip(0))]
    exact = similarity_divergence(*exactly, torch.ones(13).double(), temperature=0.02)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-5)
    assert mine.grad is not None and bool(mine.grad.isfinite().all())
