"""How far class boundaries overlap, against numpy in float64 and against what the formula promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from brd_edge.distill.overlap import boundary_overlap_loss, label_overlap_loss, label_shares


def _shares(*shape: int, seed: int) -> torch.Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).softmax(1)


def _labels() -> torch.Tensor:
    labels = torch.zeros((3, 32, 48), dtype=torch.int64)
    labels[0, :12, :8] = 255
    labels[2] = 255
    return labels


@pytest.mark.parametrize("kernel", [0, 3, 5])
def test_against_numpy(kernel: int) -> None:
    """Of three images the first has unknown cells, and the last has no others."""
    teacher, student = _shares(3, 5, 8, 12, seed=1), _shares(3, 5, 8, 12, seed=2)

    found = boundary_overlap_loss(teacher, student, _labels(), kernel=kernel)

    known = (_labels().numpy() != 255).reshape(3, 8, 4, 12, 4).any((2, 4))

    def boundaries(shares: torch.Tensor, of_class: int) -> np.ndarray:
        values = shares[:, of_class].double().numpy() * known
        if kernel:
            values = values - ndimage.uniform_filter(values, (0, kernel, kernel), mode="mirror")
        return np.asarray(values[known])

    expected = []
    for of_class in range(5):
        theirs, mine = boundaries(teacher, of_class), boundaries(student, of_class)
        both, apart = np.abs(theirs).sum() + np.abs(mine).sum(), np.abs(theirs - mine).sum()
        expected.append(1 - (both - apart) / (both + apart))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_of_decided_maps_it_is_one_minus_the_mean_iou() -> None:
    """With one-hot maps and regions in place of boundaries, the score itself, from counts."""
    generator = np.random.default_rng(1)
    truth, found = generator.integers(0, 4, (2, 8, 12)), generator.integers(0, 4, (2, 8, 12))

    loss = boundary_overlap_loss(
        *(torch.eye(4)[torch.from_numpy(ids)].permute(0, 3, 1, 2) for ids in (truth, found)),
        torch.zeros((2, 32, 48), dtype=torch.int64),
        kernel=0,
    )

    ious = [((truth == c) & (found == c)).sum() / ((truth == c) | (found == c)).sum() for c in range(4)]
    assert float(loss) == pytest.approx(1 - np.mean(ious), rel=1e-5)


def test_gradcheck() -> None:
    teacher, student = _shares(2, 3, 4, 5, seed=1).double(), _shares(2, 3, 4, 5, seed=2).double().requires_grad_()
    labels = torch.zeros((2, 4, 5), dtype=torch.int64)
    labels[0, 0, :2] = 255

    assert torch.autograd.gradcheck(lambda s: boundary_overlap_loss(teacher, s, labels), (student,))


@pytest.mark.parametrize("kernel", [0, 3])
def test_zero_for_equal_soft_maps_only(kernel: int) -> None:
    shares = _shares(3, 5, 8, 12, seed=1)

    assert float(boundary_overlap_loss(shares, shares, _labels(), kernel=kernel)) == 0
    # where a target is soft, other soft Jaccard indices ask for a harder answer than it gives
    harder = (4 * shares.log()).softmax(1)
    assert float(boundary_overlap_loss(shares, harder, _labels(), kernel=kernel)) > 0.05


def test_one_where_nothing_overlaps() -> None:
    teacher = torch.zeros((1, 2, 8, 12))
    teacher[:, 0, :, :6] = 1
    teacher[:, 1, :, 6:] = 1
    labels = torch.zeros((1, 32, 48), dtype=torch.int64)

    assert float(boundary_overlap_loss(teacher, teacher.flip(1), labels, kernel=0)) == pytest.approx(1)


@pytest.mark.parametrize(("cells", "counts"), [(1.5, False), (2.5, True)])
def test_a_class_of_which_the_teacher_sees_less_than_two_cells_is_left_out(cells: float, counts: bool) -> None:
    teacher, student = _shares(2, 5, 8, 12, seed=1), _shares(2, 5, 8, 12, seed=2)
    labels = torch.zeros((2, 32, 48), dtype=torch.int64)
    rarer = [torch.cat([shares, torch.zeros_like(shares[:, :1])], 1) for shares in (teacher, student)]
    rarer[0][0, 5, 0, :5] = cells / 5

    found = float(boundary_overlap_loss(*rarer, labels))

    # of a class that the student does not see nothing overlaps
    others = float(boundary_overlap_loss(teacher, student, labels))
    assert found == pytest.approx((5 * others + 1) / 6 if counts else others, rel=1e-5)


def test_ignored_pixels_do_not_leak_in() -> None:
    teacher, student = _shares(3, 5, 8, 12, seed=1), _shares(3, 5, 8, 12, seed=2)
    others = [teacher.clone(), student.clone()]
    for seed, shares in enumerate(others):
        shares[2] = _shares(1, 5, 8, 12, seed=8 + seed)[0]
        shares[0, :, :3, :2] = 0.7 + seed

    assert float(boundary_overlap_loss(*others, _labels())) == float(boundary_overlap_loss(teacher, student, _labels()))


def test_a_batch_without_any_label_gives_zero_and_finite_gradients() -> None:
    student = _shares(2, 3, 8, 12, seed=2).requires_grad_()

    loss = boundary_overlap_loss(_shares(2, 3, 8, 12, seed=1), student, torch.full((2, 32, 48), 255))
    loss.backward()

    assert float(loss.detach()) == 0
    assert student.grad is not None
    assert torch.count_nonzero(student.grad) == 0


def test_overlap_with_the_labels() -> None:
    """The labels' cells of 4 x 4 pixels in place of a teacher; a confident and right answer has nothing to gain."""
    labels = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(3))
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, :8, :8] = 255
    logits = torch.randn((2, 3, 32, 48), generator=torch.Generator().manual_seed(4))

    found = label_overlap_loss(logits, labels)

    target = torch.eye(4)[labels.clamp(max=3)][..., :3].permute(0, 3, 1, 2)[..., ::4, ::4]
    mine = logits.softmax(1).unflatten(3, (12, 4)).unflatten(2, (8, 4)).mean((3, 5))
    expected = [boundary_overlap_loss(target, mine, labels, kernel=kernel) for kernel in (0, 3)]
    assert float(found) == pytest.approx(sum(map(float, expected)) / 2, rel=1e-5)
    right = 50 * torch.eye(4)[labels.clamp(max=3)][..., :3].permute(0, 3, 1, 2)
    assert float(label_overlap_loss(right, labels)) == pytest.approx(0, abs=1e-5)


def test_shares_of_labels_against_numpy() -> None:
    labels = torch.from_numpy(np.random.default_rng(2).choice([0, 1, 2, 255], (2, 12, 16)))

    found = label_shares(labels, 3, 3, 4)

    cells = labels.numpy().reshape(2, 3, 4, 4, 4)
    expected = np.stack([(cells == c).sum((2, 4)) for c in range(3)], 1)
    expected = expected / expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_shares_on_a_grid_that_does_not_divide_the_labels() -> None:
    labels = torch.tensor([[[0, 0, 1, 1, 255]] * 3])

    found = label_shares(labels, 2, 2, 3)

    # two rows and one row; two columns, two columns, one column
    assert found[0, 0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert found[0, 1].tolist() == [[0, 1, 0], [0, 1, 0]]
