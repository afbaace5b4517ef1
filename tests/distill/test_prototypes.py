"""The relation of pixels to classes against numpy in float64, and against what its formula promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from brd_edge.distill import prototypes
from brd_edge.distill.prototypes import class_relation_loss

Array = NDArray[np.float64]


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _labels() -> torch.Tensor:
    labels = torch.randint(0, 4, (2, 8, 12), generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[:, :8, :8] = 255
    return labels


def _numpy_relation(features: torch.Tensor, truth: NDArray[np.int64], temperature: float) -> Array:
    rows = features.double().numpy().transpose(0, 2, 3, 1)[truth != 255]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    known = truth[truth != 255]
    means = np.stack([rows[known == value].mean(0) for value in np.unique(known)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    found: Array = log_softmax(rows @ means.T / temperature, 1)
    return found


@pytest.mark.parametrize("power", [0.0, 0.6])
def test_class_relation_loss_against_numpy(power: float) -> None:
    """A cell is of the class at its centre, and counts as the centres of the batch's cells say."""
    teacher, student = _random(2, 6, 8, 12, seed=1), _random(2, 3, 8, 12, seed=2)
    # blocks that lie across cells, and a class that lies in cells' corners alone
    labels = _labels().roll((1, 1), (1, 2))
    labels[:, ::8, ::4] = 4

    found = class_relation_loss(teacher, student, labels, temperature=0.3, class_balance=power)

    truth = labels[:, 2::4, 2::4].numpy()
    target, mine = (_numpy_relation(features, truth, 0.3) for features in (teacher, student))
    known = truth[truth != 255]
    weights = (len(known) / np.bincount(known)[known]) ** power
    expected = np.average((np.exp(target) * (target - mine)).sum(1), weights=weights)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_gradcheck() -> None:
    teacher, student = _random(2, 3, 4, 5, seed=1).double(), _random(2, 2, 4, 5, seed=2).double().requires_grad_()
    labels = torch.arange(40).reshape(2, 4, 5) // 4 % 3
    labels[0, 0, 0] = 255

    assert torch.autograd.gradcheck(
        lambda s: class_relation_loss(teacher, s, labels, temperature=0.4, class_balance=0.5), (student,)
    )


def test_invariances_and_zero_for_equal_models() -> None:
    features, labels = _random(2, 6, 8, 12, seed=1), _labels()
    turn, _ = np.linalg.qr(_random(6, 6, seed=5).numpy())
    turned = torch.einsum("cd,ndhw->nchw", torch.from_numpy(turn), features)

    assert float(class_relation_loss(features, features, labels)) == pytest.approx(0, abs=1e-6)
    assert float(class_relation_loss(5 * features, features, labels)) == pytest.approx(0, abs=1e-5)
    assert float(class_relation_loss(turned, features, labels)) == pytest.approx(0, abs=1e-5)


def test_ignored_pixels_do_not_leak_in_and_grids_may_differ() -> None:
    teacher, student, labels = _random(2, 6, 16, 24, seed=1), _random(2, 3, 8, 12, seed=2), _labels()
    other = student.clone()
    other[:, :, :2, :2] = _random(2, 3, 2, 2, seed=9)
    pooled = torch.nn.functional.avg_pool2d(teacher, 2)

    found = float(class_relation_loss(teacher, student, labels))

    assert float(class_relation_loss(teacher, other, labels)) == found
    assert float(class_relation_loss(pooled, student, labels)) == pytest.approx(found, rel=1e-5)


def test_a_class_far_from_its_prototype_in_the_student_alone_costs() -> None:
    """Two classes that the teacher tells apart and the student does not."""
    labels = torch.zeros((1, 8, 8), dtype=torch.int64)
    labels[:, :, 4:] = 1
    teacher = torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    blind = torch.ones((1, 4, 8, 8))

    assert float(class_relation_loss(teacher, blind, labels, temperature=0.1)) == pytest.approx(np.log(2), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    teacher, student, labels = _random(2, 64, 8, 12, seed=1), _random(2, 32, 8, 12, seed=2), _labels()
    half = [features.to(dtype) for features in (teacher, student)]

    with torch.autocast("cpu", dtype):
        found = class_relation_loss(*half, labels)

    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(class_relation_loss(half[0].float(), half[1].float(), labels)), rel=1e-6)


def test_a_batch_without_any_label_gives_zero_and_finite_gradients() -> None:
    student = _random(2, 3, 8, 12, seed=2).requires_grad_()

    loss = class_relation_loss(_random(2, 6, 8, 12, seed=1), student, torch.full((2, 32, 48), 255), class_balance=0.5)
    loss.backward()

    assert float(loss.detach()) == 0
    assert student.grad is not None
    assert torch.count_nonzero(student.grad) == 0


@pytest.mark.parametrize("classes", [4, 6, 255])
def test_a_row_for_every_class_changes_nothing(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what a GPU computes, which need not be asked how many classes occur."""
    teacher, labels = _random(2, 6, 8, 12, seed=1), _labels()
    student = _random(2, 5, 8, 12, seed=2).requires_grad_()
    few = class_relation_loss(teacher, student, labels, class_balance=0.5)
    (expected,) = torch.autograd.grad(few, student)
    members = prototypes._members

    rows = []

    def all_ids(truth: torch.Tensor, present: torch.Tensor, *, every_class: bool) -> tuple[torch.Tensor, torch.Tensor]:
        assert not every_class
        found = members(truth, present, every_class=True)
        rows.append(len(found[0]))
        return found

    monkeypatch.setattr(prototypes, "_members", all_ids)

    every = class_relation_loss(teacher, student, labels, class_balance=0.5, classes=classes)

    assert rows == [classes]

    torch.testing.assert_close(every, few)
    torch.testing.assert_close(torch.autograd.grad(every, student)[0], expected)


def test_features_without_length_give_no_gradient_and_spoil_no_other() -> None:
    """A cell that is 0 in all channels, and a class whose cells cancel each other."""
    teacher = _random(1, 3, 4, 4, seed=1)
    labels = torch.tensor([0] * 8 + [1] * 6 + [2] * 2).reshape(1, 4, 4)
    student = _random(1, 3, 4, 4, seed=2)
    student[0, :, 0, 0] = 0
    student[0, :, 3, 3] = -student[0, :, 3, 2]
    student.requires_grad_()

    class_relation_loss(teacher, student, labels).backward()

    assert student.grad is not None
    assert torch.count_nonzero(student.grad[0, :, 0, 0]) == 0
    assert float(student.grad.abs().max()) < 10
